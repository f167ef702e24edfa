"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from storyllamas.engine.build import program_files

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300  # seconds until what hangs is given up

# The same examples on every machine, however long a busy one takes for each.
settings.register_profile(
    "project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first of all processes of pytest-xdist to ask for it fills."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            folder.mkdir()
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
    return folder


def quick_compiler_in(folder: Path) -> Path:
    """Write a compiler that never optimizes, which takes a quarter of the time."""
    script = folder / "cc"
    script.write_text(f'#!/bin/sh\nexec {os.environ.get("CC", "cc")} "$@" -O0\n')
    script.chmod(0o755)
    return script


@pytest.fixture
def quick_compiler(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let setuptools compile without optimization."""
    monkeypatch.setenv("CC", str(quick_compiler_in(tmp_path_factory.mktemp("compiler"))))


def make_engine(folder: Path, *arguments: str) -> None:
    """Call csrc/Makefile to build something in a folder."""
    command = ["make", "-C", str(ROOT / "csrc"), f"BUILD={folder}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the C library as one object file, without optimization; skip without a compiler."""
    if not shutil.which(os.environ.get("CC", "cc")):
        pytest.skip("there is no C compiler")

    def make(folder: Path) -> None:
        make_engine(folder, "CFLAGS=-O0 -g", f"{folder}/plain/library.o")

    return made_once(tmp_path_factory, "library", make) / "plain" / "library.o"


@pytest.fixture(scope="session")
def program(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the C program, without optimization."""

    def make(folder: Path) -> None:
        sources = [*program_files(), library]
        command = [os.environ.get("CC", "cc"), "-std=c11", *sources, "-lm", "-pthread"]
        subprocess.run([*command, "-o", folder / "run"], check=True)

    return made_once(tmp_path_factory, "program", make) / "run"


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the library, the program and C tests under sanitizers."""

    def make(folder: Path) -> None:
        make_engine(folder, "CFLAGS=-O1 -Werror", "sanitized")

    return made_once(tmp_path_factory, "sanitized", make) / "sanitized"


@pytest.fixture(scope="session")
def tinystories() -> Path:
    """Return the folder of real TinyStories text; skip the test without it."""
    default = ROOT.parent / "shared" / "data" / "tinystories"
    folder = Path(os.environ.get("STORYLLAMAS_TINYSTORIES", default))
    if not (folder / "TinyStories-train.txt").is_file():
        pytest.skip("set STORYLLAMAS_TINYSTORIES to a folder with TinyStories-train.txt")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of shared test files next to the checkout; skip the test without it."""
    folder = Path(os.environ.get("STORYLLAMAS_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("set STORYLLAMAS_SHARED to a folder with cases and checkpoints")
    return folder


@pytest.fixture
def state_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where this test and its processes keep their runs."""
    monkeypatch.setenv("STORYLLAMAS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def wait_until_stopped(pid: int) -> None:
    """Wait until the process has stopped itself; raise an error if it ends instead."""
    deadline = time.monotonic() + PATIENCE
    while (status := psutil.Process(pid).status()) != psutil.STATUS_STOPPED:
        assert status != psutil.STATUS_ZOMBIE, "it has ended"
        assert time.monotonic() < deadline
        time.sleep(0.005)
