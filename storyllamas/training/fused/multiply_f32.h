/* multiply_f32.h: a product of 32 x 32 numbers in float32. See product.h. */

#ifndef FUSED_MULTIPLY_F32_H
#define FUSED_MULTIPLY_F32_H

#include "packing.h"

/* Rows at a time: their sums of two vectors stay in registers, of which AVX-512 has 32, AVX2 16. */
#ifdef __AVX512F__
enum { TOGETHER = 8 };
#else
enum { TOGETHER = 6 };
#endif

/* Set out[rows][2 vectors] to the product of rows of `a`, which are `row` numbers apart, and the
 * columns of two vectors: those at b, and those b_next numbers behind. `adds`: add it instead. */
__attribute__((always_inline)) static inline void
multiply_rows(int rows, const number *a, int64_t row, int64_t right, const number *b,
              int64_t b_next, int64_t k_tiles, float *out, int64_t stride, int adds) {
    vector sums[TOGETHER][2];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < 2; j++)
            sums[i][j] = adds ? load_f32(out + i * stride + j * LANES) : repeat(0);
    for (int64_t k = 0; k < k_tiles; k++, a += right, b += TILE_SIZE)
        for (int line = 0; line < BLOCK; line++) {
            vector first = load(b + line * TILE), second = load(b + line * TILE + b_next);
#ifndef __AVX512F__ /* With 16 registers, GCC would load both again for each row. */
            __asm__("" : "+x"(first), "+x"(second));
#endif
            for (int i = 0; i < rows; i++) {
                vector x = repeat(a[i * row + line]);
                sums[i][0] += x * first;
                sums[i][1] += x * second;
            }
        }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < 2; j++) store_f32(out + i * stride + j * LANES, sums[i][j]);
}

/* Some rows of `b` at a time stay in the L1 cache for all rows of `a`. Inlined into `product`, the
 * inner loop would have too few registers. */
__attribute__((noinline)) static void multiply(matrix a, matrix b, int64_t k_tiles, float *out,
                                               int64_t stride, int adds, const ahead *next) {
    enum { CACHED_TILES = 4, ACROSS = 2 * LANES };
    (void)next;
    for (int64_t k = 0; k < k_tiles; k += CACHED_TILES) {
        int64_t count = k_tiles - k < CACHED_TILES ? k_tiles - k : CACHED_TILES;
        for (int n = 0; n < BLOCK; n += ACROSS) {
            const number *columns = b.at + k * TILE_SIZE + n / TILE * b.down;
            int64_t second = (int)LANES < (int)TILE ? LANES : b.down;
            for (int m = 0; m < BLOCK; m += TILE) {
                const number *rows = a.at + m / TILE * a.down + k * a.right;
                int i = 0;
                for (; i + TOGETHER <= TILE; i += TOGETHER)
                    multiply_rows(TOGETHER, rows + i * a.row, a.row, a.right, columns, second,
                                  count, out + (m + i) * stride + n, stride, adds || k > 0);
                if (TILE % TOGETHER)
                    multiply_rows(TILE % TOGETHER, rows + i * a.row, a.row, a.right, columns,
                                  second, count, out + (m + i) * stride + n, stride, adds || k > 0);
            }
        }
    }
}

#endif
