"""How a matrix lies in the weight file: in tiles of 16 rows, as float32 or as groups of 8 bits.

See weights.py for the layout.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

TILE_ROWS = 16
TILE_COLUMNS = 4

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class WeightType(IntEnum):
    """How a matrix is stored; the number in the header."""

    F32 = 0
    Q8 = 1


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is no smaller than `value`."""
    return -(-value // multiple) * multiple


def tensor_bytes(shape: tuple[int, ...], weight_type: WeightType, group_size: int) -> int:
    """Bytes that a tensor takes in the file, without the padding after it."""
    if len(shape) == 1:
        return 4 * shape[0]
    rows, columns = round_up(shape[0], TILE_ROWS), shape[1]
    if weight_type == WeightType.F32:
        return 4 * rows * columns
    groups = round_up(columns, group_size) // group_size
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
    tiles = round_up(rows, TILE_ROWS) // TILE_ROWS
    groups = round_up(columns, group_size) // group_size
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
