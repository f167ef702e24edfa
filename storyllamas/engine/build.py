"""Build the extension module `storyllamas._engine` from csrc/ with cffi.

setup.py takes `ffibuilder` from here for `pip install`. `python -m storyllamas.engine.build` builds
the module in place, inside the package, unless it is newer than all of its sources.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from cffi import FFI

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE.parent
CSRC = ROOT / "csrc"

PREAMBLE = """
#include "storyllamas.h"
static sl_options sl_defaults(void) { return (sl_options)SL_OPTIONS_DEFAULTS; }
"""


# clang-cl takes the flags of Microsoft's compiler; threads and mathematics need no library there.
COMPILER: dict[str, list[str]] = (
    {"extra_compile_args": ["/std:c11", "/O2", "/utf-8"]}
    if sys.platform == "win32"
    else {
        "extra_compile_args": [
            *("-std=c11", "-ffp-contract=off", "-O3", "-fvisibility=hidden", "-pthread")
        ],
        "extra_link_args": ["-pthread"],
        "libraries": ["m"],
    }
)


def source_files(kinds: str) -> list[Path]:
    """Return the engine's files whose suffix is one of the letters; none in csrc/build."""
    return sorted(path for path in CSRC.rglob(f"*.[{kinds}]") if CSRC / "build" not in path.parents)


def library_files() -> list[Path]:
    """Return the C files of the library: all but those of the program."""
    return [path for path in source_files("c") if path not in program_files()]


def program_files() -> list[Path]:
    """Return the C files of the command-line program, which needs those of the library, too."""
    return sorted((CSRC / "program").glob("*.c"))


def _declarations() -> str:
    """Return the declarations of the header that cffi's parser understands."""
    header = (CSRC / "storyllamas.h").read_text(encoding="utf-8")
    section = header.split("/* cffi: begin */")[1].split("/* cffi: end */")[0]
    return section.replace("SL_API ", "") + "sl_options sl_defaults(void);"


def ffibuilder() -> FFI:
    """Describe the extension module for cffi; paths are relative to the project's root."""
    builder = FFI()
    builder.cdef(_declarations())
    builder.set_source(
        "storyllamas._engine",
        PREAMBLE,
        sources=[path.relative_to(ROOT).as_posix() for path in library_files()],
        depends=[path.relative_to(ROOT).as_posix() for path in source_files("h")],
        include_dirs=["csrc"],
        **COMPILER,
    )
    return builder


def modules(folder: Path) -> list[Path]:
    """Return the extension modules in a folder that this Python can load; it loads the first."""
    paths = [folder / f"_engine{suffix}" for suffix in EXTENSION_SUFFIXES]
    return [path for path in paths if path.is_file()]


def is_up_to_date() -> bool:
    """Check whether there is one extension module, newer than all of its sources."""
    built = [path.stat().st_mtime for path in modules(PACKAGE)]
    sources = [Path(__file__), *source_files("ch")]
    return len(built) == 1 and built[0] >= max(path.stat().st_mtime for path in sources)


def build() -> None:
    """Build the extension module inside the package, where it appears only when complete.

    Other extension modules, which this Python might load in its place, are removed.

    Raises:
        UserError: the compiler is missing or fails.
    """
    from storyllamas.atomic import atomic_file
    from storyllamas.errors import UserError

    with tempfile.TemporaryDirectory() as folder:
        command = [
            "setup.py",
            "--quiet",
            "build_ext",
            "--build-lib",
            folder,
            "--build-temp",
            folder,
        ]
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
            raise UserError(
                "the C engine cannot be built: install a C compiler (gcc or clang), Python's "
                "headers and setuptools, and see the compiler's output above"
            )
        (module,) = modules(Path(folder, PACKAGE.name))
        with atomic_file(PACKAGE / module.name) as file:
            file.write(module.read_bytes())
    for other in modules(PACKAGE):
        if other.name != module.name:
            other.unlink()


def main() -> None:
    """Build the extension module unless it is up to date."""
    if not is_up_to_date():
        build()


if __name__ == "__main__":
    from storyllamas.errors import exit_on_user_error

    exit_on_user_error(main)()
