"""Each stage of dvc.yaml depends on the source files that it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from storyllamas.interop.formats import FORMATS

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

PLUMBING = {
    "storyllamas/__init__.py",
    "storyllamas/atomic.py",  # how files are written, not what
    "storyllamas/errors.py",
    "storyllamas/extras.py",  # messages
    "storyllamas/params",  # DVC compares the values
    "storyllamas/regular_file.py",
    "storyllamas/workdir.py",
}
"""Modules and folders that do not decide a result; what they import does not count either."""


def module_files(name: str) -> Iterator[Path]:
    """Yield the files with code that an import of a dotted name of the project runs."""
    path = ROOT
    for part in name.split("."):
        path /= part
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file() and len(ast.parse(file.read_text(encoding="utf-8")).body) > 1:
                yield file


@cache
def imported_by(file: Path) -> frozenset[Path]:
    """Return the files of storyllamas that a file imports outside of its functions."""
    found: set[Path] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("storyllamas"):
                found |= set(module_files(name))
    return frozenset(found)


def needed_by(stage: str) -> set[str]:
    pending, found = [ROOT / f"stages/{stage}.py"], set()
    if stage == "export":  # which imports the module of a format when it needs it
        modules = {each.module for each in FORMATS.values()}
        pending += [ROOT / f"storyllamas/interop/{module}.py" for module in modules]
    while pending:
        for file in imported_by(pending.pop()):
            name = file.relative_to(ROOT).as_posix()
            if not any(covers(each, name) for each in PLUMBING) and file not in found:
                found.add(file)
                pending.append(file)
    return {file.relative_to(ROOT).as_posix() for file in found}


def covers(dependency: str, file: str) -> bool:
    return file == dependency or file.startswith(f"{dependency}/")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_of_its_imports(stage: str) -> None:
    dependencies = STAGES[stage]["deps"]
    missing = {
        file
        for file in needed_by(stage)
        if not any(covers(dependency, file) for dependency in dependencies)
    }
    assert missing == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_other_source(stage: str) -> None:
    needed = needed_by(stage) | {f"stages/{stage}.py"}
    sources = [each for each in STAGES[stage]["deps"] if each.startswith(("stages", "storyllamas"))]
    unused = [each for each in sources if not any(covers(each, file) for file in needed)]
    assert unused == []


def test_what_runs_the_engine_depends_on_its_source() -> None:
    for stage, described in STAGES.items():
        runs_engine = "storyllamas/engine/ffi.py" in needed_by(stage)
        assert runs_engine == any(each.startswith("csrc") for each in described["deps"])
        assert runs_engine == ("python -m storyllamas.engine.build" in described["cmd"])
