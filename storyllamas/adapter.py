"""A LoRA adapter: a small file that changes the matrices of one model.

Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) adds alpha / rank * B A to a matrix W, where
A is [rank, columns of W] and B is [rows of W, rank]. The file is a safetensors file of float32
tensors. A matrix NAME.weight of `config.tensor_shapes` has the tensors NAME.lora_a and NAME.lora_b.
The metadata are rank, alpha, targets and base_sha256, the digest of the model's weights before
training. A training without LoRA writes rank 0 and no tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storyllamas.atomic import atomic_file
from storyllamas.errors import UserError
from storyllamas.regular_file import read_regular

Float32 = npt.NDArray[np.float32]

MATRICES = ("attention.qkv", "attention.output", "feed_forward.gate_up", "feed_forward.down")
"""The matrices of a layer, by their names in the model."""

TARGETS = ("attention", "feed_forward", *MATRICES)
"""What an adapter can change: all matrices of a part of the layers, or one of them."""


@dataclass(frozen=True)
class Lora:
    """The hyperparameters of an adapter.

    Attributes:
        rank: rows of A, 1 …
        alpha: the product of B and A is multiplied by alpha / rank.
        targets: some of `TARGETS`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied by."""
        return self.alpha / self.rank

    @property
    def matrices(self) -> list[str]:
        """The matrices of each layer that the adapter changes, some of `MATRICES`."""
        return [
            name for name in MATRICES if {name, name.partition(".")[0]}.intersection(self.targets)
        ]


@dataclass(frozen=True)
class Adapter:
    """The trained adapter of a model.

    Attributes:
        lora: the hyperparameters.
        base_sha256: `weights_sha256` of the model that it changes.
        tensors: A and B of each matrix, by their names in the file.
    """

    lora: Lora
    base_sha256: str
    tensors: Mapping[str, Float32]

    def merge(self, name: str, weight: Float32) -> Float32:
        """Return a tensor of the model, changed if the adapter changes it.

        Args:
            name: its name in `config.tensor_shapes`.
            weight: its values.
        """
        prefix = name.removesuffix(".weight")
        if f"{prefix}.lora_a" not in self.tensors:
            return weight
        # In float64, so that the rounded sum does not depend on the order of additions.
        a, b = (self.tensors[f"{prefix}.lora_{part}"].astype(np.float64) for part in "ab")
        merged: Float32 = (weight + self.lora.scale * (b @ a)).astype(np.float32)
        return merged

    def save(self, path: Path) -> None:
        """Write the file."""
        metadata = {
            "rank": str(self.lora.rank),
            "alpha": repr(self.lora.alpha),
            "targets": ",".join(self.lora.targets),
            "base_sha256": self.base_sha256,
        }
        _save(path, metadata, self.tensors)


def save_empty(path: Path) -> None:
    """Write the file of a training without LoRA."""
    _save(path, {"rank": "0"}, {})


def read(path: Path) -> Adapter:
    """Read an adapter.

    Raises:
        UserError: the file is missing or damaged, is no adapter, or has none.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise UserError(f"adapter {path} does not exist: train one with train.lora_rank") from None
    try:
        metadata, tensors = _parse(data)
        if metadata["rank"] == "0":
            raise UserError(f"{path} is of a training without LoRA: use its model.safetensors")
        targets = tuple(metadata["targets"].split(","))
        lora = Lora(int(metadata["rank"]), float(metadata["alpha"]), targets)
        adapter = Adapter(lora, metadata["base_sha256"], tensors)
        _check(adapter)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged or not an adapter of StoryLlamas{_because(error)}: give an "
            "adapter.safetensors that training wrote"
        ) from None
    return adapter


def _because(error: Exception) -> str:
    """Return what is wrong with the tensors, if the file has a header that can be read."""
    is_readable = type(error) is ValueError and str(error)
    return f" ({error})" if is_readable else ""


def weights_sha256(tensors: Iterable[tuple[str, Float32]]) -> str:
    """Return the SHA-256 of weights, as hexadecimal digits.

    Args:
        tensors: every tensor with its name, in the order of the names.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor, "<f4").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _save(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Float32]) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor, "<f4").tobytes())


def _parse(data: bytes) -> tuple[dict[str, str], dict[str, Float32]]:
    """Return the metadata and the tensors of a safetensors file."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata: dict[str, str] = header.pop("__metadata__")
    tensors: dict[str, Float32] = {}
    end = start
    for name, entry in header.items():
        first, end = (start + offset for offset in entry["data_offsets"])
        shape = tuple(entry["shape"])
        if entry["dtype"] != "F32" or not 0 <= start <= first <= end <= len(data):
            raise ValueError(f"tensor {name} is not float32 or beyond the end of the file")
        if min(shape, default=0) < 0 or end - first != 4 * math.prod(shape):
            raise ValueError(f"tensor {name} has another shape than bytes")
        tensors[name] = np.frombuffer(data[first:end], "<f4").reshape(shape)
    return metadata, tensors


def _check(adapter: Adapter) -> None:
    """Check that each A has its B, and that their shapes and numbers are possible.

    Raises:
        ValueError: they are not.
    """
    if adapter.lora.rank < 1 or not math.isfinite(adapter.lora.alpha) or not adapter.tensors:
        raise ValueError("it has no tensors, or an impossible rank or alpha")
    for name, tensor in adapter.tensors.items():
        prefix, _, kind = name.rpartition(".")
        if kind not in ("lora_a", "lora_b") or tensor.ndim != 2:
            raise ValueError(f"tensor {name} is not a matrix named lora_a or lora_b")
        if f"{prefix}.lora_a" not in adapter.tensors or f"{prefix}.lora_b" not in adapter.tensors:
            raise ValueError(f"{prefix} does not have both lora_a and lora_b")
        if tensor.shape[kind == "lora_b"] != adapter.lora.rank:
            raise ValueError(f"tensor {name} has shape {tensor.shape}, which is not of its rank")
        if not np.isfinite(tensor).all():
            raise ValueError(f"tensor {name} is not finite")
