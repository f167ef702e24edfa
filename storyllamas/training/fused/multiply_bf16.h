/* multiply_bf16.h: a product of 32 x 32 numbers in bfloat16, by AMX or AVX-512 BF16. See product.h.
 */

#ifndef FUSED_MULTIPLY_BF16_H
#define FUSED_MULTIPLY_BF16_H

#include "packing.h"

#ifdef __AMX_BF16__
#define USES_AMX
static const uint8_t TILES[64] __attribute__((aligned(64))) = {
    1,         [16] = 64, [18] = 64, [20] = 64, [22] = 64, [24] = 64,
    [26] = 64, [28] = 64, [30] = 64, [48] = 16, [49] = 16, [50] = 16,
    [51] = 16, [52] = 16, [53] = 16, [54] = 16, [55] = 16};

static void configure(const uint8_t tiles[64]) {
    _tile_loadconfig(tiles);
}

/* GCC believes that the instruction writes 8 bytes, not 64. */
static void save_configuration(uint8_t tiles[64]) {
    _tile_storeconfig(tiles);
    __asm__ volatile("" ::"r"(tiles) : "memory");
}

static inline void ask(lines of, int64_t k) {
    const number *at = of.at + k * of.right;
    for (int64_t i = 0; i < of.count; i++, at += of.row) {
        _mm_prefetch(at, _MM_HINT_T1);
        _mm_prefetch(at + of.down, _MM_HINT_T1);
    }
}

/* Tiles of `b` are loaded by an instruction that does not keep them in the L1 cache, where the rows
 * of `a` are to stay. GCC does not know that these instructions read memory. */
static inline void multiply(matrix a, matrix b, int64_t k_tiles, float *out, int64_t stride,
                            int adds, const ahead *next) {
    __asm__ volatile("" ::: "memory");
    float *below = out + TILE * stride;
    const number *target = next->target.at;
    int64_t row_bytes = 4 * stride, target_rows = (TILE + k_tiles - 1) / k_tiles;
    if (adds) {
        _tile_loadd(0, out, row_bytes);
        _tile_loadd(1, out + TILE, row_bytes);
        _tile_loadd(2, below, row_bytes);
        _tile_loadd(3, below + TILE, row_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < k_tiles; k++) {
        _tile_loadd(4, a.at + k * a.right, a.row * 2);
        _tile_stream_loadd(6, b.at + k * TILE_SIZE, 64);
        _tile_stream_loadd(7, b.at + b.down + k * TILE_SIZE, 64);
        _tile_loadd(5, a.at + a.down + k * a.right, a.row * 2);
        ask(next->a, k);
        ask(next->b, k);
        if (target)
            for (int64_t i = k * target_rows; i < (k + 1) * target_rows && i < TILE; i++) {
                __builtin_prefetch(target + i * next->target.row, 1);
                __builtin_prefetch(target + i * next->target.row + next->target.down, 1);
            }
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, row_bytes);
    _tile_stored(1, out + TILE, row_bytes);
    _tile_stored(2, below, row_bytes);
    _tile_stored(3, below + TILE, row_bytes);
}
#else
static inline void multiply(matrix a, matrix b, int64_t k_tiles, float *out, int64_t stride,
                            int adds, const ahead *next) {
    (void)next;
    for (int m = 0; m < BLOCK; m += 8) {
        const number *first = a.at + m / TILE * a.down + m % TILE * a.row;
        __m512 sums[8][2];
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 2; j++)
                sums[i][j] =
                    adds ? _mm512_loadu_ps(out + (m + i) * stride + j * TILE) : _mm512_setzero_ps();
        for (int64_t k = 0; k < k_tiles; k++)
            for (int line = 0; line < 16; line++) {
                const number *from = b.at + k * TILE_SIZE + line * BLOCK;
                __m512bh b0 = (__m512bh)_mm512_loadu_si512(from);
                __m512bh b1 = (__m512bh)_mm512_loadu_si512(from + b.down);
                for (int i = 0; i < 8; i++) {
                    int32_t pair;
                    memcpy(&pair, first + k * a.right + i * a.row + 2 * line, 4);
                    __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                    sums[i][0] = _mm512_dpbf16_ps(sums[i][0], both, b0);
                    sums[i][1] = _mm512_dpbf16_ps(sums[i][1], both, b1);
                }
            }
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 2; j++)
                _mm512_storeu_ps(out + (m + i) * stride + j * TILE, sums[i][j]);
    }
}
#endif

#endif
