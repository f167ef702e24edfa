"""Source files that decide what a module computes."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator
from pathlib import Path


def imported_files(module: Path, package: Path, skipped: Container[Path] = ()) -> list[Path]:
    """Return `module` and all files of `package` that importing it runs, sorted.

    An import inside of a function or a condition is not followed.

    Args:
        module: a file of the package.
        package: the folder of the package, whose imports are absolute.
        skipped: files to leave out, with what only they import.
    """
    found: set[Path] = set()
    pending = [module]
    while pending:
        file = pending.pop()
        if file not in found and file not in skipped:
            found.add(file)
            pending += _direct_imports(file, package)
    return sorted(found)


def _direct_imports(file: Path, package: Path) -> Iterator[Path]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name after `import` may be a module or something in one.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            top, *parts = name.split(".")
            if top == package.name:
                yield from _module_files(package, parts)


def _module_files(package: Path, parts: list[str]) -> Iterator[Path]:
    """Yield the file of a module and the __init__.py of each package around it."""
    path = package
    for folder in (path, *(path := path / part for part in parts)):
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
        elif folder.with_suffix(".py").is_file():
            yield folder.with_suffix(".py")
