"""The engine on ARM64, emulated by qemu, with and without its products of 8-bit integers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import engine_files
import pytest
from conftest import ROOT
from engine_files import small_config

from storyllamas.engine.engine import Engine

COMPILER, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SETS = {
    "max": ["i8mm", "dotprod", "neon", "scalar"],
    "cortex-a76": ["dotprod", "neon", "scalar"],
    "cortex-a72": ["neon", "scalar"],
}
"""The kernel sets of a processor, the fastest first."""

pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(QEMU)),
    reason=f"needs {COMPILER} and {QEMU} (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross "
    "qemu-user)",
)


def call(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arm")
    settings = [f"CC={COMPILER}", "CFLAGS=-O1 -Werror", "LDFLAGS=-static", f"BUILD={folder}"]
    call("make", "-C", ROOT / "csrc", *settings, "run")
    return folder / "run"


def test_kernels_are_their_definitions(tmp_path: Path) -> None:
    """They are also bit-identical to this machine's kernels, if these have fused multiply-add."""
    csrc = ROOT / "csrc"
    sources = [ROOT / "tests" / "c" / "kernels.c", *(csrc / "kernels").glob("*.c")]
    sources.append(csrc / "platform" / "posix.c")
    own = os.environ.get("CC", "cc")
    for compiler, name in ((COMPILER, "arm"), (own, "own")):
        options = ["-std=c11", "-O1", "-I", csrc, "-lm", "-o", tmp_path / name]
        call(compiler, *(["-static"] if name == "arm" else []), *sources, *options)
    for cpu, names in SETS.items():
        rounds = 30 if cpu == "max" else 1  # it has all sets
        lines = call(QEMU, "-cpu", cpu, tmp_path / "arm", rounds).splitlines()
        assert [*dict.fromkeys(line.split()[0] for line in lines)] == names
        lines += call(tmp_path / "own", rounds).splitlines()
        fused = {digest(line) for line in lines if "scalar" not in line}
        assert len(fused) == len({name for name, _ in fused})


def digest(line: str) -> tuple[str, str]:
    """Return the kernel of a line, and the digest of its results."""
    _, kernel, *_, found = line.split()
    return kernel, found


@pytest.mark.parametrize(
    ("cpu", "kind"),
    [
        ("max", "f32"),
        ("max", "q8"),
        ("cortex-a76", "q4"),
        ("cortex-a72", "q8"),
        ("cortex-a72", "q4"),
    ],
)
def test_greedy_stories_are_those_of_this_machine(
    program: Path, tmp_path: Path, cpu: str, kind: str
) -> None:
    config = small_config(dim=72, head_dim=20, hidden=150, context=90)
    tensors = engine_files.random_tensors(config, 5)
    model = engine_files.write(tmp_path / "m.slm", config, tensors, None, kind)
    engine = Engine(model)
    story = engine.generate("ab a", temperature=0, max_tokens=60)
    assert len(list(story)) > 40
    greedy = ["-t", 0, "--max-tokens", 60, "--ids"]
    ids = call(QEMU, "-cpu", cpu, program, model, *greedy, "ab a")
    assert [*map(int, ids.split())] == [engine_files.BOS, *engine.encode("ab a"), *story.ids]
    if engine.info["kernels"] != "scalar":
        sampled = engine.generate("ab a", temperature=1.0, top_p=0.95, seed=3, max_tokens=60)
        assert list(sampled) is not None
        options = ["-t", 1, "-p", 0.95, "-s", 3, "--max-tokens", 60, "--ids"]
        ids = call(QEMU, "-cpu", cpu, program, model, *options, "ab a")
        assert [*map(int, ids.split())][-sampled.tokens :] == sampled.ids
    kernels = f"{SETS[cpu][0]} of {' '.join(SETS[cpu])}"
    assert kernels in call(QEMU, "-cpu", cpu, program, model, "--info")


def test_a_set_that_the_processor_lacks_is_an_error(program: Path, tmp_path: Path) -> None:
    config = small_config()
    model = engine_files.write(tmp_path / "m.slm", config, engine_files.random_tensors(config))
    command = [QEMU, "-cpu", "cortex-a76", "-E", "SL_KERNELS=i8mm", str(program), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "i8mm" in done.stderr
    assert "dotprod, neon, scalar" in done.stderr
