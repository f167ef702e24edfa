"""The C engine on a weight file that is already in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_files
import numpy as np
import pytest
from engine_files import small_config

from storyllamas.engine.engine import Engine
from storyllamas.engine.ffi import check, ffi, lib, string
from storyllamas.errors import UserError

ALIGNMENT = 64


@pytest.fixture(scope="module", params=["f32", "q8", "q4"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(dim=32, hidden=64)
    path = tmp_path_factory.mktemp("model") / "m.slm"
    tensors = engine_files.random_tensors(config)
    return engine_files.write(path, config, tensors, None, request.param)


class Memory:
    """Bytes of a file at a multiple of 64 bytes plus `shift`, between other bytes.

    Attributes:
        data: the address of the bytes.
        bytes: their number.
    """

    def __init__(self, content: bytes, shift: int = 0) -> None:
        self._block = ffi.new("uint8_t[]", b"\xff" * (len(content) + 3 * ALIGNMENT))
        before = -int(ffi.cast("uintptr_t", self._block)) % ALIGNMENT
        self.data = self._block + before + shift
        self.bytes = len(content)
        ffi.memmove(self.data, content, len(content))

    def content(self) -> bytes:
        return bytes(ffi.buffer(self.data, self.bytes))


def open_memory(memory: Memory, **options: Any) -> Any:
    """Open the file in memory; the model is closed when it is garbage.

    Raises:
        UserError: the file cannot be opened.
    """
    handle = ffi.new("sl_model **")
    opening = ffi.new("sl_model_options *", options)
    check(lib.sl_model_open_memory(handle, memory.data, memory.bytes, opening))
    return ffi.gc(handle[0], lib.sl_model_close)


def new_session(model: Any) -> Any:
    handle = ffi.new("sl_session **")
    check(lib.sl_session_new(handle, model, ffi.NULL))
    return ffi.gc(handle[0], lib.sl_session_free)


def logits(model: Any, ids: list[int]) -> Any:
    session = new_session(model)
    result = np.empty((len(ids), lib.sl_model_info(model).vocab_size), np.float32)
    check(lib.sl_logits(session, ids, len(ids), ffi.from_buffer("float[]", result)))
    ffi.release(session)
    return result


def generate(model: Any, prompt: bytes) -> str:
    """Return the greedy text of 40 tokens."""
    session, piece, text = new_session(model), ffi.new("sl_piece *"), b""
    options = ffi.new("sl_options *", lib.sl_defaults())
    options.temperature, options.max_tokens, options.ignore_eos = 0, 40, 1
    check(lib.sl_start(session, prompt, len(prompt), options))
    while not piece.stop:
        check(lib.sl_next(session, piece))
        text += bytes(ffi.buffer(piece.text, piece.length))
    ffi.release(session)
    return text.decode()


def test_the_model_is_that_of_the_file(file: Path) -> None:
    engine, memory = Engine(file), Memory(file.read_bytes())
    model = open_memory(memory)
    assert (logits(model, [1, 5, 260, 9]) == engine.logits([1, 5, 260, 9])).all()
    story = engine.generate("ab a", temperature=0, max_tokens=40, ignore_eos=True)
    assert generate(model, b"ab a") == "".join(story)
    assert lib.sl_model_info(model).file_bytes == memory.bytes
    ffi.release(model)
    assert memory.content() == file.read_bytes()


def test_the_file_is_used_in_place(file: Path) -> None:
    memory = Memory(file.read_bytes())
    model = open_memory(memory)
    before = logits(model, [1, 5])
    zeros = bytes(memory.bytes // 2 // ALIGNMENT * ALIGNMENT)
    ffi.memmove(memory.data + memory.bytes - len(zeros), zeros, len(zeros))
    assert not (logits(model, [1, 5]) == before).all()


def test_a_large_file_is_never_moved(tmp_path: Path) -> None:
    """A mapped file of this size moves to huge pages after a few tokens."""
    config = small_config(dim=64, hidden=4096, layers=3, vocab_size=300)
    path = engine_files.write(tmp_path / "m.slm", config, engine_files.random_tensors(config))
    assert path.stat().st_size > 1 << 23
    memory = Memory(path.read_bytes())
    model = open_memory(memory)
    text = generate(model, b"a")
    assert text == "".join(
        Engine(path).generate("a", temperature=0, max_tokens=40, ignore_eos=True)
    )
    ffi.release(model)
    assert memory.content() == path.read_bytes()


def test_what_is_no_whole_file_is_an_error(file: Path) -> None:
    good = file.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    for content, message in [
        (b"", "weight file data is empty: export it again"),
        (good[:5], "data is not a StoryLlamas weight file: give one that export wrote"),
        (good[:100], "weight file data is cut short: it has 100 bytes and a header has 256"),
        (good[:-64], f"weight file data is {len(good) - 64} bytes long and its header says"),
        (bytes(damaged), "weight file data is damaged: its checksum does not match"),
    ]:
        handle = ffi.new("sl_model **")
        memory = Memory(content)
        status = lib.sl_model_open_memory(handle, memory.data, memory.bytes, ffi.NULL)
        assert (status, handle[0]) == (lib.SL_ERROR_FORMAT, ffi.NULL)
        assert string(lib.sl_error()).startswith(message)


@pytest.mark.parametrize("shift", [1, 4, 32, 63])
def test_data_that_are_not_aligned_are_an_error(file: Path, shift: int) -> None:
    memory, handle = Memory(file.read_bytes(), shift), ffi.new("sl_model **")
    status = lib.sl_model_open_memory(handle, memory.data, memory.bytes, ffi.NULL)
    assert (status, handle[0]) == (lib.SL_ERROR_ARGUMENT, ffi.NULL)
    assert "and must be at a multiple of 64: align it" in string(lib.sl_error())


def test_arguments_out_of_range(file: Path) -> None:
    memory, handle = Memory(file.read_bytes()), ffi.new("sl_model **")
    status = lib.sl_model_open_memory(handle, ffi.NULL, 64, ffi.NULL)
    assert status == lib.SL_ERROR_ARGUMENT
    for pages in (lib.SL_PAGES_HUGE, -1):
        with pytest.raises(UserError, match=f"pages is {pages} and a file in memory is used in"):
            open_memory(memory, pages=pages)
    with pytest.raises(UserError, match='this processor has no kernels "no"'):
        open_memory(memory, kernels=ffi.new("char[]", b"no"))
    open_memory(memory, pages=lib.SL_PAGES_SHARED)
