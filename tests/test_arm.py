"""The engine on ARM64, emulated by qemu, with and without the dot product."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import engine_files
import pytest
from conftest import ROOT
from engine_files import small_config

from storyllamas.engine.engine import Engine

COMPILER, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64"
WITH_DOT_PRODUCT, WITHOUT = "max", "cortex-a53"

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
    csrc = ROOT / "csrc"
    sources = [ROOT / "tests" / "c" / "kernels.c", *(csrc / "kernels").glob("*.c")]
    sources.append(csrc / "platform" / "posix.c")
    call(COMPILER, "-std=c11", "-O1", "-static", "-I", csrc, *sources, "-lm", "-o", tmp_path / "k")
    sets = {
        cpu: {line.split()[0] for line in call(QEMU, "-cpu", cpu, tmp_path / "k", 30).splitlines()}
        for cpu in (WITH_DOT_PRODUCT, WITHOUT)
    }
    assert sets == {WITH_DOT_PRODUCT: {"neon", "scalar"}, WITHOUT: {"scalar"}}


@pytest.mark.parametrize("cpu", [WITH_DOT_PRODUCT, WITHOUT])
def test_greedy_stories_are_those_of_this_machine(program: Path, tmp_path: Path, cpu: str) -> None:
    config = small_config(dim=72, head_dim=20, hidden=150, context=90)
    tensors = engine_files.random_tensors(config, 5)
    model = engine_files.write(tmp_path / "f32.slm", config, tensors)
    engine = Engine(model)
    story = engine.generate("ab a", temperature=0, max_tokens=60)
    assert len(list(story)) > 40
    greedy = ["-t", 0, "--max-tokens", 60, "--ids"]
    ids = call(QEMU, "-cpu", cpu, program, model, *greedy, "ab a")
    assert [*map(int, ids.split())] == [engine_files.BOS, *engine.encode("ab a"), *story.ids]
    kernels = "neon of neon scalar" if cpu == WITH_DOT_PRODUCT else "scalar of scalar"
    assert kernels in call(QEMU, "-cpu", cpu, program, model, "--info")
