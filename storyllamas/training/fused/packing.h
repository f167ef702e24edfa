/* packing.h: matrices in the order in which a product reads them.
 *
 * A product takes its right matrix "packed": tiles of 32 rows (k) and 16 columns (n) whose 16 lines
 * are n0k0 n0k1 n1k0 n1k1 …, the tiles of the same columns one after the other. Every size is a
 * multiple of 32. A matrix in memory is row-major. */

#ifndef FUSED_PACKING_H
#define FUSED_PACKING_H

#include "vectors.h"

/* One line of a packed tile from the rows k and k + 1. */
static inline __m512i interleave(const bf16 *row, int64_t stride) {
    __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)row));
    __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(row + stride)));
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

/* Pack matrix [rows, columns]. */
static void pack(bf16 *to, const bf16 *from, int64_t stride, int64_t rows, int64_t columns) {
    for (int64_t k = 0; k < rows; k += 2)
        for (int64_t n = 0; n < columns; n += TILE)
            _mm512_storeu_si512(to + n * rows + k * TILE,
                                interleave(from + k * stride + n, stride));
}

/* Pack the transpose of matrix [rows, columns]. */
static void pack_transpose(bf16 *to, const bf16 *from, int64_t stride, int64_t rows,
                           int64_t columns) {
    __m512i r[16];
    for (int64_t n = 0; n < rows; n += TILE)
        for (int64_t k = 0; k < columns; k += BLOCK, to += TILE_SIZE) {
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + (n + i) * stride + k);
            transpose16(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * BLOCK, r[i]);
        }
}

/* Write the transpose of matrix [rows, columns] as tiles of 16 rows and 32 columns, for the left.
 */
static void tile_transpose(bf16 *to, const bf16 *from, int64_t stride, int64_t rows,
                           int64_t columns) {
    __m512i r[16];
    for (int64_t m = 0; m < columns; m += TILE)
        for (int64_t k = 0; k < rows; k += BLOCK, to += TILE_SIZE) {
            for (int i = 0; i < 16; i++) r[i] = interleave(from + (k + 2 * i) * stride + m, stride);
            transpose16(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * BLOCK, r[i]);
        }
}

/* Pack 32 rows from `first` on of weights [rows, columns], and of their transpose. */
static void pack_weights(bf16 *plain, bf16 *transposed, const float *weights, int64_t first,
                         int64_t rows, int64_t columns) {
    bf16 part[BLOCK * BLOCK];
    for (int64_t k = 0; k < columns; k += BLOCK) {
        for (int i = 0; i < BLOCK; i++) {
            const float *from = weights + (first + i) * columns + k;
            store16(part + i * BLOCK, _mm512_loadu_ps(from));
            store16(part + i * BLOCK + TILE, _mm512_loadu_ps(from + TILE));
        }
        for (int i = 0; i < 2; i++) {
            bf16 *to =
                transposed + ((first / TILE + i) * (columns / BLOCK) + k / BLOCK) * TILE_SIZE;
            pack_transpose(to, part + i * TILE * BLOCK, BLOCK, TILE, BLOCK);
            to = plain + ((k / TILE + i) * (rows / BLOCK) + first / BLOCK) * TILE_SIZE;
            for (int line = 0; line < 16; line++)
                _mm512_storeu_si512(to + line * BLOCK,
                                    interleave(part + 2 * line * BLOCK + i * TILE, BLOCK));
        }
    }
}

#endif
