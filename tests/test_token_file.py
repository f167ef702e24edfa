"""The token file's bytes, its checks, and the batches drawn from it."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyllamas import token_file
from storyllamas.errors import UserError
from storyllamas.slm.checksum import Checksum
from storyllamas.token_file import TokenFile

DIGEST = bytes(range(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a token file of two stories."""
    path = tmp_path / "train.bin"
    with token_file.write(path, 4096, DIGEST) as writer:
        writer.append(np.array([1, 300, 4095, 2], np.uint16), stories=1, text_bytes=9)
        writer.append(np.array([1, 301, 2], np.uint16), stories=1, text_bytes=5)
    return path


def numbered(length: int) -> TokenFile:
    """Return a file in which each token is its own position."""
    return TokenFile(Path("numbered"), np.arange(length, dtype=np.uint16), 65536, 1, 1, DIGEST)


def test_layout(path: Path) -> None:
    data = path.read_bytes()
    header = struct.pack("<8sIIQQQ32s", b"\x89STK\r\n\x1a\n", 2, 4096, 7, 2, 14, DIGEST)
    tokens = struct.pack("<7H", 1, 300, 4095, 2, 1, 301, 2).ljust(64, b"\0")
    checksum = Checksum()
    checksum.update(tokens + header.ljust(128, b"\0"))
    assert data == (header + struct.pack("<Q", checksum.digest())).ljust(128, b"\0") + tokens


def test_any_changed_byte_is_an_error(path: Path) -> None:
    data = path.read_bytes()
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises(UserError, match=str(path)):
            token_file.read(path, DIGEST)


def test_tokens_beyond_the_vocabulary_are_rejected(path: Path) -> None:
    with (
        pytest.raises(UserError, match="token 4096 is not in the vocabulary of 4096 pieces"),
        token_file.write(path, 4096, DIGEST) as writer,
    ):
        writer.append(np.array([1, 4096, 2], np.uint16), stories=1, text_bytes=1)
    data = bytearray(path.read_bytes())
    data[12:16] = struct.pack("<I", 4095)
    data[72:80] = bytes(8)
    checksum = Checksum()
    checksum.update(data[128:] + data[:128])
    data[72:80] = struct.pack("<Q", checksum.digest())
    path.write_bytes(data)
    with pytest.raises(UserError, match="has token 4095 and a vocabulary of 4095 pieces"):
        token_file.read(path, DIGEST)


@given(st.lists(st.integers(0, 200), max_size=6))
def test_parts_of_any_length_make_the_same_file(lengths: list[int]) -> None:
    tokens = np.arange(sum(lengths), dtype=np.uint16) % 4096
    with tempfile.TemporaryDirectory() as folder:
        parts, whole = Path(folder, "parts"), Path(folder, "whole")
        with token_file.write(parts, 4096, DIGEST) as writer:
            for part in np.split(tokens, np.cumsum(lengths)[:-1]):
                writer.append(part, stories=1, text_bytes=0)
        with token_file.write(whole, 4096, DIGEST) as writer:
            writer.append(tokens, stories=max(len(lengths), 1), text_bytes=0)
        assert parts.read_bytes() == whole.read_bytes()
        if sum(lengths):
            assert token_file.read(parts).tokens.tolist() == tokens.tolist()


def test_reading_gives_back_what_was_written(path: Path) -> None:
    file = token_file.read(path, DIGEST)
    assert file.tokens.tolist() == [1, 300, 4095, 2, 1, 301, 2]
    assert (file.vocab_size, file.stories, file.text_bytes) == (4096, 2, 14)
    assert file.digest == DIGEST
    assert not file.tokens.flags.writeable


