/* product.h: products of matrices, with float32 sums. */

#ifndef FUSED_PRODUCT_H
#define FUSED_PRODUCT_H

/* multiply(a, b, b_stride, k_tiles, out, next) sets out[32][32] to 32 rows of the left matrix `a`
 * times 32 columns of the packed `b`, whose second 16 columns are b_stride numbers behind the
 * first. With AMX it asks for the columns at `next`, which the first rows read from a far cache;
 * NULL: for none. */
#ifdef FUSED_FLOAT32
#include "multiply_f32.h"
#else
#include "multiply_bf16.h"
#endif

/* AMX has a configuration of its tiles, which a thread leaves as it was. */
#ifndef USES_AMX
static const uint8_t TILES[64];
static void configure(const uint8_t tiles[64]) {
    (void)tiles;
}
static void save_configuration(uint8_t tiles[64]) {
    (void)tiles;
}
#endif

/* How a product is stored: as numbers, which rounds in bfloat16, or as floats, set or added, or its
 * transpose. */
typedef enum { ROUND, SET, ADD, SET_TRANSPOSE, ADD_TRANSPOSE } mode;

typedef struct {
    void *at;
    int64_t stride;
    mode mode;
    /* With ROUND, the product times `times` plus `plus_times` times another matrix of the same
     * stride. */
    const number *plus;
    float plus_times, times;
} target;

static target target_of(void *at, int64_t stride, mode how) {
    return (target){at, stride, how, NULL, 0, 1};
}

/* Transpose a block. */
static void turn(float block[]) {
    float turned[BLOCK * BLOCK];
    for (int i = 0; i < BLOCK; i += TILE)
        for (int j = 0; j < BLOCK; j += TILE)
            transpose_tile(turned + j * BLOCK + i, BLOCK, block + i * BLOCK + j, BLOCK);
    memcpy(block, turned, sizeof turned);
}

/* Ask for the lines that `put` will write, which are often in a far cache. */
static inline void expect(target to, int64_t m, int64_t n) {
    if (to.mode == ROUND) {
        const number *at = (const number *)to.at + m * to.stride + n;
        for (int i = 0; i < BLOCK; i++)
            for (size_t line = 0; line < BLOCK * sizeof *at; line += 64)
                __builtin_prefetch((const char *)(at + i * to.stride) + line, 1);
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
        number *at = (number *)to.at + m * to.stride + n;
        if (to.plus)
            for (int i = 0; i < BLOCK; i++)
                for (int j = 0; j < BLOCK; j += LANES) {
                    float *x = out + i * BLOCK + j;
                    vector plus = load(to.plus + (m + i) * to.stride + n + j) * to.plus_times;
                    store_f32(x, load_f32(x) * to.times + plus);
                }
        for (int i = 0; i < BLOCK; i++) store_row(at + i * to.stride, out + i * BLOCK);
        return;
    }
    float *at = (float *)to.at + m * to.stride + n;
    if (to.mode == SET_TRANSPOSE || to.mode == ADD_TRANSPOSE) {
        at = (float *)to.at + n * to.stride + m;
        turn(out);
    }
    int adds = to.mode == ADD || to.mode == ADD_TRANSPOSE;
    for (int i = 0; i < BLOCK; i++)
        for (int j = 0; j < BLOCK; j += LANES) {
            vector x = load_f32(out + i * BLOCK + j);
            if (adds) x += load_f32(at + i * to.stride + j);
            store_f32(at + i * to.stride + j, x);
        }
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Multiply a [rows, k] by the packed b [k, columns]; b_k: all its rows, of which the first k are
   used. Some columns of `b` stay in the L2 cache. 32 rows of `a` stay in the L1 cache in bfloat16,
   parts of `b` in float32. */
static void product(target to, left a, const number *b, int64_t rows, int64_t k, int64_t columns,
                    int64_t b_k) {
    enum { DEPTH = 512, CACHED = (1 << 19) / sizeof(number) };
    float out[BLOCK * BLOCK] __attribute__((aligned(64)));
    for (int64_t from = 0; from < k; from += DEPTH) {
        int64_t depth = to.mode == ROUND ? k : smaller(DEPTH, k - from);
        int64_t width = larger(BLOCK, CACHED / depth / BLOCK * BLOCK);
        for (int64_t first = 0; first < columns; first += width)
            for (int64_t m = 0; m < rows; m += BLOCK)
                for (int64_t n = first; n < smaller(columns, first + width); n += BLOCK) {
                    left part = a;
                    part.at += m / TILE * a.down + from / BLOCK * a.right;
                    const number *columns_of_b = b + n * b_k + from * TILE;
                    const number *next =
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
static void symmetric_product(target to, left a, const number *b, int64_t rows, int64_t k) {
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
