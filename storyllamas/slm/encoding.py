"""Weight types, group sizes, and how a weight file stores its matrices."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from storyllamas.errors import UserError

LARGEST_GROUP = 1 << 14


class WeightType(IntEnum):
    """How a matrix is stored; the number in the header."""

    F32 = 0
    Q8 = 1
    Q4 = 2


GROUP_MULTIPLES = {WeightType.Q8: 4, WeightType.Q4: 8}
"""What a group size is a multiple of."""


class Encoding(NamedTuple):
    """How a matrix is stored: the type, and how many columns share a scale (0 for f32)."""

    type: WeightType
    group_size: int

    @property
    def is_possible(self) -> bool:
        """Whether the group size is one that the type can have."""
        if self.type == WeightType.F32:
            return self.group_size == 0
        in_range = 0 < self.group_size <= LARGEST_GROUP
        return in_range and self.group_size % GROUP_MULTIPLES[self.type] == 0


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
