"""llama2.c: model.bin and tokenizer.bin, as its export.py and tokenizer.py write them.

    version 0   i32 dim, hidden, layers, heads, kv_heads, vocab_size, context; vocab_size is
                negative if the classifier is not tied to the embedding; then f32 tensors, with
                two tables of rotary cosines and sines before the classifier that readers skip
    version 1   "ak42", i32 version, the same seven numbers (vocab_size positive), u8 1 if the
                classifier is tied to the embedding; from byte 256 on f32 tensors
    version 2   the same, then i32 group_size; from byte 256 on the norms in f32, then each matrix
                as i8 values followed by f32 scales, one scale per group_size values

The tensors of one kind are stored for all layers together. llama2.c's programs assume what the
format does not store: rope_theta 10000, norm_eps 1e-5, head_dim = dim / heads, and a tokenizer
like Llama's.
https://github.com/karpathy/llama2.c
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.interop.model import InteropModel, make_config, parts, stack
from storyllamas.interop.sentencepiece import from_sentencepiece
from storyllamas.interop.vocabulary_check import BYTE_PIECES, byte_piece, check
from storyllamas.slm.limits import MAXIMA
from storyllamas.slm.quantize import Float32, to_integers
from storyllamas.vocabulary import SPACE, PieceType, TokenizerKind, Vocabulary

MAGIC = 0x616B3432  # "ak42"
DIMENSIONS = struct.Struct("<7i")
HEADER_BYTES = 256
ROPE_THETA, NORM_EPS = 10000.0, 1e-5
GROUP_SIZE = 64
UNK_ID, BOS_ID, EOS_ID, FIRST_BYTE = 0, 1, 2, 3
ROTARY = "rotary tables"

KEYS = {
    "dim": "dim",
    "hidden": "hidden_dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "kv_heads": "n_kv_heads",
    "vocab_size": "vocab_size",
    "context": "max_seq_len",
    "head_dim": "dim / n_heads",
}
"""llama2.c's names of our fields; the first seven are the header's numbers, in its order."""


def _layout(config: ModelConfig, version: int) -> list[str]:
    """Return the names of the parts in the order of the file; `ROTARY` is the two tables."""

    def each(*kinds: str) -> list[str]:
        return [f"layers.{i}.{kind}.weight" for kind in kinds for i in range(config.layers)]

    attention = each(*(f"attention.{kind}" for kind in ("query", "key", "value", "output")))
    feed_forward = each(*(f"feed_forward.{kind}" for kind in ("gate", "down", "up")))
    attention_norms, feed_forward_norms = each("attention_norm"), each("feed_forward_norm")
    start, norm = "embedding.weight", "norm.weight"
    end = [] if config.tied else ["classifier.weight"]
    if version == 0:
        first = [start, *attention_norms, *attention, *feed_forward_norms, *feed_forward]
        return [*first, norm, ROTARY, *end]
    return [*attention_norms, *feed_forward_norms, norm, start, *attention, *feed_forward, *end]


# ---- Export --------------------------------------------------------------------------------------


def write(model: InteropModel, folder: Path, version: int) -> None:
    """Write model.bin and tokenizer.bin into an existing folder.

    Args:
        model: the model to write.
        folder: the target folder, which exists.
        version: 0 (float32, for llama2.c's `run`) or 2 (8 bits, for its `runq`).

    Raises:
        UserError: llama2.c cannot represent the model.
    """
    config = model.config
    _check_representable(config, model.vocabulary)
    with (folder / "model.bin").open("wb") as file:
        for block in _float_blocks(model) if version == 0 else _int8_blocks(model):
            file.write(block)
    (folder / "tokenizer.bin").write_bytes(_tokenizer_bin(model.vocabulary))


def _check_representable(config: ModelConfig, vocabulary: Vocabulary) -> None:
    width = config.heads * config.head_dim
    special = (vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id)
    first_bytes = vocabulary.pieces[FIRST_BYTE : FIRST_BYTE + 256]
    problems = {
        "its tokenizer is not SentencePiece's": vocabulary.kind != TokenizerKind.SENTENCEPIECE,
        f"rope_theta is {config.rope_theta:g} and must be 10000": config.rope_theta != ROPE_THETA,
        f"rope_scaling is {config.rope_scaling} and must be none": config.rope_scaling != "none",
        f"norm_eps is {config.norm_eps:g} and must be 1e-05": np.float32(config.norm_eps)
        != np.float32(NORM_EPS),
        f"heads * head_dim is {width} and must be dim, {config.dim}": width != config.dim,
        f"unk_id, bos_id and eos_id are {special} and must be (0, 1, 2)": special
        != (UNK_ID, BOS_ID, EOS_ID),
        "its tokenizer has no byte pieces at 3 … 258": first_bytes
        != [byte_piece(byte) for byte in range(256)],
        "its tokenizer adds no space before a text": not vocabulary.dummy_prefix,
        "its tokenizer has no piece for a space": SPACE.encode() not in vocabulary.pieces,
        "its tokenizer has user-defined or unused pieces": not set(vocabulary.types)
        <= {PieceType.NORMAL, PieceType.UNKNOWN, PieceType.CONTROL, PieceType.BYTE},
    }
    for problem, is_there in problems.items():
        if is_there:
            raise UserError(f"llama2.c cannot represent this model: {problem}")


def _dimensions(config: ModelConfig, vocab_size: int) -> bytes:
    fields = [getattr(config, name) for name in list(KEYS)[:7]]
    fields[5] = vocab_size
    return DIMENSIONS.pack(*fields)


def _float_blocks(model: InteropModel) -> Iterator[bytes]:
    config = model.config
    yield _dimensions(config, config.vocab_size if config.tied else -config.vocab_size)
    for name in _layout(config, 0):
        if name == ROTARY:
            pairs = np.arange(0, config.head_dim, 2) / config.head_dim
            angles = np.outer(np.arange(config.context), ROPE_THETA**-pairs)
            yield np.cos(angles).astype("<f4").tobytes()
            yield np.sin(angles).astype("<f4").tobytes()
        else:
            yield model.part(name).astype("<f4").tobytes()


def _int8_blocks(model: InteropModel) -> Iterator[bytes]:
    config = model.config
    group_size = math.gcd(GROUP_SIZE, config.dim, config.hidden)
    start = struct.pack("<Ii", MAGIC, 2) + _dimensions(config, config.vocab_size)
    yield (start + struct.pack("<Bi", config.tied, group_size)).ljust(HEADER_BYTES, b"\0")
    for name in _layout(config, 2):
        part = model.part(name)
        if part.ndim == 1:
            yield part.astype("<f4").tobytes()
        else:
            grouped = part.reshape(len(part), -1, group_size)
            scales = np.abs(grouped).max(axis=2) / np.float32(127)
            integers = to_integers(grouped, scales, -127, 127)
            yield integers.tobytes()
            yield scales.astype("<f4").tobytes()


def _tokenizer_bin(vocabulary: Vocabulary) -> bytes:
    pieces = [piece.replace(SPACE.encode(), b" ") for piece in vocabulary.pieces]
    pieces[BOS_ID], pieces[EOS_ID] = b"\n<s>\n", b"\n</s>\n"
    scores = vocabulary.scores.tolist()
    return struct.pack("<I", max(len(piece) for piece in pieces)) + b"".join(
        struct.pack("<fI", score, len(piece)) + piece
        for piece, score in zip(pieces, scores, strict=True)
    )


# ---- Import --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    """The header of a checkpoint; `group_size` is 0 in float32, `bytes` is the header's length."""

    version: int
    config: ModelConfig
    group_size: int
    bytes: int


def read(path: Path, tokenizer: Path | None = None) -> InteropModel:
    """Open a checkpoint of version 0, 1 or 2.

    Args:
        path: the .bin file.
        tokenizer: its tokenizer.bin; None: the one in the same folder.

    Raises:
        UserError: a file is missing, of another version, cut short, or of another size than its
            header requires.
    """
    data = _map(path)
    header = _read_header(path, data)
    config = header.config
    places, end = _places(header)
    if end != len(data):
        what = "cut short" if end > len(data) else "longer than that"
        raise UserError(
            f"{path} has {len(data)} bytes and its header requires {end} "
            f"(version {header.version}, dim {config.dim}, {config.layers} layers, "
            f"vocab_size {config.vocab_size}): it is {what}, or no llama2.c checkpoint"
        )

    def part(name: str) -> Float32:
        start, shape = places[name], parts(config)[name].shape
        count = math.prod(shape)
        if header.group_size == 0 or len(shape) == 1:
            return _floats(data[start : start + 4 * count]).reshape(shape)
        groups = data[start : start + count].view(np.int8).reshape(-1, header.group_size)
        scales = _floats(data[start + count : start + count + 4 * len(groups)])
        value: Float32 = groups.astype(np.float32) * scales[:, None]
        return value.reshape(shape)

    tokenizer = tokenizer or path.with_name("tokenizer.bin")
    vocabulary = read_tokenizer(tokenizer, config.vocab_size)
    return InteropModel(config, vocabulary, stack(config, part))


def _floats(data: npt.NDArray[np.uint8]) -> Float32:
    return np.frombuffer(data.tobytes(), "<f4").astype(np.float32, copy=False)


def _map(path: Path) -> npt.NDArray[np.uint8]:
    if path.stat().st_size == 0:
        raise _not_a_checkpoint(path)
    try:
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _read_header(path: Path, data: npt.NDArray[np.uint8]) -> _Header:
    start = data[:HEADER_BYTES].tobytes()
    if len(start) < DIMENSIONS.size:
        raise _not_a_checkpoint(path)
    version, offset, group_size = 0, 0, 0
    if int.from_bytes(start[:4], "little") == MAGIC:
        if len(start) < HEADER_BYTES:
            raise UserError(f"{path} is cut short in its header, which takes 256 bytes")
        version, offset = struct.unpack_from("<i", start, 4)[0], 8
        if version not in (1, 2):
            raise UserError(f"{path} has version {version}: only 0, 1 and 2 can be imported")
    values = dict(zip(KEYS.values(), DIMENSIONS.unpack_from(start, offset), strict=False))
    if version == 0:
        values["tied"], length = values["vocab_size"] > 0, DIMENSIONS.size
        values["vocab_size"] = abs(values["vocab_size"])
    else:
        tied, group_size = struct.unpack_from("<Bi", start, offset + DIMENSIONS.size)
        values["tied"], length = bool(tied), HEADER_BYTES
    if version == 0 and any(
        not 0 < values[theirs] <= MAXIMA[ours] for ours, theirs in list(KEYS.items())[:7]
    ):
        raise _not_a_checkpoint(path)
    if values["n_heads"] < 1 or values["dim"] % values["n_heads"]:
        if version == 0:
            raise _not_a_checkpoint(path)
        raise UserError(
            f"n_heads in {path} is {values['n_heads']} and must divide dim ({values['dim']}): "
            "the file is damaged"
        )
    values["dim / n_heads"] = values["dim"] // values["n_heads"]
    config = make_config(str(path), KEYS | {"tied": "tied"}, values)
    if version < 2:
        group_size = 0
    else:
        _check_group_size(path, config, group_size)
    return _Header(version, config, group_size, length)


def _not_a_checkpoint(path: Path) -> UserError:
    """Return the error for a file of no known format; version 0 has no magic number to check."""
    return UserError(
        f"{path} cannot be imported: give a llama2.c checkpoint (.bin or ckpt.pt), a GGUF file or "
        "a Hugging Face folder"
    )


def _check_group_size(path: Path, config: ModelConfig, group_size: int) -> None:
    """Check that groups divide every matrix; a group may extend over the end of a row."""
    for name, part in parts(config).items():
        count = math.prod(part.shape)
        if group_size < 1 or (len(part.shape) > 1 and count % group_size):
            raise UserError(
                f"group_size in {path} is {group_size} and must divide every matrix, such as the "
                f"{count} weights of {name}"
            )


def _places(header: _Header) -> tuple[dict[str, int], int]:
    """Return the offset of each part by name, and the offset of the end, in bytes."""
    config, position, places = header.config, header.bytes, {}
    for name in _layout(config, header.version):
        places[name] = position
        shape = (config.context, config.head_dim) if name == ROTARY else parts(config)[name].shape
        count = math.prod(shape)
        is_float = header.group_size == 0 or len(shape) == 1
        position += 4 * count if is_float else count + 4 * (count // header.group_size)
    return places, position


def read_tokenizer(path: Path, vocab_size: int) -> Vocabulary:
    """Read tokenizer.bin, or a SentencePiece model file whose name ends in .model.

    Raises:
        UserError: the file is missing, damaged, or belongs to another model.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: name the model's tokenizer.bin with --tokenizer FILE"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if path.suffix == ".model":
        return from_sentencepiece(str(path), data)
    pieces, scores, position = [], [], 4
    for index in range(vocab_size):
        if position + 8 > len(data):
            raise UserError(
                f"{path} ends at byte {len(data)}, in piece {index}: the model has {vocab_size} "
                "pieces"
            )
        score, length = struct.unpack_from("<fI", data, position)
        piece = data[position + 8 : position + 8 + length]
        position += 8 + length
        if position > len(data):
            raise UserError(f"{path} ends at byte {len(data)}, in the text of piece {index}")
        try:
            piece.decode()
        except UnicodeDecodeError:
            raise UserError(f"piece {index} in {path} is not UTF-8: {piece!r}") from None
        scores.append(score)
        pieces.append(piece.replace(b" ", SPACE.encode()))
    if position != len(data):
        raise UserError(
            f"{path} has more pieces than the {vocab_size} of the model: it belongs to another "
            "model"
        )
    return _vocabulary(path, pieces, scores)


def _vocabulary(path: Path, pieces: list[bytes], scores: list[float]) -> Vocabulary:
    """Derive the types of pieces from their ids; a tokenizer may have no byte pieces at all."""
    if len(pieces) <= EOS_ID:
        raise UserError(f"{path} has {len(pieces)} pieces: it needs <unk>, <s> and </s>")
    has_bytes = not BYTE_PIECES.isdisjoint(pieces)
    first_bytes = pieces[FIRST_BYTE : FIRST_BYTE + 256]
    if has_bytes and first_bytes != [byte_piece(byte) for byte in range(256)]:
        raise UserError(f"{path} has byte pieces, but not at 3 … 258, where llama2.c needs them")
    pieces[BOS_ID], pieces[EOS_ID] = (pieces[i].strip(b"\n") for i in (BOS_ID, EOS_ID))
    types = np.full(len(pieces), PieceType.NORMAL, np.uint8)
    types[UNK_ID] = PieceType.UNKNOWN
    types[[BOS_ID, EOS_ID]] = PieceType.CONTROL
    if has_bytes:
        types[FIRST_BYTE : FIRST_BYTE + 256] = PieceType.BYTE
    values = np.array(scores, np.float32)
    return check(str(path), Vocabulary(pieces, values, types, byte_fallback=has_bytes))
