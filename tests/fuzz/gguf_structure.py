"""Mutations of GGUF files by structure: fields, tensors and counts."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

Draw = random.Random

SCALARS = "BbHhIif?"
"""The formats of value types 0 to 7; 8 is a string, 9 an array, 10 to 12 are Q, q and d."""
FORMATS = dict(enumerate(SCALARS)) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32
TEXTS = [b"", b"a", b" ", b"\xff\xfe", b"a\nb", b"llama", b"none", b"x" * 10_000, b"\xed\xa0\x80"]


@dataclass
class Structure:
    """A file in parts: counts of the header, fields, tensors, and the bytes of tensors."""

    head: bytes
    tensor_count: int
    field_count: int
    fields: list[list[bytes]]  # name, type and value
    tensors: list[list[bytes]]  # name, count of dimensions, dimensions, type and offset
    data: bytes

    def pack(self) -> bytes:
        """Return the bytes of the file."""
        start = self.head + struct.pack("<QQ", self.tensor_count, self.field_count)
        for name, type_, value in self.fields:
            start += _string(name) + type_ + value
        for name, *rest in self.tensors:
            start += _string(name) + b"".join(rest)
        return start + bytes(-len(start) % ALIGNMENT) + self.data


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.position:
            raise ValueError("cut short")
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, kind: str) -> int:
        value: int = struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]
        return value

    def string(self) -> bytes:
        return self.take(self.number("Q"))

    def value(self, type_: int) -> bytes:
        """Return the bytes of a value."""
        start = self.position
        if type_ == STRING:
            self.string()
        elif type_ == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner == ARRAY or count > len(self.data):
                raise ValueError("not a file to change by structure")
            for _ in range(count):
                self.value(inner)
        else:
            self.number(FORMATS[type_])
        return self.data[start : self.position]


def parse(data: bytes) -> Structure:
    """Return the parts of a file.

    Raises:
        ValueError, KeyError, struct.error: it is damaged.
    """
    reader = _Reader(data)
    head, tensor_count, field_count = reader.take(8), reader.number("Q"), reader.number("Q")
    fields = []
    for _ in range(field_count):
        name, type_ = reader.string(), reader.take(4)
        fields.append([name, type_, reader.value(int.from_bytes(type_, "little"))])
    tensors = []
    for _ in range(tensor_count):
        name, dimensions = reader.string(), reader.take(4)
        sizes = reader.take(8 * int.from_bytes(dimensions, "little"))
        tensors.append([name, dimensions, sizes, reader.take(4), reader.take(8)])
    end = reader.position + -reader.position % ALIGNMENT
    return Structure(head, tensor_count, field_count, fields, tensors, data[end:])


def change(draw: Draw, data: bytes, limits: list[int], floats: list[float]) -> bytes:
    """Change one part of a file; a damaged file stays as it is."""
    try:
        parts = parse(data)
    except (ValueError, KeyError, struct.error):
        return data
    kind = draw.random()
    if kind < 0.6 and parts.fields:
        _change_field(draw, parts, limits, floats)
    elif kind < 0.95 and parts.tensors:
        _change_tensor(draw, parts, limits)
    elif kind < 0.97:
        parts.tensor_count = draw.choice(limits) % (1 << 64)
    elif kind < 0.99:
        parts.field_count = draw.choice(limits) % (1 << 64)
    else:
        parts.head = b"GGUF" + (draw.choice(limits) % (1 << 32)).to_bytes(4, "little")
    return parts.pack()


def _change_field(draw: Draw, parts: Structure, limits: list[int], floats: list[float]) -> None:
    index = draw.randrange(len(parts.fields))
    field = parts.fields[index]
    kind = draw.randrange(7)
    if kind == 0:
        del parts.fields[index]
        parts.field_count -= 1
    elif kind == 1:
        parts.fields.append(list(field))
        parts.field_count += 1
    elif kind == 2:
        other = draw.choice(parts.fields)
        field[1:], other[1:] = other[1:], field[1:]
    elif kind == 3:
        field[0] = draw.choice([*TEXTS, b"general.alignment", b"llama.rope.scale_linear"])
    elif kind == 4:
        field[1:] = any_typed(draw, limits, floats)
    elif kind == 5 and int.from_bytes(field[1], "little") == ARRAY:
        field[2] = _change_array(draw, field[2], limits, floats)
    else:
        field[2] = any_of(draw, int.from_bytes(field[1], "little"), limits, floats)


def any_typed(draw: Draw, limits: list[int], floats: list[float]) -> list[bytes]:
    """Return the type and the value of a random field."""
    type_ = draw.choice([*FORMATS, STRING, ARRAY, 13, 1 << 31])
    return [type_.to_bytes(4, "little"), any_of(draw, type_, limits, floats)]


def any_of(draw: Draw, type_: int, limits: list[int], floats: list[float]) -> bytes:
    """Return a random value of a type; arrays may be nested or longer than the file."""
    if type_ == STRING:
        return _string(draw.choice(TEXTS))
    if type_ == ARRAY:
        if draw.random() < 0.1:
            depth = draw.choice([1, 3, 2000])
            return (ARRAY.to_bytes(4, "little") + struct.pack("<Q", 1)) * depth + bytes(20)
        inner, count = draw.choice([*FORMATS, STRING]), draw.choice([0, 1, 2, 300])
        values = b"".join(any_of(draw, inner, limits, floats) for _ in range(count))
        shown = count if draw.random() < 0.9 else draw.choice(limits) % (1 << 64)
        return inner.to_bytes(4, "little") + struct.pack("<Q", shown) + values
    kind = FORMATS.get(type_, "I")
    size = struct.calcsize(f"<{kind}")
    if kind in "fd":
        value = draw.choice(floats)
        wide = kind == "f" and 1e38 < abs(value) < float("inf")
        return struct.pack(f"<{kind}", 1e38 if wide else value)
    return (draw.choice(limits) % (1 << 8 * size)).to_bytes(size, "little")


def _change_array(draw: Draw, value: bytes, limits: list[int], floats: list[float]) -> bytes:
    """Change, drop or repeat an element of an array."""
    reader = _Reader(value)
    inner, count = reader.number("I"), reader.number("Q")
    values = [reader.value(inner) for _ in range(count)]
    if values:
        index = draw.randrange(count)
        kind = draw.randrange(4)
        if kind == 0:
            del values[index]
        elif kind == 1:
            values.append(values[index])
        elif kind == 2:
            values[index] = draw.choice(values)
        else:
            values[index] = any_of(draw, inner, limits, floats)
    return inner.to_bytes(4, "little") + struct.pack("<Q", len(values)) + b"".join(values)


def _change_tensor(draw: Draw, parts: Structure, limits: list[int]) -> None:
    index = draw.randrange(len(parts.tensors))
    tensor = parts.tensors[index]
    dimensions = len(tensor[2]) // 8
    kind = draw.randrange(7)
    if kind == 0:
        del parts.tensors[index]
        parts.tensor_count -= 1
    elif kind == 1:
        parts.tensors.append(list(tensor))
        parts.tensor_count += 1
    elif kind == 2:
        tensor[0] = draw.choice([*TEXTS, b"output.weight", b"rope_freqs.weight"])
    elif kind == 3 and dimensions:
        sizes = list(struct.unpack(f"<{dimensions}Q", tensor[2]))
        at = draw.randrange(dimensions)
        near = [sizes[at] + 1, sizes[at] - 1, 2 * sizes[at], draw.choice(limits)]
        sizes[at] = draw.choice(near) % (1 << 64)
        tensor[2] = struct.pack(f"<{dimensions}Q", *sizes)
    elif kind == 4:
        count = draw.choice([0, 1, 2, 3, 4, 5, 9])
        sizes = [draw.choice([1, 32, *limits]) % (1 << 64) for _ in range(count)]
        tensor[1:3] = [count.to_bytes(4, "little"), struct.pack(f"<{count}Q", *sizes)]
    elif kind == 5:
        tensor[3] = draw.randrange(45).to_bytes(4, "little")
    else:
        (offset,) = struct.unpack("<Q", tensor[4])
        near = [offset + 32, offset + 1, draw.choice(limits), len(parts.data)]
        tensor[4] = struct.pack("<Q", draw.choice(near) % (1 << 64))
