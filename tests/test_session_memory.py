"""A session in the caller's memory: its size, its errors, and that it allocates nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import engine_files
import pytest
from conftest import ROOT
from engine_files import small_config
from ranked import pair

from storyllamas.engine.build import library_files
from storyllamas.engine.engine import Engine
from storyllamas.engine.ffi import check, ffi, lib
from storyllamas.errors import UserError

ALLOCATORS = ["malloc", "calloc", "realloc", "aligned_alloc", "sl_pages_new"]
PROMPTS = ["ab a", "a " * 20, "a" * 90, "é ü", "b"]
LONG = "a" * 16000
"""A word that does not fit the scratch memory of a session."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux":
        pytest.skip("the linker must know --wrap")
    path = tmp_path_factory.mktemp("program") / "session_memory"
    wrap = [f"-Wl,--wrap={name}" for name in ALLOCATORS]
    options = ["-std=c11", "-O1", "-I", ROOT / "csrc", "-DSL_SCALAR_ONLY"]
    source = ROOT / "tests" / "c" / "session_memory.c"
    command = [os.environ.get("CC", "cc"), *options, *wrap, source, *library_files()]
    subprocess.run([*map(str, command), "-lm", "-pthread", "-o", str(path)], check=True)
    return path


def write(path: Path, tokenizer: str, weight_type: str) -> Path:
    if tokenizer == "sentencepiece":
        vocabulary = engine_files.make_vocabulary([*engine_files.WORDS, b"aa"])
    else:
        vocabulary = pair(tokenizer).vocabulary
    config = small_config(context=100, vocab_size=len(vocabulary.pieces))
    tensors = engine_files.random_tensors(config, 3)
    return engine_files.write(path, config, tensors, vocabulary, weight_type)


def run(program: Path, model: Path, chunk: int, prompts: list[str]) -> list[str]:
    command = [str(program), str(model), str(chunk), *prompts]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    size, *texts = done.stdout.decode().split("\0")[:-1]
    assert int(size) % 64 == 0
    return texts


@pytest.mark.parametrize(
    ("tokenizer", "weight_type"),
    [
        ("sentencepiece", "f32"),
        ("sentencepiece", "q4"),
        ("legacy", "q8"),
        ("split", "f32"),
        ("gpt2 prefix", "q8"),
    ],
)
def test_it_generates_the_same_text_and_allocates_nothing(
    program: Path, tmp_path: Path, tokenizer: str, weight_type: str
) -> None:
    model = write(tmp_path / "m.slm", tokenizer, weight_type)
    engine = Engine(model, kernels="scalar")
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 30, "ignore_eos": True}
    expected = ["".join(engine.generate(prompt, **options)) for prompt in PROMPTS]
    for chunk in (0, 16):
        assert run(program, model, chunk, PROMPTS) == expected


def test_a_word_that_does_not_fit_is_an_error(program: Path, tmp_path: Path) -> None:
    model = write(tmp_path / "m.slm", "sentencepiece", "f32")
    error, text = run(program, model, 16, [LONG, "ab a"])
    assert error == "error: not enough memory to encode 16000 bytes of text: give less"
    engine = Engine(model, kernels="scalar")
    assert text == "".join(engine.generate("ab a", temperature=0, max_tokens=30, ignore_eos=True))


# ---- Errors --------------------------------------------------------------------------------------


class Block:
    """Memory at a multiple of 64 bytes plus `shift`.

    Attributes:
        start: its address.
    """

    def __init__(self, size: int, shift: int = 0) -> None:
        self._bytes = ffi.new("uint8_t[]", size + 128)
        self.start = self._bytes + -int(ffi.cast("uintptr_t", self._bytes)) % 64 + shift


def new_session(model: Any, **options: Any) -> Any:
    """Make a session with one slot and one thread.

    Raises:
        UserError: it cannot be made.
    """
    handle = ffi.new("sl_session **")
    given = ffi.new("sl_session_options *", {"threads": 1, "slots": 1, **options})
    check(lib.sl_session_new(handle, model, given))
    return ffi.gc(handle[0], lib.sl_session_free)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write(tmp_path_factory.mktemp("model") / "m.slm", "sentencepiece", "q8")
    handle = ffi.new("sl_model **")
    check(lib.sl_model_open(handle, str(path).encode(), ffi.NULL))
    return ffi.gc(handle[0], lib.sl_model_close)


def bytes_of(model: Any, **options: int) -> int:
    given = ffi.new("sl_session_options *", {"threads": 1, "slots": 1, **options})
    return int(lib.sl_session_bytes(model, given))


def test_memory_that_does_not_fit_is_an_error(model: Any) -> None:
    needed = bytes_of(model)
    block = Block(needed, shift=16)
    message = f"memory_bytes is {needed - 1} and the session needs {needed}: give what "
    with pytest.raises(UserError, match=f"{message}sl_session_bytes returns"):
        new_session(model, memory=block.start + 48, memory_bytes=needed - 1)
    with pytest.raises(UserError, match=r"memory is at address 0x\w+0 and must be at a multiple"):
        new_session(model, memory=block.start, memory_bytes=needed)
    with pytest.raises(UserError, match="memory is NULL and memory_bytes is 64: give both or"):
        new_session(model, memory_bytes=64)


def test_bytes_follow_the_options(model: Any) -> None:
    assert bytes_of(model, slots=2) > bytes_of(model) > bytes_of(model, chunk=8)
    assert bytes_of(model, threads=2) > bytes_of(model)
    assert lib.sl_session_bytes(model, ffi.NULL) >= bytes_of(model)
    assert bytes_of(model, slots=0) == 0
    assert ffi.string(lib.sl_error()).startswith(b"slots is 0 and must be 1 to")


def test_threads_work_in_the_callers_memory(model: Any) -> None:
    needed = bytes_of(model, threads=3)
    block = Block(needed)
    options = {"threads": 3, "memory": block.start, "memory_bytes": needed}
    for _ in range(2):
        session = new_session(model, **options)
        logits = ffi.new("float[]", lib.sl_model_info(model).vocab_size)
        check(lib.sl_logits(session, [5], 1, logits))
        ffi.release(session)
    assert any(logits)
