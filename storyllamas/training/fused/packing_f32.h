/* packing_f32.h: the functions of packing.h for matrices in float32. */

#ifndef FUSED_PACKING_F32_H
#define FUSED_PACKING_F32_H

#include "matrix.h"

static void pack(number *to, matrix from, int64_t rows, int64_t columns) {
    for (int64_t k = 0; k < rows; k++)
        for (int64_t n = 0; n < columns; n += TILE)
            memcpy(to + n * rows + k * TILE, place(from, k, n), TILE * sizeof *to);
}

static void pack_transpose(number *to, const number *from, int64_t stride, int64_t rows,
                           int64_t columns) {
    for (int64_t n = 0; n < rows; n += TILE)
        for (int64_t k = 0; k < columns; k += TILE, to += TILE * TILE)
            transpose_tile(to, TILE, from + n * stride + k, stride);
}

static void tile_transpose(number *to, matrix from, int64_t rows, int64_t columns) {
    for (int64_t m = 0; m < columns; m += TILE)
        for (int64_t k = 0; k < rows; k += BLOCK, to += TILE_SIZE) {
            transpose_tile(to, BLOCK, place(from, k, m), from.row);
            transpose_tile(to + TILE, BLOCK, place(from, k + TILE, m), from.row);
        }
}

static void transpose(number *to, const number *from, int64_t rows, int64_t columns) {
    for (int64_t m = 0; m < columns; m += TILE)
        for (int64_t k = 0; k < rows; k += TILE)
            transpose_tile(to + m * rows + k, rows, from + k * columns + m, columns);
}

#endif
