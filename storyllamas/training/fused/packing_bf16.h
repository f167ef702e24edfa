/* packing_bf16.h: the functions of packing.h for matrices in bfloat16. */

#ifndef FUSED_PACKING_BF16_H
#define FUSED_PACKING_BF16_H

#include "matrix.h"

/* One line of a packed tile from the rows k and k + 1. */
static inline __m512i interleave(const number *row, int64_t stride) {
    __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)row));
    __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(row + stride)));
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

/* The rows of a block are asked for while the block above is packed. */
static void pack(number *to, matrix from, int64_t rows, int64_t columns) {
    for (int64_t k = 0; k < rows; k += BLOCK)
        for (int64_t n = 0; n < columns; n += TILE)
            for (int64_t i = k; i < k + BLOCK; i += 2) {
                const number *row = place(from, i, n);
                if (k + BLOCK < rows)
                    __builtin_prefetch(row + 2 * from.down + n / TILE % 2 * from.row);
                _mm512_storeu_si512(to + n * rows + i * TILE, interleave(row, from.row));
            }
}

static void pack_transpose(number *to, const number *from, int64_t stride, int64_t rows,
                           int64_t columns) {
    __m512i r[16];
    for (int64_t n = 0; n < rows; n += TILE)
        for (int64_t k = 0; k < columns; k += BLOCK, to += TILE_SIZE) {
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + (n + i) * stride + k);
            transpose16(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * BLOCK, r[i]);
        }
}

/* Write the transpose of 32 rows and 16 columns; 16 rows are `down` numbers. */
static inline void transpose_columns(number *to, int64_t to_stride, const number *from,
                                     int64_t stride, int64_t down) {
    __m512i r[16];
    for (int i = 0; i < 16; i++)
        r[i] = interleave(from + i / 8 * down + i % 8 * 2 * stride, stride);
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * to_stride, r[i]);
}

static void tile_transpose(number *to, matrix from, int64_t rows, int64_t columns) {
    for (int64_t m = 0; m < columns; m += TILE)
        for (int64_t k = 0; k < rows; k += BLOCK, to += TILE_SIZE)
            transpose_columns(to, BLOCK, place(from, k, m), from.row, from.down);
}

static void transpose(number *to, const number *from, int64_t rows, int64_t columns) {
    for (int64_t m = 0; m < columns; m += TILE)
        for (int64_t k = 0; k < rows; k += BLOCK)
            transpose_columns(to + m * rows + k, rows, from + k * columns + m, columns,
                              TILE * columns);
}

#endif
