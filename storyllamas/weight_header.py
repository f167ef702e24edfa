"""The first 256 bytes of a weight file, and the checksum of all of it. See weights.py."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.tiles import ALIGNMENT, GROUP_MULTIPLES, LARGEST_GROUP, Encoding, WeightType

MAGIC = b"\x89SLM\r\n\x1a\n"
VERSION = 2
HEADER_BYTES = 256

TIED = 1 << 0
DUMMY_PREFIX = 1 << 1
BYTE_FALLBACK = 1 << 2

HEADER = struct.Struct(
    "<"
    "8s"  #   0 magic
    "2I"  #   8 version, header_bytes
    "2Q"  #  16 file_bytes, checksum
    "8I"  #  32 dim, layers, heads, kv_heads, head_dim, hidden, context, vocab_size
    "2f"  #  64 rope_theta, norm_eps
    "2I"  #  72 weight_type (see WeightType), group_size (0 for f32) of the layers' matrices
    "4i"  #  80 unk_id, bos_id, eos_id, pad_id (-1: there is none)
    "I"  #   96 flags (TIED, DUMMY_PREFIX, BYTE_FALLBACK; the rest zero)
    "I"  #  100 embedding_type, of the embedding and the classifier
    "4Q"  # 104 tokenizer_offset, tokenizer_bytes, tensors_offset, tensors_bytes
    "I"  #  136 embedding_group_size
)
CHECKSUM_OFFSET = 24
LARGEST_DIMENSION = 1 << 20
LARGEST_CONTEXT = 1 << 17


class Storage(NamedTuple):
    """How a weight file stores its matrices.

    Attributes:
        layers: those of the layers.
        embedding: the embedding and the classifier.
    """

    layers: Encoding
    embedding: Encoding

    def of(self, name: str) -> Encoding:
        """How the tensor of that name is stored, if it is a matrix."""
        return self.layers if name.startswith("layers.") else self.embedding

    def check(self) -> None:
        """Refuse what no file can hold.

        Raises:
            UserError: a group size is impossible, or only some matrices are in f32.
        """
        if (self.layers.type == WeightType.F32) != (self.embedding.type == WeightType.F32):
            raise UserError(
                f"the layers are {self.layers.type.name.lower()} and the embedding is "
                f"{self.embedding.type.name.lower()}: store both in f32 or none"
            )
        for encoding in self:
            if encoding.is_possible:
                continue
            multiple = GROUP_MULTIPLES.get(encoding.type)
            allowed = f"a multiple of {multiple} up to {LARGEST_GROUP}" if multiple else "0"
            raise UserError(
                f"the group size of {encoding.type.name.lower()} is {encoding.group_size}: "
                f"use {allowed}"
            )


GROUP_SIZES = {"f32": 0, "q8": 128, "q4": 64}
"""Columns that share a scale unless somebody says otherwise."""


def storage(name: str, group_sizes: Mapping[str, int] = GROUP_SIZES) -> Storage:
    """How a file of a weight type stores its matrices: all of them alike.

    Args:
        name: of a `WeightType`, in lower case.
        group_sizes: for each type by name; where one is missing, that of `GROUP_SIZES`.
    """
    size = (GROUP_SIZES | dict(group_sizes))[name]
    encoding = Encoding(WeightType[name.upper()], size)
    return Storage(encoding, encoding)


F32 = storage("f32")


class Header(NamedTuple):
    """The fields of `HEADER` by name."""

    magic: bytes
    version: int
    header_bytes: int
    file_bytes: int
    checksum: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    context: int
    vocab_size: int
    rope_theta: float
    norm_eps: float
    weight_type: int
    group_size: int
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    flags: int
    embedding_type: int
    tokenizer_offset: int
    tokenizer_bytes: int
    tensors_offset: int
    tensors_bytes: int
    embedding_group_size: int

    def config(self) -> ModelConfig:
        """The model's shape."""
        return ModelConfig(
            *(self.dim, self.layers, self.heads, self.kv_heads, self.head_dim, self.hidden),
            *(self.context, self.vocab_size, self.rope_theta, self.norm_eps),
            tied=bool(self.flags & TIED),
        )

    def storage(self) -> Storage:
        """How the matrices are stored, if there is no contradiction."""
        return Storage(
            layers=Encoding(WeightType(self.weight_type), self.group_size),
            embedding=Encoding(WeightType(self.embedding_type), self.embedding_group_size),
        )

    def contradiction(self) -> str:
        """What in it cannot be, or nothing; a checksum holds for any header that was made up."""
        shape = self[5:13]
        if min(shape) < 1 or max(shape) > LARGEST_DIMENSION or self.context > LARGEST_CONTEXT:
            return "a dimension is out of range"
        if not (0 < self.rope_theta < math.inf and 0 <= self.norm_eps < math.inf):
            return "its rope_theta or norm_eps is out of range"
        if self.heads % self.kv_heads or self.head_dim % 2:
            return "its heads do not fit together"
        for number, group_size in (
            (self.weight_type, self.group_size),
            (self.embedding_type, self.embedding_group_size),
        ):
            if number not in list(WeightType):
                return f"it has no weight type {number}"
            if not Encoding(WeightType(number), group_size).is_possible:
                return f"its group size is {group_size}"
        if (self.weight_type == WeightType.F32) != (self.embedding_type == WeightType.F32):
            return "only one of its weight types is f32"
        if self.flags & ~(TIED | DUMMY_PREFIX | BYTE_FALLBACK):
            return "it has an unknown flag"
        if self.layers * ALIGNMENT > self.file_bytes:
            return "it has fewer bytes than layers"
        return ""


class Checksum:
    """Fletcher's checksum in eight 64-bit lanes, folded by multiplying and shifting.

    Word i of the data (u64, little-endian) goes to lane i mod 8, where a += word and then b += a,
    both modulo 2^64. The digest starts at h = FOLD_START and folds a and b of lane 0, then of lane
    1, …: h = (h ^ x) * FOLD_FACTOR modulo 2^64, then h ^= h >> 32.
    Additions only, so that it runs at the speed of memory in C and in NumPy.
    """

    LANES = 8
    FOLD_START = 0xCBF29CE484222325
    FOLD_FACTOR = 0x100000001B3

    def __init__(self) -> None:
        self._a = np.zeros(self.LANES, np.uint64)
        self._b = np.zeros(self.LANES, np.uint64)

    def update(self, data: bytes | memoryview) -> None:
        """Add data; its length is a multiple of 64 bytes."""
        words = np.frombuffer(data, "<u8").reshape(-1, self.LANES)
        for start in range(0, len(words), 1 << 16):
            block = words[start : start + (1 << 16)]
            count = len(block)
            weight = np.arange(count, 0, -1, dtype=np.uint64)[:, None]
            self._b += np.uint64(count) * self._a + (weight * block).sum(0, dtype=np.uint64)
            self._a += block.sum(0, dtype=np.uint64)

    def digest(self) -> int:
        """The 64-bit checksum of everything added so far."""
        value = self.FOLD_START
        for a, b in zip(self._a.tolist(), self._b.tolist(), strict=True):
            for part in (a, b):
                value = ((value ^ part) * self.FOLD_FACTOR) % (1 << 64)
                value ^= value >> 32
        return value
