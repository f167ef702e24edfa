"""Mutations of the files of models, by bytes and by structure."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import gguf_structure
import torch
from sentencepiece import sentencepiece_model_pb2 as schema

Draw = random.Random

LIMITS = [0, 1, 2, 3, 6, 7, 64, 255, 1 << 14, 1 << 15, 1 << 17, (1 << 20) + 1, 1 << 20, 1 << 24]
LIMITS += [(1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63]
LIMITS += [-value for value in (1, 2, 1 << 31, 1 << 63)]
"""Whole numbers at which something may overflow."""

FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-46, 1e-40, 1e38, 1e39, 1e300, math.nan, math.inf, -math.inf]

DEEP, DIGITS = "@nested deeply@", "@5000 digits@"
RAW = {DEEP: "[" * 100_000 + "]" * 100_000, DIGITS: "9" * 5000}
"""Placeholders, and the JSON that takes their place."""

TEXTS = ["", " ", "a", "\u2581", "\ud800", "a\nb", "\0", "\x1b[31m", "<s>", "<0x41>", "é" * 9]
TEXTS += ["x" * 100_000, "../../x", "BPE", "linear", "llama3", "1", "nan", DEEP, DIGITS]

VALUES: list[Any] = [None, True, False, [], {}, [[]], [None], {"": None}, {"type": "Sequence"}]

TYPES = ["BOOL", "U8", "I8", "I16", "U16", "I32", "I64", "F16", "BF16", "F32", "F64", "C64"]
TYPES += ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "?"]
"""Types of safetensors files."""


def any_number(draw: Draw) -> float:
    return draw.choice([draw.choice(LIMITS), draw.choice(FLOATS), draw.randrange(1000)])


def any_value(draw: Draw) -> Any:
    """Draw a value that JSON can hold, likely of the wrong type."""
    kinds = [lambda: any_number(draw), lambda: draw.choice(TEXTS), lambda: draw.choice(VALUES)]
    return copy.deepcopy(draw.choice(kinds)())


# ---- Bytes ---------------------------------------------------------------------------------------


def change_bytes(draw: Draw, data: bytes) -> bytes:
    """Change some bytes anywhere, often near the start, where a header is."""
    changed = bytearray(data)
    end = min(len(data), draw.choice([32, 256, 4096, len(data)]))
    at = draw.randrange(end) if end else 0
    size = draw.choice([1, 1, 2, 4, 8, 100])
    kind = draw.randrange(9)
    if kind == 0:
        return data[: draw.randint(0, len(data))]
    if kind == 1 and data:
        changed[at] ^= 1 << draw.randrange(8)
    elif kind == 2:
        changed[at : at + size] = draw.randbytes(size)
    elif kind == 3:
        changed[at:at] = draw.randbytes(size)
    elif kind == 4:
        del changed[at : at + size]
    elif kind == 5:
        changed[at : at + size] = bytes(size)
    elif kind == 6:
        changed += draw.choice([b"\0", draw.randbytes(size), data])
    else:
        field = any_field(draw)
        at = at // len(field) * len(field)
        changed[at : at + len(field)] = field
    return bytes(changed)


def any_field(draw: Draw) -> bytes:
    """Return a field of a header with a value that is likely to be a limit."""
    kind = draw.choice("IQf")
    if kind == "f":
        with_range = [value for value in FLOATS if not 1e38 < abs(value) < math.inf]
        return struct.pack("<f", draw.choice(with_range))
    bits = 32 if kind == "I" else 64
    return struct.pack(f"<{kind}", draw.choice(LIMITS) % (1 << bits))


# ---- JSON ----------------------------------------------------------------------------------------


def change_json(draw: Draw, data: bytes) -> bytes:
    """Change some values of a JSON document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(draw, data)
    holder = [document]
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        _change_value(draw, holder)
    return dump(holder[0], draw.random() < 0.5)


def dump(document: Any, ascii_only: bool = True) -> bytes:
    """Return the JSON of a document with placeholders."""
    text = json.dumps(document, ensure_ascii=ascii_only)
    for placeholder, raw in RAW.items():
        text = text.replace(f'"{placeholder}"', raw)
    return text.encode(errors="surrogatepass")


def _items(container: Any) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))


def _change_value(draw: Draw, holder: list[Any]) -> None:
    """Change a value, found by a random descent, so that outer values change often, too."""
    container: Any = holder
    key: Any = 0
    while isinstance(container[key], dict | list) and container[key] and draw.random() < 0.8:
        container = container[key]
        key = draw.choice(_items(container))
    value = container[key]
    kind = draw.randrange(8)
    if kind == 0 and container is not holder:
        del container[key]
    elif kind == 1 and container is not holder:
        other = draw.choice(_items(container))
        container[key], container[other] = container[other], container[key]
    elif kind == 2 and isinstance(container, dict):
        container[draw.choice(TEXTS)] = container.pop(key)
    elif kind == 3 and isinstance(container, list):
        container.insert(key, copy.deepcopy(value))
    elif kind == 4 and isinstance(value, int | float):
        container[key] = draw.choice([value + 1, value - 1, -value, value * 2, float(value)])
    elif kind == 5 and isinstance(value, list):
        draw.shuffle(value)
    else:
        container[key] = any_value(draw)


