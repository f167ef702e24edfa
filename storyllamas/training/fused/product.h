/* product.h: products of bfloat16 matrices, with float32 sums, on AMX or AVX-512 BF16. */

#ifndef FUSED_PRODUCT_H
#define FUSED_PRODUCT_H

#include <string.h>

#include "packing.h"

/* A left matrix: numbers between rows, between tiles below each other, and between tiles side by
 * side. */
typedef struct {
    const bf16 *at;
    int64_t row, down, right;
} left;

static left rows_of(const bf16 *at, int64_t stride) {
    return (left){at, stride, TILE * stride, BLOCK};
}
static left tiles_of(const bf16 *at, int64_t k) {
    return (left){at, BLOCK, k * TILE, TILE_SIZE};
}

/* How a product is stored: as it is, or its transpose added to or set. */
typedef enum { ROUND, SET, ADD, SET_TRANSPOSE, ADD_TRANSPOSE } mode;

typedef struct {
    void *at;
    int64_t stride;
    mode mode;
    /* With ROUND, the product times `times` plus `plus_times` times another matrix of the same
     * stride. */
    const bf16 *plus;
    float plus_times, times;
} target;

static target target_of(void *at, int64_t stride, mode how) {
    return (target){at, stride, how, NULL, 0, 1};
}

/* `multiply` multiplies 32 rows of `a` by 32 columns of the packed `b`. It asks for the columns at
   `next`, which the first rows read from a far cache; NULL: for none. */
#ifdef __AMX_BF16__
static const uint8_t TILES[64] __attribute__((aligned(64))) = {
    1,         [16] = 64, [18] = 64, [20] = 64, [22] = 64, [24] = 64,
    [26] = 64, [28] = 64, [30] = 64, [48] = 16, [49] = 16, [50] = 16,
    [51] = 16, [52] = 16, [53] = 16, [54] = 16, [55] = 16};

static void configure(const uint8_t tiles[64]) {
    __asm__ volatile("ldtilecfg %0" ::"m"(*(const uint8_t (*)[64])tiles));
}

static void save_configuration(uint8_t tiles[64]) {
    __asm__ volatile("sttilecfg %0" : "=m"(*(uint8_t (*)[64])tiles));
}

static inline void multiply(left a, const bf16 *b, int64_t b_stride, int64_t k_tiles, float out[],
                            const bf16 *next) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < k_tiles; k++) {
        _tile_loadd(4, a.at + k * a.right, a.row * 2);
        _tile_loadd(6, b + k * TILE_SIZE, 64);
        _tile_loadd(7, b + b_stride + k * TILE_SIZE, 64);
        _tile_loadd(5, a.at + a.down + k * a.right, a.row * 2);
        if (next)
            for (int i = 0; i < 16; i++) {
                const bf16 *line = next + k * TILE_SIZE + i * BLOCK;
                _mm_prefetch((const char *)line, _MM_HINT_T1);
                _mm_prefetch((const char *)(line + b_stride), _MM_HINT_T1);
            }
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 128);
    _tile_stored(1, out + 16, 128);
    _tile_stored(2, out + 512, 128);
    _tile_stored(3, out + 528, 128);
}
#else
static const uint8_t TILES[64];
static void configure(const uint8_t tiles[64]) {
    (void)tiles;
}
static void save_configuration(uint8_t tiles[64]) {
    (void)tiles;
}

