"""The engine as one C file and one header, in programs of C and C++."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import engine_files
import pytest
from conftest import ROOT
from engine_files import small_config

from storyllamas.engine.engine import Engine, kernel_sets

STRICT = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-pedantic", "-Werror"]
COMPILERS = ["cc", "clang"]

PROGRAM = """
#include <stdio.h>
#include <string.h>

#include "storyllamas.h"

/* usage: program FILE [KERNELS]. Generates 40 tokens at temperature 0. */
int main(int argc, char **argv) {
    sl_model *model;
    sl_session *session;
    sl_piece piece;
    sl_model_options opening = SL_MODEL_OPTIONS_DEFAULTS;
    sl_options options = SL_OPTIONS_DEFAULTS;
    if (argc > 2) opening.kernels = argv[2];
    options.temperature = 0;
    options.max_tokens = 40;
    options.ignore_eos = 1;
    if (sl_model_open(&model, argv[1], &opening)) return 1;
    if (sl_session_new(&session, model, NULL)) return 1;
    if (sl_start(session, "ab a", strlen("ab a"), &options)) return 1;
    do {
        if (sl_next(session, &piece)) return 1;
        fwrite(piece.text, 1, piece.length, stdout);
    } while (!piece.stop);
    sl_session_free(session);
    sl_model_close(model);
    return 0;
}
"""


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def compiler(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with nothing but the two files."""
    folder = tmp_path_factory.mktemp("amalgamation")
    run("make", "-C", ROOT / "csrc", "amalgamation", f"BUILD={folder}")
    assert sorted(path.name for path in folder.iterdir()) == ["storyllamas.c", "storyllamas.h"]
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(dim=48, hidden=96)
    path = tmp_path_factory.mktemp("model") / "m.slm"
    return engine_files.write(path, config, engine_files.random_tensors(config, 1), None, "q4")


def text_of(model: Path, kernels: str | None = None) -> str:
    engine = Engine(model, kernels=kernels)
    return "".join(engine.generate("ab a", temperature=0, max_tokens=40, ignore_eos=True))


@pytest.mark.parametrize("name", COMPILERS)
def test_a_c_program_generates_the_text_of_the_engine(
    name: str, folder: Path, model: Path, tmp_path: Path
) -> None:
    cc = compiler(name)
    library, program, source = tmp_path / "s.o", tmp_path / "program", tmp_path / "program.c"
    source.write_text(PROGRAM)
    run(cc, "-std=c11", *STRICT, "-O1", "-c", folder / "storyllamas.c", "-o", library)
    options = ["-std=c11", *STRICT, f"-I{folder}", "-o", program]
    run(cc, *options, source, library, "-lm", "-pthread")
    assert run(program, model) == text_of(model)
    for kernels in kernel_sets():
        assert run(program, model, kernels) == text_of(model, kernels)


def test_a_cpp_program_generates_the_text_of_the_engine(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    cpp = compiler("c++")
    library, program, source = tmp_path / "s.o", tmp_path / "program", tmp_path / "program.cpp"
    source.write_text(PROGRAM)
    run(compiler("cc"), "-std=c11", "-c", folder / "storyllamas.c", "-o", library)
    options = ["-std=c++20", *STRICT, f"-I{folder}", "-o", program]
    run(cpp, *options, source, library, "-lm", "-pthread")
    assert run(program, model) == text_of(model)


def test_it_defines_only_names_of_the_library(folder: Path, tmp_path: Path) -> None:
    library = tmp_path / "s.o"
    run(compiler("cc"), "-std=c11", "-c", folder / "storyllamas.c", "-o", library)
    symbols = [line.split() for line in run(compiler("nm"), "-g", "-P", library).splitlines()]
    defined = [name.removeprefix("_") for name, kind, *_ in symbols if kind not in "Uw"]
    assert "sl_model_open_memory" in defined
    assert [name for name in defined if not name.startswith("sl_")] == []
