"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

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


@pytest.fixture
def quick_compiler(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let setuptools compile without optimization, which takes a quarter of the time."""
    script = tmp_path_factory.mktemp("compiler") / "cc"
    script.write_text(f'#!/bin/sh\nexec {os.environ.get("CC", "cc")} "$@" -O0\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))


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
