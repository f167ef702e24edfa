"""Readers of files reject pipes, folders and devices instead of waiting for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storyllamas import params, token_file, tokenizer
from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.interop.formats import open_external
from storyllamas.interop.model import open_model
from storyllamas.regular_file import open_regular
from storyllamas.slm import weight_file

READERS = [
    Engine,
    weight_file.read,
    token_file.read,
    tokenizer.load,
    params.load,
    open_model,
    open_external,
]
IDS = ["Engine", "weight_file", "token_file", "tokenizer", "params", "open_model", "open_external"]


@pytest.mark.parametrize("read", READERS, ids=IDS)
def test_a_pipe_is_rejected_at_once(tmp_path: Path, read: Callable[[Path], object]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=f"{pipe} is (a pipe|not a regular file): give the path"):
        read(pipe)


@pytest.mark.parametrize("read", READERS, ids=IDS)
def test_a_device_is_rejected(read: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match=r"/dev/null is (a device|not a regular file): give the"):
        read(Path("/dev/null"))


@pytest.mark.parametrize("read", READERS[:5], ids=IDS[:5])
def test_a_folder_is_rejected(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is (a folder|not a regular file): give the"):
        read(tmp_path)


@pytest.mark.parametrize("read", READERS, ids=IDS)
def test_a_path_with_a_null_byte_is_rejected(tmp_path: Path, read: Callable[[str], object]) -> None:
    """C would open the file whose name ends before it."""
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(UserError, match=r"the path '.*a\\x00b' contains a NUL byte"):
        read(f"{tmp_path}/a\0b" if read is not open_external else Path(f"{tmp_path}/a\0b"))


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"x"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_kernels_with_a_null_byte_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"kernels is 'scalar\\x00x' and must be one of .*scalar"):
        Engine(tmp_path / "none", kernels="scalar\0x")