# ---- Safetensors ---------------------------------------------------------------------------------


def change_safetensors(draw: Draw, data: bytes) -> bytes:
    """Change the header of a file, or rewrite it with another type, shape or set of tensors."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8:
        return change_bytes(draw, data)
    header, rest = data[8 : 8 + size], data[8 + size :]
    if draw.random() < 0.4:
        header = change_json(draw, header)
    else:
        try:
            header, rest = _rewrite(draw, json.loads(header), rest)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return change_bytes(draw, data)
    length = len(header) if draw.random() < 0.95 else draw.choice(LIMITS) % (1 << 64)
    return length.to_bytes(8, "little") + header + rest


def _rewrite(draw: Draw, header: dict[str, Any], rest: bytes) -> tuple[bytes, bytes]:
    """Return a consistent header and data with one tensor changed."""
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__":
            start, end = about["data_offsets"]
            tensors[name] = [about["dtype"], about["shape"], rest[start:end]]
    name = draw.choice(list(tensors))
    kind = draw.randrange(6)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[draw.choice([*TEXTS, "model.embed_tokens.bias", "lm_head.weight"])] = tensors[name]
    elif kind == 2:
        tensors[name][0] = draw.choice(TYPES)
    elif kind == 3:
        shape = tensors[name][1]
        tensors[name][1] = draw.choice([[], [1, *shape], [*shape, 1], shape[::-1], [0, *shape]])
    elif kind == 4:
        number = struct.pack("<f", draw.choice([1e38, -1e38, math.nan, math.inf, 1e-40]))
        tensors[name][2] = number + tensors[name][2][4:]
    else:
        other = draw.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    made: dict[str, Any] = {}
    blocks = []
    position = 0
    for each, (type_, shape, block) in tensors.items():
        digits = "".join(filter(str.isdigit, type_.split("_")[0])) or "8"
        wanted = math.prod(shape) * int(digits) // 8
        block = block[:wanted].ljust(wanted, b"\0")
        made[each] = {"dtype": type_, "shape": shape, "data_offsets": [position, position + wanted]}
        position += wanted
        blocks.append(block)
    return dump(made), b"".join(blocks)


# ---- SentencePiece and llama2.c ------------------------------------------------------------------


def change_sentencepiece(draw: Draw, data: bytes) -> bytes:
    """Change pieces and settings of a SentencePiece model file."""
    model = schema.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:
        return change_bytes(draw, data)
    if not model.pieces:
        return change_bytes(draw, data)
    piece = draw.choice(model.pieces)
    kind = draw.randrange(8)
    if kind == 0:
        piece.piece = draw.choice([text for text in TEXTS if text != "\ud800"])
    elif kind == 1:
        piece.score = draw.choice(FLOATS)
    elif kind == 2:
        piece.type = draw.randint(1, 6)
    elif kind == 3:
        del model.pieces[draw.randrange(len(model.pieces))]
    elif kind == 4:
        model.pieces.add().CopyFrom(piece)
    elif kind == 5:
        field = draw.choice(["unk_id", "bos_id", "eos_id", "pad_id", "model_type", "vocab_size"])
        number = draw.randint(1, 4) if field == "model_type" else draw.randint(-2, 400)
        setattr(model.trainer_spec, field, number)
    elif kind == 6:
        model.trainer_spec.byte_fallback = draw.random() < 0.5
        model.trainer_spec.treat_whitespace_as_suffix = draw.random() < 0.3
    else:
        model.normalizer_spec.add_dummy_prefix = draw.random() < 0.5
        model.normalizer_spec.remove_extra_whitespaces = draw.random() < 0.3
    changed: bytes = model.SerializeToString()
    return changed


def change_tokenizer_bin(draw: Draw, data: bytes) -> bytes:
    """Change a piece of tokenizer.bin: its score, its text, its length, or its place."""
    entries, position = [], 4
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        entries.append([data[position : position + 8], data[position + 8 : position + 8 + size]])
        position += 8 + size
    if not entries:
        return change_bytes(draw, data)
    index = draw.choice([draw.randrange(len(entries)), draw.randrange(min(6, len(entries)))])
    head, text = entries[index]
    kind = draw.randrange(5)
    if kind == 0:
        score = draw.choice([1e38, -1e38, 0.0, math.nan, math.inf])
        entries[index][0] = struct.pack("<fI", score, len(text))
    elif kind == 1:
        text = draw.choice([b"", b"\xff", b" ", b"a", b"<0x41>", b"\n", draw.choice(entries)[1]])
        entries[index] = [head[:4] + len(text).to_bytes(4, "little"), text]
    elif kind == 2:
        entries[index][0] = head[:4] + (draw.choice(LIMITS) % (1 << 32)).to_bytes(4, "little")
    elif kind == 3:
        del entries[index]
    else:
        entries.insert(draw.randrange(len(entries)), entries[index])
    return data[:4] + b"".join(head + text for head, text in entries)


def change_llama2c(draw: Draw, data: bytes) -> bytes:
    """Set a field of the header of a llama2.c checkpoint to a limit or to a near value."""
    at = 4 * draw.randrange(10)
    if len(data) < 64:
        return change_bytes(draw, data)
    (value,) = struct.unpack_from("<i", data, at)
    near = [value + 1, value - 1, -value, 2 * value, value // 2, draw.choice(LIMITS)]
    field = struct.pack("<I", draw.choice(near) % (1 << 32))
    return data[:at] + field + data[at + 4 :]


# ---- PyTorch -------------------------------------------------------------------------------------


def change_pytorch(draw: Draw, data: bytes) -> bytes:
    """Change a value of a ckpt.pt and save it again, or change its pickle."""
    try:
        if draw.random() < 0.5:
            return _change_pickle(draw, data)
        document = torch.load(io.BytesIO(data), weights_only=True)
        file = io.BytesIO()
        torch.save(_change_checkpoint(draw, document), file)
        return file.getvalue()
    except Exception:  # the file is damaged already
        return change_bytes(draw, data)


def _change_pickle(draw: Draw, data: bytes) -> bytes:
    """Change bytes of a member of the archive, whose checksums are then right again."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        changed = draw.choice([draw.choice(names), next(n for n in names if n.endswith(".pkl"))])
        for name in names:
            member = old.read(name)
            if name != changed:
                new.writestr(name, member)
            elif draw.random() < 0.9:
                new.writestr(name, change_bytes(draw, member))
    return file.getvalue()


