"""How a matrix lies in the weight file: in tiles of 16 rows, as float32, 8 bits or 4 bits.

See weights.py for the layout and quantize.py for the rounding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storyllamas.slm.encoding import Encoding, WeightType
from storyllamas.slm.quantize import Float32, Int8, quantize_q4, quantize_q8

UInt8 = npt.NDArray[np.uint8]

TILE_ROWS = 16
TILE_COLUMNS = 4
ALIGNMENT = 64


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is no smaller than `value`."""
    return -(-value // multiple) * multiple


def tensor_bytes(shape: tuple[int, ...], encoding: Encoding) -> int:
    """Bytes that a tensor takes in the file, without the padding after it."""
    if len(shape) == 1:
        return 4 * shape[0]
    tiles, columns = round_up(shape[0], TILE_ROWS) // TILE_ROWS, shape[1]
    if encoding.type == WeightType.F32:
        return tiles * TILE_ROWS * 4 * columns
    groups = round_up(columns, encoding.group_size) // encoding.group_size
    bits = 8 if encoding.type == WeightType.Q8 else 4
    return tiles * (_scale_bytes(groups) + TILE_ROWS * groups * encoding.group_size * bits // 8)


def _scale_bytes(groups: int) -> int:
    return round_up(2 * TILE_ROWS * groups, ALIGNMENT)


def pack(tensor: Float32, encoding: Encoding, moments: Float32 | None = None) -> bytes:
    """The bytes of a vector or matrix as the file stores it.

    Args:
        tensor: [columns] or [rows, columns].
        encoding: how a matrix is stored.
        moments: for q4, the mean of x xᵀ over the matrix's inputs x, [columns, columns].
    """
    if tensor.ndim == 1:
        return tensor.astype("<f4").tobytes()
    multiple = max(1, encoding.group_size)
    padding = ((0, -tensor.shape[0] % TILE_ROWS), (0, -tensor.shape[1] % multiple))
    padded = np.pad(tensor.astype(np.float32), padding)
    if encoding.type == WeightType.F32:
        tiles = padded.reshape(-1, TILE_ROWS, padded.shape[1]).transpose(0, 2, 1)
        return np.ascontiguousarray(tiles, "<f4").tobytes()
    if encoding.type == WeightType.Q8:
        scales, integers = quantize_q8(padded, encoding.group_size)
        return _join(scales, _pack_bytes(integers))
    if moments is not None:
        moments = np.pad(moments, padding[1])
    scales, integers = quantize_q4(padded, encoding.group_size, moments)
    return _join(scales, _pack_nibbles(integers))


def unpack(packed: UInt8, shape: tuple[int, ...], encoding: Encoding) -> Float32:
    """The float32 tensor of `shape` in the bytes (a u8 array) that `pack` made."""
    if len(shape) == 1:
        return packed.view("<f4").astype(np.float32)
    rows, columns = shape
    if encoding.type == WeightType.F32:
        tiles = packed.view("<f4").reshape(-1, columns, TILE_ROWS).transpose(0, 2, 1)
        return np.array(tiles.reshape(-1, columns)[:rows], np.float32, order="C")
    groups = round_up(columns, encoding.group_size) // encoding.group_size
    tiles = packed.reshape(round_up(rows, TILE_ROWS) // TILE_ROWS, -1)
    scales = _read_scales(tiles, groups)
    unpack_weights = _unpack_bytes if encoding.type == WeightType.Q8 else _unpack_nibbles
    integers = unpack_weights(tiles[:, _scale_bytes(groups) :])
    weight = integers.reshape(*scales.shape, encoding.group_size) * scales[..., None]
    return np.ascontiguousarray(weight.reshape(len(weight), -1)[:rows, :columns])


def _join(scales: Float32, weights: UInt8) -> bytes:
    """Tiles [tiles, bytes] of weights, each after its scales [16 tiles, groups]."""
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
    """The scales [16 tiles, groups] of tiles [tiles, bytes]."""
    bits = np.ascontiguousarray(tiles[:, : 2 * TILE_ROWS * groups]).view("<u2")
    by_row = bits.reshape(-1, groups, TILE_ROWS).transpose(0, 2, 1).reshape(-1, groups)
    scales: Float32 = (by_row.astype(np.uint32) << 16).view(np.float32)
    return scales


def _pack_bytes(integers: Int8) -> UInt8:
    """Integers in -127…127 [16 tiles, groups, group_size] as bytes [tiles, bytes]."""
    biased = (integers.astype(np.int16) + 128).astype(np.uint8)
    return _interleave(biased.reshape(len(integers), -1, TILE_COLUMNS))


def _unpack_bytes(packed: UInt8) -> Float32:
    """What `_pack_bytes` packed, as float32 [16 tiles, columns]."""
    integers: Float32 = _deinterleave(packed).astype(np.float32) - np.float32(128)
    return integers.reshape(len(integers), -1)


def _pack_nibbles(integers: Int8) -> UInt8:
    """Integers in -8…7 [16 tiles, groups, group_size] as bytes of two [tiles, bytes]."""
    biased = (integers + np.int8(8)).astype(np.uint8)
    halves = biased.reshape(len(integers), -1, 2, TILE_COLUMNS)
    return _interleave(halves[:, :, 0] | halves[:, :, 1] << 4)


def _unpack_nibbles(packed: UInt8) -> Float32:
    """What `_pack_nibbles` packed, as float32 [16 tiles, columns]."""
    blocks = _deinterleave(packed)
    halves = np.stack([blocks & 15, blocks >> 4], axis=2).astype(np.float32)
    integers: Float32 = halves.reshape(len(blocks), -1) - np.float32(8)
    return integers


def _interleave(blocks: UInt8) -> UInt8:
    """Blocks of four bytes [16 tiles, blocks, 4] as they lie in the file: [tiles, bytes]."""
    tiles: UInt8 = blocks.reshape(-1, TILE_ROWS, blocks.shape[1], TILE_COLUMNS).swapaxes(1, 2)
    return tiles.reshape(len(tiles), -1)


def _deinterleave(packed: UInt8) -> UInt8:
    """What `_interleave` made of blocks [16 tiles, blocks, 4]."""
    tiles: UInt8 = packed.reshape(len(packed), -1, TILE_ROWS, TILE_COLUMNS).swapaxes(1, 2)
    return tiles.reshape(len(packed) * TILE_ROWS, -1, TILE_COLUMNS)
