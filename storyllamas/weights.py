"""The flat weight file (`.slm`): one file holds a model's shape, its tokenizer and its weights.

Everything is little-endian and laid out as the C engine's kernels read it, so that the engine maps
the file and starts. Layout, version 1:

    header      256 bytes, see `HEADER`; bytes that no field names are zero
    tokenizer   f32 scores[vocab_size]; u32 offsets[vocab_size + 1]; u8 types[vocab_size];
                u8 text[offsets[vocab_size]]: piece i is text[offsets[i] : offsets[i + 1]], in UTF-8
                with U+2581 for a space; types as SentencePiece numbers them, see `PieceType`
    tensors     in the order of `tensor_shapes`

The tokenizer section and every tensor start at a multiple of 64 bytes, and the file ends at one;
the gaps are zero. A vector (an RMSNorm weight) is plain f32. A matrix of R rows and C columns maps
C inputs to R outputs and is cut into tiles of 16 rows, R padded up with zero rows:

    f32   [tile][column][16 rows]                           f32
    q8    [tile][group] { f32 scale[16 rows];
                          u8  [group_size / 4][16 rows][4 columns] }

q8 is symmetric: weight = scale * (byte - 128), byte in 1…255, scale = max|weight| / 127 of the
row's group. Columns are padded up to a multiple of group_size with zero weights (byte 128).

The query, key and value matrices are stacked in that order into one (`attention.qkv`), and gate
and up into one (`feed_forward.gate_up`). Rotary positions turn neighbouring pairs (2i, 2i + 1) of
a head, as in Meta's release.

The checksum is `Checksum` over the whole file with the checksum field itself taken as zero.

Version rule: a reader refuses every version but its own. Whatever changes a single byte's meaning
raises the version.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from storyllamas.atomic import atomic_file
from storyllamas.config import ModelConfig
from storyllamas.errors import UserError

MAGIC = b"\x89SLM\r\n\x1a\n"
VERSION = 1
HEADER_BYTES = 256
ALIGNMENT = 64
TILE_ROWS = 16
TILE_COLUMNS = 4

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
    "2I"  #  72 weight_type (see WeightType), group_size (0 for f32)
    "4i"  #  80 unk_id, bos_id, eos_id, pad_id (-1: there is none)
    "2I"  #  96 flags (TIED, DUMMY_PREFIX, BYTE_FALLBACK; the rest zero), zero
    "4Q"  # 104 tokenizer_offset, tokenizer_bytes, tensors_offset, tensors_bytes
)
CHECKSUM_OFFSET = 24

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class WeightType(IntEnum):
    """How a matrix is stored; the number in the header."""

    F32 = 0
    Q8 = 1


class PieceType(IntEnum):
    """What a tokenizer piece is, numbered as in SentencePiece's model file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece BPE tokenizer, as far as encoding and decoding need it.

    Attributes:
        pieces: UTF-8 text of each id, U+2581 for a space; a byte piece is written `<0xNN>`.
        scores: merge priority of each id; the highest merges first.
        types: a `PieceType` for each id.
        unk_id: the unknown piece, or -1.
        bos_id: the piece that begins a story, or -1.
        eos_id: the piece that ends a story, or -1.
        pad_id: the padding piece, or -1.
        dummy_prefix: a space is put before the text.
        byte_fallback: a character that no piece covers becomes its UTF-8 bytes.
    """

    pieces: list[bytes]
    scores: Float32
    types: npt.NDArray[np.uint8]
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    dummy_prefix: bool = True
    byte_fallback: bool = True


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


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, in the order of the file; the names are `Llama`'s."""
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocab_size, config.dim)}
    for layer in range(config.layers):
        prefix = f"layers.{layer}."
        shapes |= {
            prefix + "attention_norm.weight": (config.dim,),
            prefix + "attention.qkv.weight": (config.qkv_rows, config.dim),
            prefix + "attention.output.weight": (config.dim, config.heads * config.head_dim),
            prefix + "feed_forward_norm.weight": (config.dim,),
            prefix + "feed_forward.gate_up.weight": (2 * config.hidden, config.dim),
            prefix + "feed_forward.down.weight": (config.dim, config.hidden),
        }
    shapes["norm.weight"] = (config.dim,)
    if not config.tied:
        shapes["classifier.weight"] = (config.vocab_size, config.dim)
    return shapes


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def tensor_bytes(shape: tuple[int, ...], weight_type: WeightType, group_size: int) -> int:
    """Bytes that a tensor takes in the file, without the padding after it."""
    if len(shape) == 1:
        return 4 * shape[0]
    rows, columns = _round_up(shape[0], TILE_ROWS), shape[1]
    if weight_type == WeightType.F32:
        return 4 * rows * columns
    groups = _round_up(columns, group_size) // group_size
    return rows * groups * (4 + group_size)