def test_a_write_that_fails_leaves_the_former_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(AttributeError), token_file.write(path, 4096, DIGEST) as writer:
        writer.append([1, 2, 3], stories=1, text_bytes=1)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "not a token file"),
        (lambda data: data[:127], "not a token file"),
        (lambda data: b"X" + data[1:], "not a token file"),
        (lambda data: data[:8] + b"\1" + data[9:], "has version 1"),
        (lambda data: data[:-1], "191 bytes long and its header says 192"),
        (lambda data: data + b"\0\0", "194 bytes long and its header says 192"),
        (lambda data: data[:40] + b"X" + data[41:], "made with another tokenizer"),
        (lambda data: data[:16] + bytes(8) + data[24:128], "has no tokens"),
    ],
)
def test_a_file_that_is_not_right_is_rejected(path: Path, damage: object, words: str) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=words) as caught:
        token_file.read(path, DIGEST)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist: run `dvc repro pretokenize`"):
        token_file.read(tmp_path / "train.bin")


shapes = st.tuples(st.integers(1, 20), st.integers(0, 300)).map(lambda s: (s[0], s[0] + 1 + s[1]))
seeds = st.integers(0, 2**32 - 1)


@given(shape=shapes, seed=seeds, epoch=st.integers(0, 3))
def test_an_epoch_predicts_each_token_once(shape: tuple[int, int], seed: int, epoch: int) -> None:
    context, length = shape
    file = numbered(length)
    windows = max(1, (length - context) // context)
    inputs, targets = file.batch(epoch, windows, context, seed)
    assert inputs.shape == targets.shape == (windows, context)
    assert inputs.dtype == targets.dtype == np.int64
    assert (targets == inputs + 1).all()
    assert (np.diff(inputs, axis=1) == 1).all()
    predicted = np.sort(targets.ravel())
    assert (np.diff(predicted) == 1).all()
    assert predicted[-1] < length
    assert len(predicted) > length - 2 * context - 1


@given(shape=shapes, seed=seeds, sequences=st.integers(1, 50), step=st.integers(0, 20))
def test_a_batch_is_its_part_of_one_endless_order(
    shape: tuple[int, int], seed: int, sequences: int, step: int
) -> None:
    context, length = shape
    inputs, _ = numbered(length).batch(step, sequences, context, seed)
    one_by_one = [
        numbered(length).batch(step * sequences + i, 1, context, seed)[0][0]
        for i in range(sequences)
    ]
    assert inputs.tolist() == np.array(one_by_one).tolist()


def test_orders_differ_between_seeds_and_epochs_in_order_and_offset() -> None:
    file = numbered(50_000)
    windows = (50_000 - 64) // 64
    starts = [
        file.batch(epoch, windows, 64, seed)[0][:, 0] for seed in (1, 2) for epoch in (0, 1, 2)
    ]
    assert len({tuple(np.argsort(order)) for order in starts}) == 6
    assert len({min(order) for order in starts}) > 3
    middle = np.mean([order[: windows // 2].mean() for order in starts])
    assert abs(middle / 25_000 - 1) < 0.05


def test_order_is_the_same_on_every_machine() -> None:
    inputs, _ = numbered(1000).batch(0, 6, 100, 7)
    assert inputs[:, 0].tolist() == [543, 243, 343, 843, 143, 743]


def test_first_windows_are_adjacent() -> None:
    inputs, targets = numbered(100).first_windows(3, 20)
    assert inputs.tolist() == np.arange(60).reshape(3, 20).tolist()
    assert (targets == inputs + 1).all()
    assert len(numbered(100).first_windows(9, 20)[0]) == 4
    assert len(numbered(101).first_windows(9, 20)[0]) == 5


def test_a_file_shorter_than_a_window_is_rejected() -> None:
    assert numbered(21).batch(0, 1, 20, 1)[0].shape == (1, 20)
    for draw in (
        lambda: numbered(20).batch(0, 1, 20, 1),
        lambda: numbered(20).first_windows(1, 20),
    ):
        with pytest.raises(UserError, match="numbered has 20 tokens, fewer than one window"):
            draw()