def _change_checkpoint(draw: Draw, document: Any) -> Any:
    tensors, arguments = document["model"], document["model_args"]
    name = draw.choice(list(tensors))
    tensor = tensors[name]
    kind = draw.randrange(8)
    if kind == 0:
        return any_plain(draw)
    if kind == 1:
        document[draw.choice(["model", "model_args"])] = any_plain(draw)
    elif kind == 2:
        arguments[draw.choice(list(arguments))] = any_plain(draw)
    elif kind == 3:
        arguments[draw.choice(["norm_eps", "rope_theta", "hidden_dim", "tied", 5, None])] = 1
    elif kind == 4:
        del tensors[name]
    elif kind == 5:
        tensors[draw.choice([5, "a\nb", "_orig_mod.output.weight", "output.weight"])] = tensor
    elif kind == 6:
        tensors[name] = any_plain(draw)
    else:
        tensors[name] = draw.choice(TENSORS)(tensor)
    return document


def any_plain(draw: Draw) -> Any:
    """Draw a value that weights_only may load."""
    return draw.choice([any_value(draw), torch.ones(2), (1, 2), 1 << 70, b"x", {1: torch.ones(1)}])


TENSORS: list[Callable[[Any], Any]] = [
    lambda t: t.to(torch.int64),
    lambda t: t.to(torch.complex64),
    lambda t: t.to(torch.bool),
    lambda t: t.to(torch.bfloat16),
    lambda t: t.to(torch.float64) * 1e300,
    lambda t: t.to(torch.float8_e4m3fn),
    lambda t: t.to_sparse(),
    lambda t: torch.nn.Parameter(t),
    lambda t: t.reshape(-1)[0],
    lambda t: t[:1].expand(t.shape),
    lambda t: t.T,
    lambda t: t[..., :-1],
    lambda t: t.to("meta"),
    lambda t: torch.empty(0),
    lambda t: torch.empty(0, 5),
    lambda t: t * math.nan,
    lambda t: t * 1e38,
    lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
]
"""Tensors that a ckpt.pt may have in place of one."""


# ---- All files -----------------------------------------------------------------------------------

STRUCTURES: dict[str, Callable[[Draw, bytes], bytes]] = {
    ".json": change_json,
    ".safetensors": change_safetensors,
    ".gguf": lambda draw, data: gguf_structure.change(draw, data, LIMITS, FLOATS),
    ".model": change_sentencepiece,
    "tokenizer.bin": change_tokenizer_bin,
    ".bin": change_llama2c,
    ".pt": change_pytorch,
    ".jinja": change_bytes,
}
"""The mutation by structure of each kind of file, by the end of its name."""


def change(draw: Draw, name: str, data: bytes) -> bytes:
    """Change a file once, by bytes or by structure."""
    kind = next(kind for kind in STRUCTURES if name.endswith(kind))
    if draw.random() < 0.3:
        return change_bytes(draw, data)
    return STRUCTURES[kind](draw, data)
