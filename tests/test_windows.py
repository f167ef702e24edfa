"""The program and the DLL for Windows, built by mingw-w64 and run by Wine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import engine_files
import pytest
from conftest import ROOT, made_once
from engine_files import small_config
from test_amalgamation import PROGRAM

from storyllamas.engine.engine import Engine, kernel_sets

COMPILER, OBJDUMP = "x86_64-w64-mingw32-gcc", "x86_64-w64-mingw32-objdump"
WINE = shutil.which("wine64") or shutil.which("/usr/lib/wine/wine64") or shutil.which("wine")
SERVER = shutil.which("wineserver") or shutil.which("/usr/lib/wine/wineserver")

pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and WINE and SERVER),
    reason=f"needs {COMPILER} and Wine (Debian: gcc-mingw-w64-x86-64 wine64)",
)

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:

    def make(folder: Path) -> None:
        settings = [f"BUILD={folder}", "CFLAGS=-O1 -Werror"]
        command = ["make", "-j2", "-C", str(ROOT / "csrc"), *settings, "windows"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "for_windows", make) / "windows"


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a function that runs a program under Wine, with settings of its own."""
    settings = {
        "WINEPREFIX": str(tmp_path_factory.mktemp("wine") / "prefix"),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml=",
        "LC_ALL": "C.UTF-8",
    }
    environment = os.environ | settings
    assert WINE
    assert SERVER

    def call(*command: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        given = [WINE, *map(str, command)]
        return subprocess.run(given, capture_output=True, check=False, env=environment, **options)  # type: ignore[call-overload, no-any-return]

    call("cmd", "/c", "exit")  # makes the prefix
    # A program that waits for its input keeps Wine alive, whose start is slow.
    waiting = subprocess.Popen(
        [WINE, "cmd"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )
    yield call
    waiting.communicate()
    subprocess.run([SERVER, "-k"], env=environment, check=False)


@pytest.fixture
def run(build: Path, wine: Run) -> Run:
    return lambda *arguments, **options: wine(build / "run.exe", *arguments, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models of each type, `m f32ü.slm` and so on."""
    folder = tmp_path_factory.mktemp("model")
    config = small_config(dim=48, hidden=96, context=120)
    tensors = engine_files.random_tensors(config, 1)
    for weight_type in ("f32", "q8", "q4"):
        engine_files.write(model_of(folder, weight_type), config, tensors, None, weight_type)
    return folder


def model_of(folder: Path, weight_type: str) -> Path:
    return folder / f"m {weight_type}ü.slm"


def story_of(model: Path, prompt: str, kernels: str | None = None) -> bytes:
    """Return the output for a prompt with seed 3, as the engine of this machine generates it."""
    engine = Engine(model, kernels=kernels)
    story = engine.generate(prompt, seed=3, max_tokens=40, ignore_eos=True)
    return (prompt + "".join(story) + "\n").encode()


OPTIONS = ["-s", 3, "-n", 40, "--ignore-eos"]


@pytest.mark.parametrize("weight_type", ["f32", "q8", "q4"])
def test_the_text_is_that_of_this_machine(run: Run, folder: Path, weight_type: str) -> None:
    model = model_of(folder, weight_type)
    done = run(model, *OPTIONS, "ab é日 a")
    assert done.returncode == 0, done.stderr
    assert done.stdout == story_of(model, "ab é日 a")
    assert b"40 tokens after a prompt of" in done.stderr


@pytest.mark.parametrize("options", ["--threads 3", "--pages huge", "--pages shared"])
def test_threads_and_pages_change_nothing(run: Run, folder: Path, options: str) -> None:
    model = model_of(folder, "q8")
    assert run(model, *OPTIONS, *options.split(), "ab a").stdout == story_of(model, "ab a")


def test_it_has_the_kernels_of_this_machine(run: Run, folder: Path) -> None:
    shown = run(model_of(folder, "q8"), "--info").stdout
    kernels = " ".join(name for name in kernel_sets() if name != "amx")  # AMX is for Linux only
    assert f"of {kernels}\n".encode() in shown
    assert b"\r" not in shown


def test_a_prompt_from_a_file_or_standard_input(run: Run, folder: Path, tmp_path: Path) -> None:
    model, path = model_of(folder, "q8"), tmp_path / "prompt ü.txt"
    text = "é\n\x1ab\r\na"
    path.write_bytes((text + "\r\n").encode())
    assert run(model, *OPTIONS, "-f", path).stdout == story_of(model, text)
    with path.open("rb") as file:
        assert run(model, *OPTIONS, "-", stdin=file).stdout == story_of(model, text)


def test_errors_name_the_file(run: Run, folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "ü.slm"
    data = bytearray(model_of(folder, "q4").read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    (tmp_path / "empty.slm").touch()
    for path, reason in (
        (
            tmp_path / "no ü.slm",
            "does not exist: name another file, or train a model with `dvc repro`",
        ),
        (tmp_path, "is not a regular file: give the path of a .slm file"),
        (damaged, "is damaged: its checksum does not match; export it again"),
        (tmp_path / "empty.slm", "is empty: export it again"),
    ):
        done = run(path)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode() == f"error: weight file {path} {reason}\r\n"
    done = run(model_of(folder, "q4"), "-f", tmp_path / "none ü")
    message = f"error: {tmp_path}/none ü cannot be read: No such file or directory\r\n"
    assert done.stderr.decode() == message


def test_a_random_seed(run: Run, folder: Path) -> None:
    seeds = {run(model_of(folder, "q4"), "-s", "random", "-n", 1).stderr[:9] for _ in range(2)}
    assert len(seeds) == 2
    assert all(seed.startswith(b"seed ") for seed in seeds)


def test_the_dll_exports_the_functions_of_the_header(build: Path) -> None:
    command = [OBJDUMP, "-p", build / "storyllamas.dll"]
    shown = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    table = shown.split("[Ordinal/Name Pointer] Table")[1].split("\n\n")[0]
    names = {line.split()[-1] for line in table.splitlines() if "]" in line}
    header = (ROOT / "csrc" / "storyllamas.h").read_text()
    assert {"sl_model_open", "sl_session_bytes"} <= names
    assert all(f" {name}(" in header or f"*{name}(" in header for name in names)


def test_a_program_uses_the_dll(build: Path, wine: Run, folder: Path, tmp_path: Path) -> None:
    source, program, model = tmp_path / "p.c", tmp_path / "p.exe", tmp_path / "m.slm"
    source.write_text(PROGRAM)
    shutil.copyfile(build / "storyllamas.dll", tmp_path / "storyllamas.dll")
    shutil.copyfile(model_of(folder, "q4"), model)
    command = [COMPILER, f"-I{ROOT / 'csrc'}", source, build / "storyllamas.dll.a", "-o", program]
    subprocess.run([*map(str, command)], check=True)
    text = "".join(Engine(model).generate("ab a", temperature=0, max_tokens=40, ignore_eos=True))
    done = wine(program, model)
    assert (done.returncode, done.stdout.decode()) == (0, text.replace("\n", "\r\n"))