static inline void multiply(left a, const bf16 *b, int64_t b_stride, int64_t k_tiles, float out[],
                            const bf16 *next) {
    (void)next;
    for (int m = 0; m < BLOCK; m += 8) {
        const bf16 *first = a.at + m / TILE * a.down + m % TILE * a.row;
        __m512 sums[8][2];
        for (int i = 0; i < 8; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
        for (int64_t k = 0; k < k_tiles; k++)
            for (int line = 0; line < 16; line++) {
                const bf16 *from = b + k * TILE_SIZE + line * BLOCK;
                __m512bh b0 = (__m512bh)_mm512_loadu_si512(from);
                __m512bh b1 = (__m512bh)_mm512_loadu_si512(from + b_stride);
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
                _mm512_storeu_ps(out + (m + i) * BLOCK + j * TILE, sums[i][j]);
    }
}
#endif

/* Transpose a block. */
static void turn(float block[]) {
    float turned[BLOCK * BLOCK];
    for (int i = 0; i < BLOCK; i += TILE)
        for (int j = 0; j < BLOCK; j += TILE) {
            __m512i r[16];
            for (int k = 0; k < 16; k++) r[k] = _mm512_loadu_si512(block + (i + k) * BLOCK + j);
            transpose16(r);
            for (int k = 0; k < 16; k++) _mm512_storeu_si512(turned + (j + k) * BLOCK + i, r[k]);
        }
    memcpy(block, turned, sizeof turned);
}

/* Ask for the lines that `put` will write, which are often in a far cache. */
static inline void expect(target to, int64_t m, int64_t n) {
    if (to.mode == ROUND) {
        const bf16 *at = (const bf16 *)to.at + m * to.stride + n;
        for (int i = 0; i < BLOCK; i++) __builtin_prefetch(at + i * to.stride, 1);
        return;
    }
    int turned = to.mode == SET_TRANSPOSE || to.mode == ADD_TRANSPOSE;
    const float *at = (const float *)to.at + (turned ? n * to.stride + m : m * to.stride + n);
    for (int i = 0; i < BLOCK; i++) {
        __builtin_prefetch(at + i * to.stride, 1);
        __builtin_prefetch(at + i * to.stride + TILE, 1);
    }
}

static inline void put(target to, int64_t m, int64_t n, float out[]) {
    if (to.mode == ROUND) {
        bf16 *at = (bf16 *)to.at + m * to.stride + n;
        if (to.plus)
            for (int i = 0; i < BLOCK; i++)
                for (int j = 0; j < BLOCK; j += TILE) {
                    __m512 x = _mm512_mul_ps(load16(to.plus + (m + i) * to.stride + n + j),
                                             _mm512_set1_ps(to.plus_times));
                    x = _mm512_fmadd_ps(_mm512_loadu_ps(out + i * BLOCK + j),
                                        _mm512_set1_ps(to.times), x);
                    _mm512_storeu_ps(out + i * BLOCK + j, x);
                }
        for (int i = 0; i < BLOCK; i++)
            _mm512_storeu_si512(at + i * to.stride, (__m512i)_mm512_cvtne2ps_pbh(
                                                        _mm512_loadu_ps(out + i * BLOCK + TILE),
                                                        _mm512_loadu_ps(out + i * BLOCK)));
        return;
    }
    float *at = (float *)to.at + m * to.stride + n;
    if (to.mode == SET_TRANSPOSE || to.mode == ADD_TRANSPOSE) {
        at = (float *)to.at + n * to.stride + m;
        turn(out);
    }
    int adds = to.mode == ADD || to.mode == ADD_TRANSPOSE;
    for (int i = 0; i < BLOCK; i++)
        for (int j = 0; j < BLOCK; j += TILE) {
            __m512 x = _mm512_loadu_ps(out + i * BLOCK + j);
            if (adds) x = _mm512_add_ps(x, _mm512_loadu_ps(at + i * to.stride + j));
            _mm512_storeu_ps(at + i * to.stride + j, x);
        }
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Multiply a [rows, k] by the packed b [k, columns]; b_k: all its rows, of which the first k are
   used. 32 rows of `a` stay in the L1 cache, and some columns of `b` in the L2 cache. */
static void product(target to, left a, const bf16 *b, int64_t rows, int64_t k, int64_t columns,
                    int64_t b_k) {
    enum { DEPTH = 512, CACHED = 1 << 18 };
    float out[BLOCK * BLOCK] __attribute__((aligned(64)));
    for (int64_t from = 0; from < k; from += DEPTH) {
        int64_t depth = to.mode == ROUND ? k : smaller(DEPTH, k - from);
        int64_t width = larger(BLOCK, CACHED / depth / BLOCK * BLOCK);
        for (int64_t first = 0; first < columns; first += width)
            for (int64_t m = 0; m < rows; m += BLOCK)
                for (int64_t n = first; n < smaller(columns, first + width); n += BLOCK) {
                    left part = a;
                    part.at += m / TILE * a.down + from / BLOCK * a.right;
                    const bf16 *columns_of_b = b + n * b_k + from * TILE;
                    const bf16 *next =
                        m == 0 && n + 2 * BLOCK < columns ? columns_of_b + 2 * BLOCK * b_k : NULL;
                    expect(to, m, n);
                    multiply(part, columns_of_b, b_k * TILE, depth / BLOCK, out, next);
                    put(to, m, n, out);
                }
        if (depth == k) break;
        to.mode = to.mode == SET_TRANSPOSE || to.mode == ADD_TRANSPOSE ? ADD_TRANSPOSE : ADD;
    }
}

/* Multiply a [rows, k] by the packed b [k, rows] where the result is symmetric: half of it is
 * computed. */
static void symmetric_product(target to, left a, const bf16 *b, int64_t rows, int64_t k) {
    float out[BLOCK * BLOCK] __attribute__((aligned(64)));
    for (int64_t m = 0; m < rows; m += BLOCK)
        for (int64_t n = m; n < rows; n += BLOCK) {
            left part = a;
            part.at += m / TILE * a.down;
            multiply(part, b + n * k, k * TILE, k / BLOCK, out, NULL);
            put(to, m, n, out);
            if (n == m) continue;
            turn(out);
            target mirrored = to;
            mirrored.plus = NULL;
            put(mirrored, n, m, out);
        }
}

#endif
