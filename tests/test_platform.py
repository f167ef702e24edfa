"""The engine without an operating system, and the compilers and processors that it is built for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import engine_files
import pytest
from conftest import ROOT
from engine_files import small_config
from test_amalgamation import STRICT

from storyllamas.engine.engine import Engine

TARGETS = {
    "wasm": ("clang", "--target=wasm32-wasi", "/usr/include/wasm32-wasi"),
    "cortex-m7": (
        "arm-none-eabi-gcc",
        "-mcpu=cortex-m7 -mfpu=fpv5-d16 -mfloat-abi=hard",
        "/usr/include/newlib",
    ),
    "windows": ("x86_64-w64-mingw32-gcc", "", "/usr/x86_64-w64-mingw32/include"),
    "none": ("cc", "-DSL_PLATFORM_NONE", "/"),
}

PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storyllamas.h"

static _Alignas(64) unsigned char data[1 << 20];

int main(int argc, char **argv) {
    FILE *file = fopen(argv[argc - 1], "rb");
    const size_t bytes = fread(data, 1, sizeof data, file);
    sl_model *model;
    sl_session *session;
    sl_session_options session_options = SL_SESSION_OPTIONS_DEFAULTS;
    sl_options options = SL_OPTIONS_DEFAULTS;
    sl_piece piece = {0};
    if (!sl_model_open(&model, "m.slm", NULL)) return 1;
    puts(sl_error());
    if (sl_model_open_memory(&model, data, bytes, NULL)) return 2;
    session_options.threads = 2;
    if (!sl_session_new(&session, model, &session_options)) return 3;
    puts(sl_error());
    if (sl_session_new(&session, model, NULL)) return 4;
    options.seed = 5;
    options.ignore_eos = 1;
    options.max_tokens = 30;
    if (sl_start(session, "ab a", 4, &options)) return 5;
    while (!piece.stop) {
        if (sl_next(session, &piece)) return 6;
        fwrite(piece.text, 1, piece.length, stdout);
    }
    sl_session_free(session);
    sl_model_close(model);
    return 0;
}
"""


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, encoding="utf-8", check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the engine as one file."""
    folder = tmp_path_factory.mktemp("amalgamation")
    done = run("make", "-C", ROOT / "csrc", "amalgamation", f"BUILD={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_it_compiles_without_a_warning(folder: Path, tmp_path: Path, target: str) -> None:
    compiler, options, headers = TARGETS[target]
    if not (shutil.which(compiler) and Path(headers).is_dir()):
        pytest.skip(f"needs {compiler} and {headers}")
    command = [compiler, *options.split(), "-std=c11", *STRICT, "-DSL_SCALAR_ONLY", "-O1"]
    done = run(*command, "-c", folder / "storyllamas.c", "-o", tmp_path / "s.o")
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_system_it_generates_the_same_text(folder: Path, tmp_path: Path) -> None:
    source, program = tmp_path / "p.c", tmp_path / "p"
    source.write_text(PROGRAM)
    options = ["-std=c11", *STRICT, "-O1", "-DSL_PLATFORM_NONE", f"-I{folder}", "-o", program]
    done = run("cc", *options, source, folder / "storyllamas.c", "-lm")
    assert done.returncode == 0, done.stderr
    config = small_config()
    model = engine_files.write(
        tmp_path / "m.slm", config, engine_files.random_tensors(config, 2), None, "q8"
    )
    done = run(program, model)
    assert done.returncode == 0
    no_file, no_threads, text = done.stdout.split("\n", 2)
    assert no_file == (
        "weight file m.slm cannot be opened, because this build has no files: use "
        "sl_model_open_memory"
    )
    assert no_threads == "threads is 2 and must be 0 (automatic) to 1"
    story = Engine(model).generate("ab a", seed=5, ignore_eos=True, max_tokens=30)
    assert text == "".join(story)


def test_a_big_endian_processor_is_one_error(folder: Path) -> None:
    order = ["-U__BYTE_ORDER__", "-D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__"]
    done = run("cc", "-std=c11", *order, "-fsyntax-only", folder / "storyllamas.c")
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert "the engine needs a little-endian processor" in error
    assert "warning:" not in done.stderr
