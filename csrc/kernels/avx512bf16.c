/* avx512bf16.c: the one kernel that AVX-512's bf16 dot product makes faster. */

#include "sets.h"

#ifdef SL_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bf16")
#endif

#include "avx512.h"

INLINE __m512bh bf16(__m512i bits) {
    return (__m512bh)bits;
}

INLINE __m512bh repeat_pair(const uint16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return bf16(_mm512_set1_epi32(pair));
}

INLINE void block(float *y, size_t y_stride, const uint16_t *w, size_t tile_stride, size_t tiles,
                  size_t columns, const uint16_t *x, size_t x_stride, size_t n) {
    __m512 sum[MOST][CHAINS];
    UNROLL for (size_t a = 0; a < tiles * n; a++) sum[a][0] = sum[a][1] = _mm512_setzero_ps();
    const size_t pairs = columns / 2, even = pairs / CHAINS * CHAINS;
    for (size_t p = 0; p < even; p += CHAINS)
        UNROLL for (size_t chain = 0; chain < CHAINS; chain++)
            UNROLL for (size_t t = 0; t < tiles; t++) {
            const size_t c = 2 * (p + chain);
            const __m512bh weights = bf16(_mm512_loadu_si512(w + t * tile_stride + c * ROWS));
            UNROLL for (size_t i = 0; i < n; i++) sum[t * n + i][chain] =
                _mm512_dpbf16_ps(sum[t * n + i][chain], weights, repeat_pair(x + i * x_stride + c));
        }
    for (size_t c = 2 * even; c < columns; c += 2)
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t i = 0; i < n; i++)
            sum[t * n + i][0] =
                _mm512_dpbf16_ps(sum[t * n + i][0],
                                 bf16(_mm512_loadu_si512(w + t * tile_stride + c * ROWS)),
                                 repeat_pair(x + i * x_stride + c));
    UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t i = 0; i < n; i++)
        _mm512_storeu_ps(y + i * y_stride + t * ROWS,
                         _mm512_add_ps(sum[t * n + i][0], sum[t * n + i][1]));
}

void sl_matmul_bf16_native(float *y, size_t y_stride, const uint16_t *tiles, size_t tile_stride,
                           size_t tile_count, size_t columns, const uint16_t *x, size_t x_stride,
                           size_t n) {
#define BLOCK(tile, tile_n, i, i_n)                                                                \
    block(y + (i) * y_stride + (tile) * ROWS, y_stride, tiles + (tile) * tile_stride, tile_stride, \
          tile_n, columns, x + (i) * x_stride, x_stride, i_n)
    FOR_BLOCKS(BLOCK, tile_count, n, MOST)
#undef BLOCK
}

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
