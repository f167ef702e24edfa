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

INLINE void block(float *y, size_t y_stride, const uint16_t *w, size_t columns, const uint16_t *x,
                  size_t x_stride, size_t n) {
    __m512 sum[MOST][CHAINS];
    UNROLL for (size_t i = 0; i < n; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    size_t c = 0;
    for (; c + 2 * CHAINS <= columns; c += 2 * CHAINS)
        UNROLL for (size_t chain = 0; chain < CHAINS; chain++) {
            const size_t pair = c + 2 * chain;
            const __m512bh weights = bf16(_mm512_loadu_si512(w + pair * ROWS));
            UNROLL for (size_t i = 0; i < n; i++) sum[i][chain] =
                _mm512_dpbf16_ps(sum[i][chain], weights, repeat_pair(x + i * x_stride + pair));
        }
    if (c < columns)
        UNROLL for (size_t i = 0; i < n; i++) sum[i][0] = _mm512_dpbf16_ps(
            sum[i][0], bf16(_mm512_loadu_si512(w + c * ROWS)), repeat_pair(x + i * x_stride + c));
    UNROLL for (size_t i = 0; i < n; i++)
        _mm512_storeu_ps(y + i * y_stride, _mm512_add_ps(sum[i][0], sum[i][1]));
}

void sl_matmul_bf16_native(float *y, size_t y_stride, const uint16_t *tiles, size_t tile_stride,
                           size_t tile_count, size_t columns, const uint16_t *x, size_t x_stride,
                           size_t n) {
#define BLOCK(tile, i, rows)                                                                       \
    block(y + (i) * y_stride + (tile) * ROWS, y_stride, tiles + (tile) * tile_stride, columns,     \
          x + (i) * x_stride, x_stride, rows)
    FOR_TILES(BLOCK, tile_count, n)
#undef BLOCK
}

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