def quantize(weight: Float32, group_size: int) -> tuple[Float32, npt.NDArray[np.int8]]:
    """Round a matrix to symmetric 8-bit groups along its columns.

    Args:
        weight: [rows, columns], columns a multiple of group_size.
        group_size: columns that share a scale.

    Returns:
        scales [rows, groups] and integers in -127…127 [rows, groups, group_size].
    """
    grouped = weight.reshape(weight.shape[0], -1, group_size)
    scales = np.abs(grouped).max(axis=2).astype(np.float32) / np.float32(127)
    divisor = np.where(scales > 0, scales, np.float32(1))
    integers = np.rint(grouped / divisor[:, :, None])
    return scales, np.clip(integers, -127, 127).astype(np.int8)


def _pack_q8(padded: Float32, group_size: int) -> bytes:
    tiles = len(padded) // TILE_ROWS
    scales, integers = quantize(padded, group_size)
    groups = scales.shape[1]
    packed = np.empty((tiles, groups, TILE_ROWS * (4 + group_size)), np.uint8)
    tile_scales = scales.reshape(tiles, TILE_ROWS, groups).transpose(0, 2, 1)
    packed[:, :, : 4 * TILE_ROWS] = np.ascontiguousarray(tile_scales, "<f4").view(np.uint8)
    biased = (integers.astype(np.int16) + 128).astype(np.uint8)
    blocks = biased.reshape(tiles, TILE_ROWS, groups, group_size // TILE_COLUMNS, TILE_COLUMNS)
    packed[:, :, 4 * TILE_ROWS :] = blocks.transpose(0, 2, 3, 1, 4).reshape(tiles, groups, -1)
    return packed.tobytes()


def _unpack_q8(packed: Array, rows: int, columns: int, group_size: int) -> Float32:
    tiles = _round_up(rows, TILE_ROWS) // TILE_ROWS
    groups = _round_up(columns, group_size) // group_size
    packed = packed.reshape(tiles, groups, TILE_ROWS * (4 + group_size))
    scales = np.ascontiguousarray(packed[:, :, : 4 * TILE_ROWS]).view("<f4")
    shape = (tiles, groups, group_size // TILE_COLUMNS, TILE_ROWS, TILE_COLUMNS)
    integers = packed[:, :, 4 * TILE_ROWS :].reshape(shape).astype(np.float32) - np.float32(128)
    weight = (integers * scales[:, :, None, :, None]).transpose(0, 3, 1, 2, 4)
    return np.ascontiguousarray(weight.reshape(tiles * TILE_ROWS, -1)[:rows, :columns])


def pack(tensor: Float32, weight_type: WeightType, group_size: int) -> bytes:
    """The bytes of a vector or matrix as the file stores it."""
    if tensor.ndim == 1:
        return tensor.astype("<f4").tobytes()
    rows, columns = tensor.shape
    multiple = 1 if weight_type == WeightType.F32 else group_size
    padding = ((0, -rows % TILE_ROWS), (0, -columns % multiple))
    padded = np.pad(tensor.astype(np.float32), padding)
    if weight_type == WeightType.F32:
        tiles = padded.reshape(-1, TILE_ROWS, columns).transpose(0, 2, 1)
        return np.ascontiguousarray(tiles, "<f4").tobytes()
    return _pack_q8(padded, group_size)


def unpack(
    packed: Array, shape: tuple[int, ...], weight_type: WeightType, group_size: int
) -> Float32:
    """The float32 tensor of `shape` in the bytes (a u8 array) that `pack` made."""
    if len(shape) == 1:
        return packed.view("<f4").astype(np.float32)
    rows, columns = shape
    if weight_type == WeightType.F32:
        tiles = packed.view("<f4").reshape(-1, columns, TILE_ROWS).transpose(0, 2, 1)
        return np.ascontiguousarray(tiles.reshape(-1, columns)[:rows], np.float32)
    return _unpack_q8(packed, rows, columns, group_size)


def _tokenizer_section(vocabulary: Vocabulary) -> bytes:
    offsets = np.cumsum([0] + [len(piece) for piece in vocabulary.pieces], dtype=np.uint32)
    return b"".join(
        [
            vocabulary.scores.astype("<f4").tobytes(),
            offsets.astype("<u4").tobytes(),
            vocabulary.types.astype(np.uint8).tobytes(),
            *vocabulary.pieces,
        ]
    )


class _Writer:
    """Writes sections, each padded to the alignment, and sums them up."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._checksum = Checksum()

    def section(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % ALIGNMENT)
        self._checksum.update(padded)
        self._file.write(padded)

    def finish(self) -> None:
        self._file.seek(CHECKSUM_OFFSET)
        self._file.write(struct.pack("<Q", self._checksum.digest()))


def write(
    path: str | os.PathLike[str],
    config: ModelConfig,
    vocabulary: Vocabulary,
    tensor: Callable[[str], Float32],
    weight_type: WeightType = WeightType.F32,
    group_size: int = 64,
) -> None:
    """Write a weight file, one tensor in memory at a time; the file appears only when whole.

    Args:
        path: the file.
        config: the model's shape.
        vocabulary: its tokenizer, of `config.vocab_size` pieces.
        tensor: gives the float32 tensor of a name in `tensor_shapes`.
        weight_type: how matrices are stored.
        group_size: columns that share a scale, a multiple of 4; without meaning for f32.

    Raises:
        UserError: a tensor or the tokenizer does not have the shape that `config` says, or a
            weight is not finite.
    """
    if len(vocabulary.pieces) != config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(vocabulary.pieces)} pieces but the model's vocab_size is "
            f"{config.vocab_size}: export a model with the tokenizer that it was trained with"
        )
    if weight_type == WeightType.F32:
        group_size = 0
    elif group_size <= 0 or group_size % TILE_COLUMNS:
        raise UserError(f"group_size is {group_size}: use a positive multiple of {TILE_COLUMNS}")
    shapes = tensor_shapes(config)
    tokenizer = _tokenizer_section(vocabulary)
    tensors_offset = HEADER_BYTES + _round_up(len(tokenizer), ALIGNMENT)
    tensors_bytes = sum(
        _round_up(tensor_bytes(shape, weight_type, group_size), ALIGNMENT)
        for shape in shapes.values()
    )
    flags = (
        TIED * config.tied
        | DUMMY_PREFIX * vocabulary.dummy_prefix
        | BYTE_FALLBACK * vocabulary.byte_fallback
    )
    header = HEADER.pack(
        *(MAGIC, VERSION, HEADER_BYTES, tensors_offset + tensors_bytes, 0),
        *(config.dim, config.layers, config.heads, config.kv_heads, config.head_dim),
        *(config.hidden, config.context, config.vocab_size, config.rope_theta, config.norm_eps),
        *(weight_type, group_size),
        *(vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id),
        *(flags, 0, HEADER_BYTES, len(tokenizer), tensors_offset, tensors_bytes),
    )
    with atomic_file(path) as file:
        writer = _Writer(file)
        writer.section(header.ljust(HEADER_BYTES, b"\0"))
        writer.section(tokenizer)
        for name, shape in shapes.items():
            value = tensor(name)
            if value.shape != shape:
                raise UserError(f"tensor {name} has shape {value.shape}: the model needs {shape}")
            if not np.isfinite(value).all():
                raise UserError(f"tensor {name} has a weight that is not finite: train it again")
            writer.section(pack(value, weight_type, group_size))
        writer.finish()


@dataclass(frozen=True)
class WeightFile:
    """An open weight file: its header, its tokenizer, and its tensors read on demand."""

    path: Path
    config: ModelConfig
    vocabulary: Vocabulary
    weight_type: WeightType
    group_size: int
    file_bytes: int
    _data: npt.NDArray[np.uint8]
    _offsets: dict[str, int]

    def tensor(self, name: str) -> Float32:
        """The tensor of that name as float32, dequantized if need be."""
        shape = tensor_shapes(self.config)[name]
        start = self._offsets[name]
        size = tensor_bytes(shape, self.weight_type, self.group_size)
        return unpack(self._data[start : start + size], shape, self.weight_type, self.group_size)

    def tensors(self) -> Iterator[tuple[str, Float32]]:
        """Every tensor with its name, in the order of the file."""
        for name in self._offsets:
            yield name, self.tensor(name)


def read(path: str | os.PathLike[str]) -> WeightFile:
    """Open and check a weight file.

    Raises:
        UserError: the file is missing, cut short, damaged, or of another version.
    """
    source = Path(path)
    try:
        data = np.memmap(source, np.uint8, "r")
    except FileNotFoundError:
        raise UserError(f"weight file {source} does not exist: run `dvc repro` first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"weight file {source} cannot be read: {error}") from None
    fields = _checked_header(source, data)
    (dim, layers, heads, kv_heads, head_dim, hidden, context, vocab_size) = fields[5:13]
    rope_theta, norm_eps, weight_type, group_size = fields[13:17]
    unk_id, bos_id, eos_id, pad_id, flags, _ = fields[17:23]
    tokenizer_offset, tokenizer_bytes, tensors_offset, _ = fields[23:27]
    config = ModelConfig(
        *(dim, layers, heads, kv_heads, head_dim, hidden, context, vocab_size),
        rope_theta=rope_theta,
        norm_eps=norm_eps,
        tied=bool(flags & TIED),
    )
    section = data[tokenizer_offset : tokenizer_offset + tokenizer_bytes]
    offsets = section[4 * vocab_size : 8 * vocab_size + 4].view("<u4").astype(np.int64)
    types = section[8 * vocab_size + 4 : 9 * vocab_size + 4].copy()
    text = section[9 * vocab_size + 4 :].tobytes()
    vocabulary = Vocabulary(
        pieces=[text[a:b] for a, b in pairwise(offsets)],
        scores=section[: 4 * vocab_size].view("<f4").astype(np.float32),
        types=types,
        unk_id=unk_id,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        dummy_prefix=bool(flags & DUMMY_PREFIX),
        byte_fallback=bool(flags & BYTE_FALLBACK),
    )
    starts = {}
    position = tensors_offset
    for name, shape in tensor_shapes(config).items():
        starts[name] = position
        size = tensor_bytes(shape, WeightType(weight_type), group_size)
        position += _round_up(size, ALIGNMENT)
    return WeightFile(
        *(source, config, vocabulary, WeightType(weight_type), group_size, len(data)),
        _data=data,
        _offsets=starts,
    )


def _checked_header(source: Path, data: npt.NDArray[np.uint8]) -> tuple[Any, ...]:
    """The header's fields, once magic, version, size and checksum hold."""
    if len(data) < HEADER_BYTES or data[: len(MAGIC)].tobytes() != MAGIC:
        raise UserError(f"{source} is not a StoryLlamas weight file: give one that export wrote")
    fields = HEADER.unpack_from(data.data)
    version, _, file_bytes, stored = fields[1:5]
    if version != VERSION:
        raise UserError(
            f"weight file {source} has version {version} and this program reads version "
            f"{VERSION}: export the model again"
        )
    if file_bytes != len(data):
        raise UserError(
            f"weight file {source} is {len(data)} bytes long and its header says {file_bytes}: "
            "it was cut short or appended to; export it again"
        )
    checksum = Checksum()
    start = data[:HEADER_BYTES].copy()
    start[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 8] = 0
    checksum.update(start.tobytes())
    checksum.update(data[HEADER_BYTES:].data)
    if checksum.digest() != stored:
        raise UserError(
            f"weight file {source} is damaged (its checksum does not match): export it again"
        )
    return fields
