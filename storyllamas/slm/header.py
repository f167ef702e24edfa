"""The header of a weight file: its first 256 bytes. See weight_file.py."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from storyllamas.config import ROPE_SCALINGS, ModelConfig
from storyllamas.slm.encoding import Encoding, Storage, WeightType
from storyllamas.slm.limits import MAX_CHAT_TEMPLATE, MAX_DIMENSION, MAXIMA
from storyllamas.slm.tiles import ALIGNMENT

MAGIC = b"\x89SLM\r\n\x1a\n"
VERSION = 3
OLDEST_VERSION = 2
"""A file of version 2 has zeros in all fields and flags that version 3 adds."""

HEADER_BYTES = 256

TIED = 1 << 0
DUMMY_PREFIX = 1 << 1
BYTE_FALLBACK = 1 << 2
METASPACE = 1 << 3
PREFIX_FIRST = 1 << 4
FUSE_UNK = 1 << 5
IGNORE_MERGES = 1 << 6
NO_BOS = 1 << 7
FLAGS = (1 << 8) - 1

HEADER = struct.Struct(
    "<"
    "8s"  #   0 magic
    "2I"  #   8 version, header_bytes
    "2Q"  #  16 file_bytes, checksum
    "8I"  #  32 dim, layers, heads, kv_heads, head_dim, hidden, context, vocab_size
    "2f"  #  64 rope_theta, norm_eps
    "2I"  #  72 weight_type (see WeightType), group_size (0 for f32) of the layers' matrices
    "4i"  #  80 unk_id, bos_id, eos_id, pad_id (-1: there is none)
    "I"  #   96 flags (TIED … NO_BOS; the rest zero)
    "I"  #  100 embedding_type, of the embedding and the classifier
    "4Q"  # 104 tokenizer_offset, tokenizer_bytes, tensors_offset, tensors_bytes
    "I"  #  136 embedding_group_size
    "5I"  # 140 tokenizer_kind, pre_tokenizer, strip, merge_count, added_count
    "I"  #  160 rope_scaling, an index of ROPE_SCALINGS
    "3f"  # 164 rope_factor, rope_low_freq_factor, rope_high_freq_factor
    "I"  #  176 rope_original_context
    "I"  #  180 extra_eos_count
    "Q"  #  184 chat_template_bytes, 0 for none
)
CHECKSUM_OFFSET = 24


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
    tokenizer_kind: int
    pre_tokenizer: int
    strip: int
    merge_count: int
    added_count: int
    rope_scaling: int
    rope_factor: float
    rope_low_freq_factor: float
    rope_high_freq_factor: float
    rope_original_context: int
    extra_eos_count: int
    chat_template_bytes: int

    def config(self) -> ModelConfig:
        """Return the model's shape."""
        return ModelConfig(
            *(self.dim, self.layers, self.heads, self.kv_heads, self.head_dim, self.hidden),
            *(self.context, self.vocab_size, self.rope_theta, self.norm_eps),
            tied=bool(self.flags & TIED),
            rope_scaling=ROPE_SCALINGS[self.rope_scaling],
            rope_factor=self.rope_factor,
            rope_low_freq_factor=self.rope_low_freq_factor,
            rope_high_freq_factor=self.rope_high_freq_factor,
            rope_original_context=self.rope_original_context,
        )

    def storage(self) -> Storage:
        """Return how the matrices are stored, if `contradiction` finds none."""
        return Storage(
            layers=Encoding(WeightType(self.weight_type), self.group_size),
            embedding=Encoding(WeightType(self.embedding_type), self.embedding_group_size),
        )

    def contradiction(self) -> str:
        """Return why the header is impossible, or ''; a valid checksum does not rule that out."""
        if any(not 0 < getattr(self, name) <= limit for name, limit in MAXIMA.items()):
            return "a dimension is out of range"
        if self.heads * self.head_dim > MAX_DIMENSION:
            return "heads times head_dim is out of range"
        if not (0 < self.rope_theta < math.inf and 0 <= self.norm_eps < math.inf):
            return "its rope_theta or norm_eps is out of range"
        if self.heads % self.kv_heads or self.head_dim % 2:
            return "its kv_heads does not divide its heads, or its head_dim is odd"
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
        if self.flags & ~FLAGS:
            return "it has an unknown flag"
        new_fields = self[self._fields.index("tokenizer_kind") :]
        if self.version == OLDEST_VERSION and (self.flags >= METASPACE or any(new_fields)):
            return "its version is 2 and it has fields of version 3"
        if self.rope_scaling >= len(ROPE_SCALINGS):
            return "its rope_scaling is unknown"
        if self.config().rope_problem:
            return self.config().rope_problem
        if self.chat_template_bytes > MAX_CHAT_TEMPLATE:
            return "its chat template is too long"
        if self.layers * ALIGNMENT > self.file_bytes:
            return "it has fewer bytes than layers"
        return ""
