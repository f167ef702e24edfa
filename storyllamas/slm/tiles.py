"""Packing a matrix for the weight file: in tiles of 16 rows, as float32 or as small integers.

See weight_file.py for the layout and quantize.py for the rounding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storyllamas.slm.encoding import TILE_COLUMNS, Encoding
from storyllamas.slm.quantize import Float32, Int8

UInt8 = npt.NDArray[np.uint8]

TILE_ROWS = 16
ALIGNMENT = 64


def round_up(value: int, multiple: int) -> int:
    """Round up to a multiple of `multiple`."""
    return -(-value // multiple) * multiple


def tensor_bytes(shape: tuple[int, ...], encoding: Encoding) -> int:
    """Return the bytes of a tensor in the file, without the padding after it."""
    if len(shape) == 1:
        return 4 * shape[0]
    tiles, columns = round_up(shape[0], TILE_ROWS) // TILE_ROWS, shape[1]
    bits = encoding.type.spec.bits
    if not encoding.group_size:
        return tiles * TILE_ROWS * columns * bits // 8
    groups = round_up(columns, encoding.group_size) // encoding.group_size
    return tiles * (_scale_bytes(groups) + TILE_ROWS * groups * encoding.group_size * bits // 8)


def _scale_bytes(groups: int) -> int:
    return round_up(2 * TILE_ROWS * groups, ALIGNMENT)


def pack(tensor: Float32, encoding: Encoding, moments: Float32 | None = None) -> bytes:
    """Pack a vector or matrix as the file stores it.

    Args:
        tensor: [columns] or [rows, columns].
        encoding: how to store a matrix.
        moments: the mean of x xᵀ over the matrix's inputs x, [columns, columns], for a type that
            is calibrated; None: round the weights alone.
    """
    if tensor.ndim == 1:
        return tensor.astype("<f4").tobytes()
    multiple = max(1, encoding.group_size)
    padding = ((0, -tensor.shape[0] % TILE_ROWS), (0, -tensor.shape[1] % multiple))
    padded = np.pad(tensor.astype(np.float32), padding)
    spec = encoding.type.spec
    if spec.quantize is None:
        tiles = padded.reshape(-1, TILE_ROWS, padded.shape[1]).transpose(0, 2, 1)
        return np.ascontiguousarray(tiles, "<f4").tobytes()
    calibration = []
    if spec.calibrated and moments is not None:
        calibration = [np.pad(moments, padding[1])]
    scales, integers = spec.quantize(padded, encoding.group_size, *calibration)
    return _join(scales, _pack_integers(integers, spec.bits))


def unpack(packed: UInt8, shape: tuple[int, ...], encoding: Encoding) -> Float32:
    """Unpack the float32 tensor of `shape` from the bytes (a u8 array) that `pack` made."""
    if len(shape) == 1:
        return packed.view("<f4").astype(np.float32)
    rows, columns = shape
    if not encoding.group_size:
        tiles = packed.view("<f4").reshape(-1, columns, TILE_ROWS).transpose(0, 2, 1)
        return np.array(tiles.reshape(-1, columns)[:rows], np.float32, order="C")
    groups = round_up(columns, encoding.group_size) // encoding.group_size
    tiles = packed.reshape(round_up(rows, TILE_ROWS) // TILE_ROWS, -1)
    scales = _read_scales(tiles, groups)
    integers = _unpack_integers(tiles[:, _scale_bytes(groups) :], encoding.type.spec.bits)
    weight = integers.reshape(*scales.shape, encoding.group_size) * scales[..., None]
    return np.ascontiguousarray(weight.reshape(len(weight), -1)[:rows, :columns])


def _join(scales: Float32, weights: UInt8) -> bytes:
    """Put the scales [16 tiles, groups] in front of the weights [tiles, bytes] of each tile."""
    groups = scales.shape[1]
    packed = np.zeros((len(weights), _scale_bytes(groups) + weights.shape[1]), np.uint8)
    bits = (scales.view(np.uint32) >> 16).astype("<u2")
    by_group = bits.reshape(-1, TILE_ROWS, groups).transpose(0, 2, 1)
    packed[:, : 2 * TILE_ROWS * groups] = (
        np.ascontiguousarray(by_group).view(np.uint8).reshape(len(weights), -1)
    )
    packed[:, _scale_bytes(groups) :] = weights
    return packed.tobytes()


def _read_scales(tiles: UInt8, groups: int) -> Float32:
    """Read the scales [16 tiles, groups] of tiles [tiles, bytes]."""
    bits = np.ascontiguousarray(tiles[:, : 2 * TILE_ROWS * groups]).view("<u2")
    by_row = bits.reshape(-1, groups, TILE_ROWS).transpose(0, 2, 1).reshape(-1, groups)
    scales: Float32 = (by_row.astype(np.uint32) << 16).view(np.float32)
    return scales


def _pack_integers(integers: Int8, bits: int) -> UInt8:
    """Pack integers of `bits` bits [16 tiles, groups, group_size] into bytes [tiles, bytes]."""
    parts = 8 // bits  # integers in a byte
    biased = (integers.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    split = biased.reshape(len(integers), -1, parts, TILE_COLUMNS)
    blocks = split[:, :, 0].copy()
    for part in range(1, parts):
        blocks |= split[:, :, part] << bits * part
    return _interleave(blocks)


def _unpack_integers(packed: UInt8, bits: int) -> Float32:
    """Invert `_pack_integers`; return float32 [16 tiles, columns]."""
    blocks, mask = _deinterleave(packed), (1 << bits) - 1
    parts = [blocks >> bits * part & mask for part in range(8 // bits)]
    biased = np.stack(parts, axis=2).reshape(len(blocks), -1).astype(np.float32)
    integers: Float32 = biased - np.float32(1 << (bits - 1))
    return integers


def _interleave(blocks: UInt8) -> UInt8:
    """Put blocks of four bytes [16 tiles, blocks, 4] in the order of the file: [tiles, bytes]."""
    tiles: UInt8 = blocks.reshape(-1, TILE_ROWS, blocks.shape[1], TILE_COLUMNS).swapaxes(1, 2)
    return tiles.reshape(len(tiles), -1)


def _deinterleave(packed: UInt8) -> UInt8:
    """Invert `_interleave`; return blocks [16 tiles, blocks, 4]."""
    tiles: UInt8 = packed.reshape(len(packed), -1, TILE_ROWS, TILE_COLUMNS).swapaxes(1, 2)
    return tiles.reshape(len(packed) * TILE_ROWS, -1, TILE_COLUMNS)
