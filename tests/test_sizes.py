"""Sizes that do not fit the address space, here and on 32 bits as qemu emulates them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import engine_files
import pytest
from conftest import ROOT, made_once, make_engine
from engine_files import small_config

from storyllamas.engine.build import program_files
from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError

COMPILER, QEMU = "arm-linux-gnueabihf-gcc", "qemu-arm"
MIB = 1 << 20

needs_arm = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(QEMU)),
    reason=f"needs {COMPILER} and {QEMU} (Debian: gcc-arm-linux-gnueabihf qemu-user)",
)


def call(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and values of 2^32 bytes each, which is 0 if a size of 32 bits overflows."""
    path = tmp_path_factory.mktemp("wide") / "m.slm"
    vocabulary = engine_files.make_vocabulary([b"a", b"\0", b"\0\0"])
    config = small_config(
        dim=2, layers=1, heads=64, kv_heads=64, head_dim=128, hidden=2, context=1 << 17,
        vocab_size=len(vocabulary.pieces),
    )  # fmt: skip
    return engine_files.write(path, config, engine_files.random_tensors(config), vocabulary)


def saturate(compiler: str, library: Path, folder: Path, *options: str) -> Path:
    """Build the test of sizes."""
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-I", ROOT / "csrc"]
    test = ROOT / "tests" / "c" / "sizes.c"
    call(compiler, *flags, *options, test, library, "-lm", "-pthread", "-o", folder / "sizes")
    return folder / "sizes"


def test_sizes_saturate(tmp_path: Path, wide: Path, library: Path) -> None:
    call(saturate(os.environ.get("CC", "cc"), library, tmp_path), wide)


@pytest.fixture(scope="session")
def arm_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library for ARM with 32 bits as one object file."""

    def make(folder: Path) -> None:
        settings = [f"CC={COMPILER}", "CFLAGS=-O1 -Werror"]
        make_engine(folder, *settings, f"{folder}/arm/library.o")

    return made_once(tmp_path_factory, "arm_32_bits", make) / "arm" / "library.o"


@needs_arm
def test_sizes_of_32_bits_saturate(tmp_path: Path, wide: Path, arm_library: Path) -> None:
    call(QEMU, saturate(COMPILER, arm_library, tmp_path, "-static"), wide)


@needs_arm
def test_greedy_stories_of_32_bits_are_those_of_this_machine(
    tmp_path: Path, arm_library: Path
) -> None:
    sources = [*program_files(), arm_library]
    call(COMPILER, "-std=c11", "-static", *sources, "-lm", "-pthread", "-o", tmp_path / "run")
    config = small_config(context=60)
    model = engine_files.write(
        tmp_path / "m.slm", config, engine_files.random_tensors(config, 5), None, "q8"
    )
    engine = Engine(model)
    story = engine.generate("ab a", temperature=0, max_tokens=40)
    assert len(list(story)) > 20
    ran = call(QEMU, tmp_path / "run", model, "-t", 0, "--max-tokens", 40, "--ids", "ab a")
    assert [*map(int, ran.split())] == [engine_files.BOS, *engine.encode("ab a"), *story.ids]


# ---- What a small file may take ------------------------------------------------------------------


# A child begins with the memory of the process that starts it, so a small process must.
MEASURE = """
import os, sys
output = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=output)
_, status, usage = os.wait4(child, 0)
assert status == 0
print(usage.ru_maxrss)
"""


def resident_bytes(*command: object) -> int:
    """Run a command; return the most memory that it had."""
    return int(call(sys.executable, "-I", "-S", "-c", MEASURE, *command)) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_memory_is_for_the_positions_reached(tmp_path: Path, program: Path) -> None:
    """A table of all positions would have 4 GiB."""
    config = small_config(
        dim=2, layers=1, heads=1, kv_heads=1, head_dim=8192, hidden=2, context=1 << 17
    )
    path = engine_files.write(tmp_path / "m.slm", config, engine_files.random_tensors(config))
    assert path.stat().st_size < MIB
    assert resident_bytes(program, path, "--info") < 32 * MIB
    assert resident_bytes(program, path, "-n", 3, "a") < 128 * MIB


def test_a_long_context_takes_memory_as_it_is_used(tmp_path: Path, program: Path) -> None:
    """With huge pages, the first token would take 4 MiB in each layer."""
    config = small_config(
        dim=2, layers=32, heads=1, kv_heads=1, head_dim=4, hidden=2, context=1 << 17
    )
    path = engine_files.write(tmp_path / "m.slm", config, engine_files.random_tensors(config))
    assert resident_bytes(program, path, "-n", 3, "a") < 64 * MIB


def test_layers_are_those_that_the_file_has_room_for(tmp_path: Path) -> None:
    config = small_config()
    path = engine_files.write(tmp_path / "m.slm", config, engine_files.random_tensors(config))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 36, 1 << 12)  # layers
    path.write_bytes(engine_files.sealed(data))
    with pytest.raises(UserError, match="its sections do not fit the file"):
        Engine(path)
