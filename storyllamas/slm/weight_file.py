"""The flat weight file (`.slm`): one file holds a model's shape, its tokenizer and its weights.

Everything is little-endian and in the order in which the C engine's kernels read it, so that the
engine maps the file and starts. Layout, version 3:

    header      256 bytes, see `HEADER`; bytes that no field names are zero
    tokenizer   f32 scores[vocab_size] for SentencePiece only; u32 offsets[vocab_size + 1];
                u32 merges[merge_count][2], ids, the first merges first; u32 added[added_count][2],
                id and flags; u8 types[vocab_size]; u8 text[offsets[vocab_size]]: piece i is
                text[offsets[i] : offsets[i + 1]], in UTF-8 with U+2581 for a space, or the bytes
                themselves of a byte-level tokenizer; types as SentencePiece numbers them, see
                `PieceType`
    chat        u32 extra_eos[extra_eos_count], rising ids that end a sequence besides eos_id;
                u8 template[chat_template_bytes], the chat template in UTF-8; mostly empty
    tensors     in the order of `tensor_shapes`

Sections and tensors start at multiples of 64 bytes, and the file ends at one; the gaps are zero. A
vector (an RMSNorm weight) is plain f32. A matrix of R rows and C columns maps C inputs to R outputs
and is cut into tiles of 16 rows, R padded up with zero rows:

    float32     [tile][column][16 rows] f32
    quantized   [tile] { bf16 scale[groups][16 rows], padded to 64 bytes with zeros;
                         u8   weight[groups][group_size / (4 n)][16 rows][4 bytes] }

A byte holds n integers of b = 8 / n bits (n = 1 in q8, 2 in q4). Byte j of the four in block k of
a row holds columns 4 n k + j, 4 n k + 4 + j, …, the first in its lowest bits. A weight is
scale * (integer - 2^(b - 1)). Columns are padded up to whole groups with zero weights. The
embedding and the classifier may have another type than the matrices of the layers, but either all
matrices are f32 or none.

The query, key and value matrices are stacked in that order into one (`attention.qkv`), and gate
and up into one (`feed_forward.gate_up`). Rotary embeddings turn neighbouring pairs (2i, 2i + 1) of
a head, as in Meta's release.

The checksum is `Checksum` over the whole file, with zeros in place of the checksum itself.

Versions: a change of the meaning of any byte raises the version. Readers accept version 3, and
version 2, which has zeros in place of what version 3 adds. They reject all other versions.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from storyllamas.atomic import atomic_file
from storyllamas.config import ROPE_SCALINGS, ModelConfig, tensor_shapes
from storyllamas.errors import UserError
from storyllamas.regular_file import open_regular
from storyllamas.slm import chat_section, tokenizer_section
from storyllamas.slm.checksum import Checksum
from storyllamas.slm.encoding import F32, Storage
from storyllamas.slm.header import (
    CHECKSUM_OFFSET,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    OLDEST_VERSION,
    TIED,
    VERSION,
    Header,
)
from storyllamas.slm.quantize import Float32
from storyllamas.slm.tiles import (
    ALIGNMENT,
    TILE_ROWS,
    UInt8,
    pack,
    round_up,
    tensor_bytes,
    unpack,
)
from storyllamas.vocabulary import Vocabulary

BLOCK_WEIGHTS = 1 << 20
"""Weights that `write` holds in memory at a time: 4 MB in float32."""


class Rows(Protocol):
    """A float32 tensor, [rows, columns] or [columns], or what reads its rows on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""

    def __getitem__(self, rows: slice, /) -> Float32:
        """Return some rows."""


def _aligned_bytes(shapes: dict[str, tuple[int, ...]], storage: Storage) -> dict[str, int]:
    """Return the bytes from the start of each tensor to the start of the next."""
    return {
        name: round_up(tensor_bytes(shape, storage.of(name)), ALIGNMENT)
        for name, shape in shapes.items()
    }


