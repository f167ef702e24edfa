"""Rounding matrices to 8 and 4 bits: groups of columns share a scale, which is a bfloat16.

A weight becomes scale * integer. The scale is rounded to bfloat16 first, so that the integers
compensate for its error. Everything here is deterministic. encoding.py lists the weight types.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]

Q4_LEVELS = (-8, -7.75, -7.5, -7.25, -7, -6.75, -6.5, -6.25, -6, -8.25, -8.5, -8.75, -9)
"""Candidate values of a group's largest weight in units of the scale, before it is rounded and
clipped; the first of equally good ones wins."""

_DAMPING = 0.01
"""Added to the diagonal of the moments, as a share of its mean, so that no correction is huge."""

_BLOCK = 1 << 16  # weights in one step of the search: they fit into the cache


def bfloat16_nearest(x: Float32) -> Float32:
    """Round finite numbers to the nearest bfloat16, ties to even; return float32."""
    bits = x.view(np.uint32)
    return _cut(bits + np.uint32(0x7FFF) + (bits >> 16 & 1))


def bfloat16_up(x: Float32) -> Float32:
    """Round finite numbers that are not negative up to a bfloat16; return float32."""
    return _cut(x.view(np.uint32) + np.uint32(0xFFFF))


def _cut(bits: npt.NDArray[np.uint32]) -> Float32:
    cut: Float32 = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return cut


def to_integers(grouped: Float32, scales: Float32, lowest: int, highest: int) -> Int8:
    """Return the integers from lowest to highest that times their scale are nearest to weights.

    Args:
        grouped: [..., groups, group_size] weights.
        scales: [..., groups]; a scale of zero gives integers of zero.
        lowest: the smallest integer.
        highest: the largest integer.
    """
    divisor = np.where(scales == 0, np.float32(np.inf), scales)[..., None]
    return np.clip(np.rint(grouped / divisor), lowest, highest).astype(np.int8)


def quantize_q8(weight: Float32, group_size: int) -> tuple[Float32, Int8]:
    """Round a matrix to 8 bits; no weight is clipped.

    Args:
        weight: [rows, columns], columns a multiple of group_size.
        group_size: columns that share a scale.

    Returns:
        scales [rows, groups], at least max|weight| / 127 of the group, and integers in -127…127
        [rows, groups, group_size].
    """
    grouped = weight.reshape(len(weight), -1, group_size)
    scales = bfloat16_up(np.abs(grouped).max(axis=2) / np.float32(127))
    return scales, to_integers(grouped, scales, -127, 127)


def quantize_q4(
    weight: Float32, group_size: int, moments: Float32 | None = None
) -> tuple[Float32, Int8]:
    """Round a matrix to 4 bits with scales that make the squared error of each group small.

    The search is that of llama.cpp's `make_qx_quants`: it maps the largest weight of a group to
    each of `Q4_LEVELS` in turn, rounds the group, and fits the scale by least squares. The level
    with the smallest error wins. The scale is negative if the largest weight is positive, since
    -8 reaches further than 7. Measured on trained weights, a search over every scale of either
    sign leaves 0.1 % less error, and plain rounding with the largest weight at -8 leaves 8 % more.

    With `moments`, the error of the matrix's product counts instead: columns are rounded one after
    the other, and the columns that are left compensate for the error (GPTQ; Frantar et al. 2023,
    arXiv:2210.17323).

    Args:
        weight: [rows, columns], columns a multiple of group_size.
        group_size: columns that share a scale.
        moments: [columns, columns], the mean of x xᵀ over the inputs x of the matrix; None:
            unknown.

    Returns:
        scales [rows, groups] and integers in -8…7 [rows, groups, group_size].
    """
    grouped = weight.reshape(len(weight), -1, group_size)
    if moments is not None:
        scales, integers = _quantize_gptq(weight, group_size, moments)
        return scales, integers.reshape(grouped.shape)
    groups, each = weight.reshape(-1, group_size), max(1, _BLOCK // group_size)
    found = [_search_q4(groups[start : start + each]) for start in range(0, len(groups), each)]
    scales = np.concatenate(found).reshape(grouped.shape[:2])
    return scales, to_integers(grouped, scales, -8, 7)


def _search_q4(groups: Float32, importance: Float32 | None = None) -> Float32:
    """Find the best scale of each group, a bfloat16.

    Args:
        groups: [groups, group_size] weights.
        importance: [group_size], the weight of each column's squared error; None: all the same.
    """
    if importance is None:
        importance = np.ones(groups.shape[1], np.float32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0]
    # Numbers relative to the largest weight have squares that neither overflow nor vanish.
    relative = groups / np.where(largest == 0, np.float32(1), largest)[:, None]
    weighted = relative * importance
    best, scales = np.full(len(groups), -1, np.float32), np.zeros(len(groups), np.float32)
    for level in Q4_LEVELS:
        integers = np.clip(np.rint(relative * np.float32(level)), -8, 7)
        product = np.einsum("gc,gc->g", weighted, integers)
        square = np.square(integers) @ importance
        # The best scale is product / square, which reduces the error by product^2 / square.
        scale = product / np.where(square == 0, np.float32(1), square)
        gain = product * scale
        np.copyto(scales, scale, where=gain > best)
        np.maximum(best, gain, out=best)
    return bfloat16_nearest(scales * largest)


def _quantize_gptq(weight: Float32, group_size: int, moments: Float32) -> tuple[Float32, Int8]:
    """Return scales [rows, groups] and integers [rows, columns] by GPTQ."""
    factor = _inverse_factor(moments)
    left = np.ascontiguousarray(weight.T, np.float64)  # [columns, rows], not rounded yet
    scales, integers = [], np.empty(left.shape, np.int8)
    for start in range(0, len(left), group_size):
        stop = start + group_size
        importance = factor.diagonal()[start:stop].astype(np.float32) ** -2
        group = np.ascontiguousarray(left[start:stop].T, np.float32)
        scale = _search_q4(group, importance / importance.max())
        divisor = np.where(scale == 0, np.inf, scale)
        errors = np.empty((group_size, left.shape[1]))
        for column in range(start, stop):
            integers[column] = np.clip(np.rint(left[column] / divisor), -8, 7)
            error = (left[column] - integers[column] * scale) / factor[column, column]
            left[column + 1 : stop] -= factor[column, column + 1 : stop, None] * error
            errors[column - start] = error
        left[stop:] -= factor[start:stop, stop:].T @ errors
        scales.append(scale)
    return np.stack(scales, axis=1), np.ascontiguousarray(integers.T)


def _inverse_factor(moments: Float32) -> npt.NDArray[np.float64]:
    """Return the upper Cholesky factor of the inverse of the moments.

    Row c has the factors by which later columns compensate for an error in column c.
    """
    mean = float(moments.diagonal().mean(dtype=np.float64))
    damped = moments + np.eye(len(moments)) * (_DAMPING * mean or 1.0)
    factor: npt.NDArray[np.float64] = np.linalg.cholesky(np.linalg.inv(damped)).T
    return factor
