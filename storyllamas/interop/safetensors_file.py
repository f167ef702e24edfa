"""Safetensors files, read and written one tensor at a time.

The safetensors package reads them; its writer would hold all tensors at once.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors

from storyllamas.errors import UserError
from storyllamas.regular_file import open_regular
from storyllamas.slm.quantize import Float32

TYPES = ("F64", "F32", "F16", "BF16")
"""The types of tensors that are weights; a tensor of integers needs scales."""


class TensorFiles:
    """The tensors of one or more files.

    Attributes:
        shapes: shape of every tensor by its name.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Open the files.

        Raises:
            UserError: a file is missing, damaged or cut short.
        """
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        for path in paths:
            try:
                open_regular(path).close()
                file: Any = safetensors.safe_open(path, framework="pt")
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(f"{path} is missing, damaged or cut short: {error}") from None
            for name in file.keys():  # noqa: SIM118, a file is no mapping
                self._files[name] = file
                self._paths[name] = path
                self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str, rows: slice = slice(None)) -> Float32:
        """Read a tensor, or some of its rows, by its name, converted to float32.

        Raises:
            UserError: its type is not one of `TYPES`.
        """
        stored = self._files[name].get_slice(name)
        if stored.get_dtype() not in TYPES:
            raise UserError(
                f"tensor {name} in {self._paths[name]} has type {stored.get_dtype()}: only "
                f"{', '.join(TYPES)} can be read"
            )
        value: Float32 = stored[rows].float().numpy()
        return value


def blocks(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Float32]
) -> Iterator[bytes]:
    """Yield the bytes of a file of float32 tensors; each tensor is read just before it is yielded.

    Args:
        shapes: shape of each tensor by name, in the order of the file.
        read: reads a tensor by its name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in shapes:
        yield read(name).astype("<f4").tobytes()
