"""Weight types, group sizes, and how a weight file stores its matrices.

To add a weight type, add it to `WeightType` and `SPECS`, and to the C engine's table of types
(csrc/matrix.c). The command line and params.yaml accept every type of `SPECS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import NamedTuple

from storyllamas.errors import UserError
from storyllamas.slm.limits import MAX_GROUP_SIZE
from storyllamas.slm.quantize import Float32, Int8, quantize_q4, quantize_q8

TILE_COLUMNS = 4  # bytes of a row that lie next to each other in a tile


class WeightType(IntEnum):
    """A type of stored weights; its value is the number in the header."""

    F32 = 0
    Q8 = 1
    Q4 = 2

    @property
    def label(self) -> str:
        """The name that users read and write, such as q8."""
        return self.name.lower()

    @property
    def spec(self) -> TypeSpec:
        """The row of `SPECS`."""
        return SPECS[self]


class TypeSpec(NamedTuple):
    """The facts of a weight type.

    Attributes:
        bits: bits per weight, without the scales.
        group_size: the default number of columns that share a scale; 0: the type has no scales.
        quantize: takes a matrix [rows, columns], the group size and, if `calibrated`, the moments;
            returns the scales [rows, groups] and integers [rows, groups, group_size].
        calibrated: `quantize` can use the moments of the matrix's inputs.
    """

    bits: int
    group_size: int
    quantize: Callable[..., tuple[Float32, Int8]] | None = None
    calibrated: bool = False

    @property
    def group_multiple(self) -> int:
        """The number that divides every group size: the columns in 4 bytes; 0 without scales."""
        return TILE_COLUMNS * 8 // self.bits if self.quantize else 0


SPECS = {
    WeightType.F32: TypeSpec(32, 0),
    WeightType.Q8: TypeSpec(8, 128, quantize_q8),
    WeightType.Q4: TypeSpec(4, 64, quantize_q4, calibrated=True),
}
"""Every weight type. Quantized weights have 8 bits or fewer, and integers from -2^(bits - 1) up."""

GROUP_SIZES = {kind.label: spec.group_size for kind, spec in SPECS.items()}
"""The default group size of each type by its label; 0 for types without scales."""


class Encoding(NamedTuple):
    """How a matrix is stored.

    Attributes:
        type: the weight type.
        group_size: the number of columns that share a scale; 0 for a type without scales.
    """

    type: WeightType
    group_size: int

    @property
    def is_possible(self) -> bool:
        """Whether the type can have the group size."""
        multiple = self.type.spec.group_multiple
        if not multiple:
            return self.group_size == 0
        return 0 < self.group_size <= MAX_GROUP_SIZE and self.group_size % multiple == 0

    @property
    def allowed(self) -> str:
        """The group sizes that the type can have, in words."""
        multiple = self.type.spec.group_multiple
        return f"a multiple of {multiple} up to {MAX_GROUP_SIZE}" if multiple else "0"


class Storage(NamedTuple):
    """How a weight file stores its matrices.

    Attributes:
        layers: the encoding of the matrices in the layers.
        embedding: the encoding of the embedding and the classifier.
    """

    layers: Encoding
    embedding: Encoding

    def of(self, name: str) -> Encoding:
        """Return the encoding of the matrix with that name."""
        return self.layers if name.startswith("layers.") else self.embedding

    def check(self) -> None:
        """Check that a weight file can be stored this way.

        Raises:
            UserError: a group size is impossible, or only some matrices are in f32.
        """
        if (self.layers.type == WeightType.F32) != (self.embedding.type == WeightType.F32):
            raise UserError(
                f"the layers are {self.layers.type.label} and the embedding is "
                f"{self.embedding.type.label}: store both in f32 or neither"
            )
        for encoding in self:
            if not encoding.is_possible:
                raise UserError(
                    f"the group size of {encoding.type.label} is {encoding.group_size}: "
                    f"use {encoding.allowed}"
                )


def storage(name: str, group_sizes: Mapping[str, int] = GROUP_SIZES) -> Storage:
    """Store all matrices of a file in the same weight type.

    Args:
        name: the label of the weight type.
        group_sizes: the group size of each type by its label; `GROUP_SIZES` fills the gaps.
    """
    size = (GROUP_SIZES | dict(group_sizes))[name]
    encoding = Encoding(WeightType[name.upper()], size)
    return Storage(encoding, encoding)


F32 = storage("f32")
