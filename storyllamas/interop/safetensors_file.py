"""Safetensors files, read and written one tensor at a time.

Reading is the safetensors package's; its writer would hold all tensors at once.
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
from storyllamas.slm.quantize import Float32


class TensorFiles:
    """The tensors of one or several files.

    Attributes:
        shapes: shape of every tensor by name.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Open files; `UserError` if one is missing, damaged or cut short."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Any] = {}
        for path in paths:
            try:
                file: Any = safetensors.safe_open(path, framework="pt")
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(f"{path} is missing, damaged or cut short: {error}") from None
            for name in file.keys():  # noqa: SIM118, a file is no mapping
                self._files[name] = file
                self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> Float32:
        """A tensor as float32."""
        value: Float32 = self._files[name].get_tensor(name).float().numpy()
        return value


def blocks(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Float32]
) -> Iterator[bytes]:
    """The bytes of a file of float32 tensors, each read when its turn comes."""
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
