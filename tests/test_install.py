"""`make install`: what it installs, where, and that programs build against it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import engine_files
import pytest
from conftest import ROOT
from engine_files import small_config

from storyllamas.completions import SHELLS, generate, script
from storyllamas.engine.engine import Engine

CC = os.environ.get("CC", "cc")

PROGRAM = """
#include <stdio.h>
#include <storyllamas.h>
int main(int argc, char **argv) {
    sl_model *model;
    sl_session *session;
    sl_piece piece;
    sl_options options = SL_OPTIONS_DEFAULTS;
    options.ignore_eos = argc > 1, options.max_tokens = 20;
    if (sl_model_open(&model, argv[1], NULL) || sl_session_new(&session, model, NULL)) return 1;
    for (int status = sl_start(session, "ab", 2, &options); !status; status = piece.stop)
        if (sl_next(session, &piece)) return 1;
        else fwrite(piece.text, 1, piece.length, stdout);
    sl_session_free(session);
    sl_model_close(model);
    return 0;
}
"""

EXPECTED = {
    "bin/storyllamas-run",
    "include/storyllamas.h",
    "lib/libstoryllamas.a",
    "lib/pkgconfig/storyllamas.pc",
    "share/bash-completion/completions/storyllamas",
    "share/fish/vendor_completions.d/storyllamas.fish",
    "share/man/man1/storyllamas-run.1",
    "share/zsh/site-functions/_storyllamas",
} | (
    {"lib/libstoryllamas.dylib", "lib/libstoryllamas.0.dylib"}
    if sys.platform == "darwin"
    else {"lib/libstoryllamas.so", "lib/libstoryllamas.so.0"}
)


def run(*command: object, **environment: str) -> str:
    options = {"env": os.environ | environment, "capture_output": True, "encoding": "utf-8"}
    done = subprocess.run([*map(str, command)], check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(target: str, build: Path, **variables: object) -> None:
    assert " " not in str(build)
    given = [f"{name}={value}" for name, value in variables.items()]
    run("make", "-C", ROOT, "-j2", target, f"BUILD={build}", "CFLAGS=-O0", *given)


def files(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in paths}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def prefix(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a space in its name into which all is installed."""
    prefix = tmp_path_factory.mktemp("a b") / "usr"
    make("install", build, PREFIX=prefix)
    return prefix


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config()
    path = tmp_path_factory.mktemp("model") / "m.slm"
    return engine_files.write(path, config, engine_files.random_tensors(config, 1), None, "q8")


def text_of(model: Path) -> str:
    return "".join(Engine(model).generate("ab", max_tokens=20, ignore_eos=True))


def package_config(prefix: Path, *arguments: str) -> list[str]:
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    found = run(
        *("pkg-config", *arguments, "storyllamas"),
        PKG_CONFIG_PATH=str(prefix / "lib" / "pkgconfig"),
    )
    return shlex.split(found)


def test_it_installs_and_uninstalls_every_file(prefix: Path, build: Path, tmp_path: Path) -> None:
    assert files(prefix) == EXPECTED
    staged = tmp_path / "a b"
    make("install", build, DESTDIR=staged, PREFIX="/opt/x", LIBDIR="/opt/x/lib64")
    moved = {re.sub(r"^lib/", "lib64/", name) for name in EXPECTED}
    assert files(staged / "opt/x") == moved
    described = (staged / "opt/x/lib64/pkgconfig/storyllamas.pc").read_text()
    assert "prefix=/opt/x\nlibdir=/opt/x/lib64\n" in described
    make("uninstall", build, DESTDIR=staged, PREFIX="/opt/x", LIBDIR="/opt/x/lib64")
    assert files(staged) == set()


def test_its_version_is_that_of_the_package(prefix: Path) -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    assert package_config(prefix, "--modversion") == [version[1]]


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_a_program_builds_with_pkg_config(
    kind: str, prefix: Path, model: Path, tmp_path: Path
) -> None:
    if kind == "static" and sys.platform == "darwin":
        pytest.skip("macOS has no static C library")
    source, program = tmp_path / "story.c", tmp_path / "story"
    source.write_text(PROGRAM)
    cflags = package_config(prefix, "--cflags")
    static = ["--static"] if kind == "static" else []
    libs = package_config(prefix, "--libs", *static) + ["-static" for _ in static]
    run(CC, "-std=c11", "-Wall", "-Wextra", *cflags, source, "-o", program, *libs)
    where = {"LD_LIBRARY_PATH": str(prefix / "lib")}
    assert run(program, model, **({} if static else where)) == text_of(model)


def test_the_shared_library_has_a_soname(prefix: Path) -> None:
    if sys.platform == "darwin" or not shutil.which("readelf"):
        pytest.skip("needs readelf")
    header = run("readelf", "-d", prefix / "lib" / "libstoryllamas.so")
    assert re.findall(r"soname: \[(.*)\]", header) == ["libstoryllamas.so.0"]


@pytest.mark.parametrize("name", ["libstoryllamas.a", "libstoryllamas.so"])
def test_the_libraries_define_the_names_of_the_header_alone(name: str, prefix: Path) -> None:
    if sys.platform == "darwin" or not shutil.which("nm"):
        pytest.skip("needs nm of binutils")
    dynamic = ["-D"] if name.endswith(".so") else []
    listed = run("nm", "-g", "--defined-only", *dynamic, prefix / "lib" / name)
    defined = set(re.findall(r"^[0-9a-f]+ \w (\w+)", listed, re.M))
    header = (ROOT / "csrc" / "storyllamas.h").read_text()
    assert defined == set(re.findall(r"^SL_API [^(]*?(\w+)\(", header, re.M))


def test_the_program_runs(prefix: Path, model: Path) -> None:
    program = prefix / "bin" / "storyllamas-run"
    story = run(program, model, "ab", "-n", "20", "--ignore-eos")
    assert story == "ab" + text_of(model) + "\n"


def test_the_manual_page_describes_the_options_of_the_help(prefix: Path) -> None:
    def options(text: str) -> set[str]:
        return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))

    page = (prefix / "share/man/man1/storyllamas-run.1").read_text()
    body = page.split(".SH OPTIONS")[1].split(".SH EXIT")[0].replace("\\-", "-")
    program_help = run(prefix / "bin" / "storyllamas-run", "--help").split("The short options")[0]
    described = re.sub(r"^ {31,}.*$", "", program_help.split("options\n")[1], flags=re.M)
    assert options(body) == options(described)
    if shutil.which("groff"):
        run("groff", "-man", "-ww", "-Tutf8", prefix / "share/man/man1/storyllamas-run.1")


# ---- Completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_that_of_the_command_line(shell: str) -> None:
    assert script(shell) == generate.generate(shell), "run `make completions`"


def test_bash_completes_commands_options_and_values() -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    for typed, expected in {
        "gen": "generate",
        "generate --top-": "--top-k --top-p",
        "import --type q": "q8 q4",
        "completion b": "bash",
    }.items():
        words = ["storyllamas", *typed.split()]
        ask = (
            f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
            '_shtab_storyllamas; echo "${COMPREPLY[@]}"'
        )
        assert run("bash", "-c", f"{script('bash')}\n{ask}").split() == expected.split()


@pytest.mark.parametrize("shell", ["fish", "zsh"])
def test_the_shell_accepts_the_script(shell: str, prefix: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (path,) = (each for each in prefix.rglob("*storyllamas*") if shell in each.parts)
    run(shell, "-n", path)
