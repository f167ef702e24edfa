/* product.h: products of matrices, with float32 sums. */

#ifndef FUSED_PRODUCT_H
#define FUSED_PRODUCT_H

#include "packing.h"

/* Lines of 64 bytes to ask for before they are read: `count` lines, which are a row apart, the
 * lines `down` behind them, and the same for each 32 columns, which are `right` apart. */
typedef struct {
    const number *at;
    int64_t row, down, right, count;
} lines;

/* What a multiplication with AMX asks for: lines that later ones read, and those that its product
 * goes to, unless `target.at` is NULL. */
typedef struct {
    lines a, b;
    matrix target;
} ahead;

/* multiply(a, b, k_tiles, out, stride, adds, next) multiplies 32 rows of `a` by 32 columns of a
 * packed matrix, whose tiles are those of `b`. It sets out[32][32], whose rows are a stride apart,
 * to the product, or adds it. */
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

/* How a product is stored: rounded to numbers, or as floats, set or added. */
typedef enum { ROUND, SET, ADD } mode;

typedef struct {
    mode mode;
    float *at; /* of floats, whose rows are a stride apart */
    int64_t stride;
    matrix rounded;
    /* With ROUND, the product times `times` plus `plus_times` times another matrix, if there is
     * one. */
    matrix plus;
    float times, plus_times;
} target;

static target target_of(float *at, int64_t stride, mode how) {
    return (target){.mode = how, .at = at, .stride = stride};
}

static target rounded(matrix to) {
    return (target){.mode = ROUND, .rounded = to};
}

static target rounded_sum(matrix to, float times, matrix plus, float plus_times) {
    return (target){
        .mode = ROUND, .rounded = to, .plus = plus, .times = times, .plus_times = plus_times};
}

/* Write or add `from` [rows, columns]. */
static void copy(float *to, int64_t to_stride, const float *from, int64_t rows, int64_t columns,
                 int adds) {
    for (int64_t i = 0; i < rows; i++, to += to_stride, from += columns)
        for (int64_t j = 0; j < columns; j += LANES) {
            vector x = load_f32(from + j);
            if (adds) x += load_f32(to + j);
            store_f32(to + j, x);
        }
}

/* Write or add the transpose of `from` [rows, columns]. */
static void turn(float *to, int64_t to_stride, const float *from, int64_t stride, int64_t rows,
                 int64_t columns, int adds) {
    float tile[TILE * TILE] __attribute__((aligned(64)));
    for (int64_t j = 0; j < columns; j += TILE)
        for (int64_t i = 0; i < rows; i += TILE) {
            float *at = to + j * to_stride + i;
            const float *turned = from + i * stride + j;
            transpose_tile(adds ? tile : at, adds ? TILE : to_stride, turned, stride);
            if (adds) copy(at, to_stride, tile, TILE, TILE, 1);
        }
}

/* Round a block and store it. */
static inline void put(target to, int64_t m, int64_t n, float block[]) {
    if (to.plus.at)
        for (int i = 0; i < BLOCK; i++)
            for (int j = 0; j < BLOCK; j += LANES) {
                float *x = block + i * BLOCK + j;
                vector plus = load(place(to.plus, m + i, n + j)) * to.plus_times;
                store_f32(x, load_f32(x) * to.times + plus);
            }
    for (int i = 0; i < BLOCK; i += TILE) {
        number *at = place(to.rounded, m + i, n);
        for (int row = 0; row < TILE; row++)
            store_row(at + row * to.rounded.row, block + (i + row) * BLOCK);
    }
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Return part i of `parts` of the next 32 rows of a matrix with `depth` columns: some of the first
 * 16 rows, with those 16 rows below. */
static lines part_of_rows(matrix of, int64_t depth, int64_t i, int64_t parts) {
    int64_t first = TILE * i / parts, end = TILE * (i + 1) / parts;
    if (of.right == TILE_SIZE) { /* tiles: any order will do, and this one is that of memory */
        of.row = depth;
        of.right = BLOCK;
    }
    return (lines){of.at + first * of.row, of.row, of.down, of.right, end - first};
}

/* Multiply a [rows, k] by the packed b [k, columns]; b_k: all its rows, of which the first k are
 * used. A panel of `b`, some of its rows and columns, stays in the L2 cache, and 32 rows of `a` in
 * the L1 cache in bfloat16, parts of `b` in float32. Meanwhile AMX asks for a share of the next
 * panel, and for the next rows of an `a` that is multiplied in several parts. */
static void product(target to, matrix a, const number *b, int64_t rows, int64_t k, int64_t columns,
                    int64_t b_k) {
    enum { DEPTH = 512, CACHED = (1 << 19) / sizeof(number) };
    float block[BLOCK * BLOCK] __attribute__((aligned(64)));
    for (int64_t from = 0; from < k; from += DEPTH) {
        int64_t depth = to.mode == ROUND ? k : smaller(DEPTH, k - from);
        int64_t width = larger(BLOCK, CACHED / depth / BLOCK * BLOCK);
        for (int64_t first = 0; first < columns; first += width) {
            int64_t end = smaller(columns, first + width);
            int64_t to_next_panel = end < columns      ? width * b_k
                                    : from + depth < k ? depth * TILE - first * b_k
                                                       : 0;
            for (int64_t m = 0; m < rows; m += BLOCK)
                for (int64_t n = first; n < end; n += BLOCK) {
                    matrix part = part_of(a, m, from), below = part_of(part, BLOCK, 0);
                    matrix right = tiles_of(b + n * b_k + from * TILE, b_k), later = right;
                    later.at += to_next_panel;
                    ahead next = {0};
                    if (depth < k && m + BLOCK < rows)
                        next.a =
                            part_of_rows(below, depth, (n - first) / BLOCK, (end - first) / BLOCK);
                    if (to_next_panel && (end == columns || n + width < columns))
                        next.b = part_of_rows(later, depth, m / BLOCK, rows / BLOCK);
                    if (to.mode == ROUND) {
                        next.target = part_of(to.rounded, m, n);
                        multiply(part, right, depth / BLOCK, block, BLOCK, 0, &next);
                        put(to, m, n, block);
                    } else {
                        float *out = to.at + m * to.stride + n;
                        multiply(part, right, depth / BLOCK, out, to.stride, to.mode == ADD, &next);
                    }
                }
        }
        if (depth == k) break;
        to.mode = ADD;
    }
}

/* Multiply a [rows, k] by the packed b [k, rows] where the result is symmetric: half of it is
 * computed. */
static void symmetric_product(target to, matrix a, const number *b, int64_t rows, int64_t k) {
    float block[BLOCK * BLOCK] __attribute__((aligned(64)));
    float turned[BLOCK * BLOCK] __attribute__((aligned(64)));
    ahead nothing = {0};
    target mirrored = to;
    mirrored.plus.at = NULL;
    for (int64_t m = 0; m < rows; m += BLOCK)
        for (int64_t n = m; n < rows; n += BLOCK) {
            multiply(part_of(a, m, 0), tiles_of(b + n * k, k), k / BLOCK, block, BLOCK, 0,
                     &nothing);
            put(to, m, n, block);
            if (n == m) continue;
            turn(turned, BLOCK, block, BLOCK, BLOCK, BLOCK, 0);
            put(mirrored, n, m, turned);
        }
}

#endif