class _Writer:
    """Writes sections, each padded to the alignment, and updates the checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._checksum = Checksum()

    def section(self, blocks: Iterable[bytes]) -> None:
        rest = b""
        for block in blocks:
            data = rest + block
            whole = len(data) - len(data) % ALIGNMENT
            self._add(data[:whole])
            rest = data[whole:]
        self._add(rest + bytes(-len(rest) % ALIGNMENT))

    def _add(self, data: bytes) -> None:
        self._checksum.update(data)
        self._file.write(data)

    def finish(self) -> None:
        self._file.seek(CHECKSUM_OFFSET)
        self._file.write(struct.pack("<Q", self._checksum.digest()))


def write(
    path: str | os.PathLike[str],
    config: ModelConfig,
    vocabulary: Vocabulary,
    tensor: Callable[[str], Rows],
    storage: Storage = F32,
    moments: Iterable[tuple[str, Float32]] = (),
) -> None:
    """Write a weight file, a block of rows in memory at a time; it appears only when complete.

    Args:
        path: the file.
        config: the model's shape.
        vocabulary: its tokenizer, of `config.vocab_size` pieces.
        tensor: returns the tensor of a name in `tensor_shapes`, or reads its rows on demand.
        storage: how to store the matrices.
        moments: names of matrices with the moments of their inputs, for types that are calibrated
            (see calibration.py); each is used before the next is taken.

    Raises:
        UserError: the shape of a tensor or of the tokenizer contradicts `config`, a weight is not
            finite, or a group size is impossible.
    """
    if len(vocabulary.pieces) != config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(vocabulary.pieces)} pieces but the model's vocab_size is "
            f"{config.vocab_size}: export a model with the tokenizer that it was trained with"
        )
    if config.rope_problem:
        raise UserError(config.rope_problem)
    storage.check()
    shapes = tensor_shapes(config)
    tokenizer = tokenizer_section.pack(vocabulary)
    chat = chat_section.pack(vocabulary)
    chat_offset = HEADER_BYTES + round_up(len(tokenizer), ALIGNMENT)
    tensors_offset = chat_offset + round_up(len(chat), ALIGNMENT)
    tensors_bytes = sum(_aligned_bytes(shapes, storage).values())
    header = HEADER.pack(
        *(MAGIC, VERSION, HEADER_BYTES, tensors_offset + tensors_bytes, 0),
        *(config.dim, config.layers, config.heads, config.kv_heads, config.head_dim),
        *(config.hidden, config.context, config.vocab_size, config.rope_theta, config.norm_eps),
        *storage.layers,
        *(vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id),
        *(TIED * config.tied | tokenizer_section.flags(vocabulary), storage.embedding.type),
        *(HEADER_BYTES, len(tokenizer), tensors_offset, tensors_bytes),
        storage.embedding.group_size,
        *tokenizer_section.fields(vocabulary),
        *(ROPE_SCALINGS.index(config.rope_scaling), config.rope_factor),
        *(config.rope_low_freq_factor, config.rope_high_freq_factor),
        config.rope_original_context,
        *chat_section.fields(vocabulary),
    )

    def packed(name: str, known: Float32 | None = None) -> Iterator[bytes]:
        value = tensor(name)
        if value.shape != shapes[name]:
            raise UserError(
                f"tensor {name} has shape {value.shape}: the model needs {shapes[name]}"
            )
        for rows in row_blocks(value):
            yield pack(_finite(name, rows), storage.of(name), known)

    fitted = {name: [*packed(name, known)] for name, known in moments}
    with atomic_file(path, seekable=True) as file:
        writer = _Writer(file)
        writer.section([header.ljust(HEADER_BYTES, b"\0")])
        writer.section([tokenizer])
        writer.section([chat])
        for name in shapes:
            writer.section(fitted.pop(name) if name in fitted else packed(name))
        writer.finish()


def row_blocks(value: Rows) -> Iterator[Float32]:
    """Yield a tensor in blocks of whole tiles, at most `BLOCK_WEIGHTS` weights each."""
    each = BLOCK_WEIGHTS
    if len(value.shape) == 2:
        each = max(TILE_ROWS, each // value.shape[1] // TILE_ROWS * TILE_ROWS)
    for start in range(0, value.shape[0], each):
        yield value[start : start + each]


def _finite(name: str, rows: Float32) -> Float32:
    if not np.isfinite(rows).all():
        raise UserError(f"tensor {name} has a weight that is not finite: train the model again")
    return rows


@dataclass(frozen=True)
class WeightFile:
    """An open weight file: its header, its tokenizer, and its tensors read on demand."""

    path: Path
    version: int
    config: ModelConfig
    vocabulary: Vocabulary
    storage: Storage
    file_bytes: int
    tensors_bytes: int
    _data: UInt8
    _offsets: dict[str, int]

    def tensor(self, name: str) -> Float32:
        """Return the tensor with that name as float32, dequantized if necessary."""
        shape = tensor_shapes(self.config)[name]
        start, encoding = self._offsets[name], self.storage.of(name)
        size = tensor_bytes(shape, encoding)
        return unpack(self._data[start : start + size], shape, encoding)

    def tensors(self) -> Iterator[tuple[str, Float32]]:
        """Yield every tensor with its name, in the order of the file."""
        for name in self._offsets:
            yield name, self.tensor(name)


def read(path: str | os.PathLike[str]) -> WeightFile:
    """Open and check a weight file.

    Raises:
        UserError: the file is missing, cut short, damaged, or of another version.
    """
    source = Path(path)
    try:
        with open_regular(source) as file:
            if not os.fstat(file.fileno()).st_size:
                raise UserError(f"weight file {source} is empty: export it again")
            data = np.memmap(file, np.uint8, "r")
    except FileNotFoundError:
        raise UserError(
            f"weight file {source} does not exist: name another file, or train a model with "
            "`dvc repro`"
        ) from None
    header = _checked_header(source, data)
    config, storage = header.config(), header.storage()
    sizes = _aligned_bytes(tensor_shapes(config), storage)
    starts = accumulate(sizes.values(), initial=header.tensors_offset)
    return WeightFile(
        path=source,
        version=header.version,
        config=config,
        vocabulary=_read_vocabulary(source, header, data),
        storage=storage,
        file_bytes=len(data),
        tensors_bytes=header.tensors_bytes,
        _data=data,
        _offsets=dict(zip(sizes, starts, strict=False)),
    )


def _checked_header(source: Path, data: UInt8) -> Header:
    """Return the header after checking magic, version, size, checksum and consistency."""
    if len(data) < HEADER_BYTES or data[: len(MAGIC)].tobytes() != MAGIC:
        raise UserError(f"{source} is not a StoryLlamas weight file: give one that export wrote")
    header = Header._make(HEADER.unpack_from(data.data))
    if not OLDEST_VERSION <= header.version <= VERSION:
        raise UserError(
            f"weight file {source} has version {header.version} and this program reads versions "
            f"{OLDEST_VERSION} and {VERSION}: export the model again"
        )
    if header.file_bytes != len(data):
        raise UserError(
            f"weight file {source} is {len(data)} bytes long and its header says "
            f"{header.file_bytes}: it was cut short or appended to; export it again"
        )
    if len(data) % ALIGNMENT:
        raise _damaged(source, f"its length is not a multiple of {ALIGNMENT} bytes")
    checksum = Checksum()
    start = data[:HEADER_BYTES].copy()
    start[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 8] = 0
    checksum.update(start.tobytes())
    checksum.update(data[HEADER_BYTES:].data)
    if checksum.digest() != header.checksum:
        raise _damaged(source, "its checksum does not match")
    problem = header.contradiction() or _misplaced(header)
    if problem:
        raise _damaged(source, problem)
    return header


def _misplaced(header: Header) -> str:
    """Return why the sections contradict the shape of the model, or ''."""
    sizes = _aligned_bytes(tensor_shapes(header.config()), header.storage())
    tensors_bytes = sum(sizes.values())
    tensors_offset = _chat_offset(header) + round_up(chat_section.section_bytes(header), ALIGNMENT)
    expected = (HEADER_BYTES, tensors_offset, tensors_bytes, tensors_offset + tensors_bytes)
    found = (header.tokenizer_offset, header.tensors_offset, header.tensors_bytes)
    if header.header_bytes != HEADER_BYTES or (*found, header.file_bytes) != expected:
        return "its sections are not where its shape puts them"
    return ""


def _chat_offset(header: Header) -> int:
    return HEADER_BYTES + round_up(header.tokenizer_bytes, ALIGNMENT)


def _read_vocabulary(source: Path, header: Header, data: UInt8) -> Vocabulary:
    tokenizer = data[header.tokenizer_offset :][: header.tokenizer_bytes]
    chat = data[_chat_offset(header) :][: chat_section.section_bytes(header)]
    try:
        return chat_section.unpack(header, chat, tokenizer_section.unpack(header, tokenizer))
    except (tokenizer_section.DamagedTokenizerError, chat_section.DamagedChatError) as error:
        raise _damaged(source, str(error)) from None


def _damaged(source: Path, reason: str) -> UserError:
    return UserError(f"weight file {source} is damaged ({reason}): export it again")
