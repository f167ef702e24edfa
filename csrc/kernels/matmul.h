/* matmul.h: the products of matrices, for instruction sets whose registers hold less than the 16
 * rows of a tile.
 *
 * A lane is a row of a tile, so no sum ever crosses lanes. A set includes this file after it has
 * defined:
 *
 *     LANES, PARTS       floats in a register, registers for a tile's rows
 *     BLOCK_MAX          largest number of tiles times rows of x in a block, 6 at most
 *     ROW_TILES          tiles in a block of a single row of x, 2 or 4
 *     FLOAT_ROWS         rows of x in a block of f32, f16 or i8 weights, 2, 4 or 6
 *     QUANTIZED_ROWS     rows of x in a block of quantized weights, 2, 4 or 6
 *     vector, integers   a register of floats, a register of 32-bit integers
 *     zeros()            a vector of zeros
 *     repeat(k)          the integer k in every lane
 *     load_f32(w)        LANES floats; load_f16(w), load_i8(w) and load_scales(w) convert f16,
 *                        8-bit integers and bf16
 *     store_f32(y, x)    store LANES floats
 *     multiply_add(sum, w, x)                 sum + w * x, x a float
 *     add_scaled(sum, dot, scales, x_scale)   sum + dot * (scales * x_scale), x_scale a float
 *     Q8_BIAS                                 the bias of the weights in dot_q8: 0 or 128
 *     dot_q8, dot_q4                          described below
 *
 * dot_q8(dot, w, tile_bytes, tiles, x, width, group_size, n) adds dot products to dot[tiles * n]:
 * those of a group's weights, in tiles that are tile_bytes apart, with n rows of x, which are
 * `width` apart. dot_q4 does the same for q4 weights, with their bias of 8. */

#ifndef STORYLLAMAS_MATMUL_H
#define STORYLLAMAS_MATMUL_H

#include "blocks.h"

/* Prefetch a cache line to the second-level cache. */
INLINE void prefetch(const uint8_t *at) {
    __builtin_prefetch(at, 0, 2);
}

INLINE void clear_sums(vector sum[BLOCK_MAX][PARTS], size_t tiles, size_t n) {
    UNROLL for (size_t a = 0; a < tiles * n; a++) UNROLL for (size_t p = 0; p < PARTS; p++)
        sum[a][p] = zeros();
}

INLINE void store_sums(float *y, size_t y_stride, vector sum[BLOCK_MAX][PARTS], size_t tiles,
                       size_t n) {
    UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t i = 0; i < n; i++)
        UNROLL for (size_t p = 0; p < PARTS; p++)
            store_f32(y + i * y_stride + t * ROWS + p * LANES, sum[t * n + i][p]);
}

INLINE void load_sums(vector sum[BLOCK_MAX][PARTS], const float *y, size_t y_stride, size_t tiles,
                      size_t n) {
    UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t i = 0; i < n; i++)
        UNROLL for (size_t p = 0; p < PARTS; p++) sum[t * n + i][p] =
            load_f32(y + i * y_stride + t * ROWS + p * LANES);
}

/* ---- Matrices of f32, f16 and i8 ------------------------------------------------------------- */

/* Load LANES numbers from index i on. */
INLINE vector load_row(weight_bits bits, const void *w, size_t i) {
    if (bits == Q8) return load_i8((const int8_t *)w + i);
    return bits == F16 ? load_f16((const uint16_t *)w + i) : load_f32((const float *)w + i);
}

/* Add a column to the sums of some tiles t and n rows i of x: sum[t][i] += w[t] x[i]. */
INLINE void add_column(weight_bits bits, vector sum[BLOCK_MAX][PARTS], const uint8_t *w,
                       size_t tile_stride, size_t tiles, const float *x, size_t x_stride,
                       size_t n) {
    UNROLL for (size_t t = 0; t < tiles; t++) {
        vector weights[PARTS];
        UNROLL for (size_t p = 0; p < PARTS; p++) weights[p] =
            load_row(bits, w, t * tile_stride + p * LANES);
        UNROLL for (size_t i = 0; i < n; i++) UNROLL for (size_t p = 0; p < PARTS; p++)
            sum[t * n + i][p] = multiply_add(sum[t * n + i][p], weights[p], x[i * x_stride]);
    }
}

/* Add the sums of both chains. */
INLINE void add_chains(vector sum[BLOCK_MAX][PARTS], vector other[BLOCK_MAX][PARTS], size_t count) {
    UNROLL for (size_t a = 0; a < count; a++) UNROLL for (size_t p = 0; p < PARTS; p++) sum[a][p] =
        multiply_add(sum[a][p], other[a][p], 1.0f);
}

/* Compute a block of a single row of x: y[t] = Σ_c w[t][c] x[c], with both chains side by side. */
INLINE void block_row(weight_bits bits, float *y, const uint8_t *w, size_t tile_stride,
                      size_t column_stride, size_t tiles, size_t columns, const float *x) {
    const size_t column_bytes = column_stride * bits / 8;
    vector sum[CHAINS][BLOCK_MAX][PARTS];
    UNROLL for (size_t chain = 0; chain < CHAINS; chain++) clear_sums(sum[chain], tiles, 1);
    size_t c = 0;
    for (; c + CHAINS <= columns; c += CHAINS)
        UNROLL for (size_t chain = 0; chain < CHAINS; chain++, w += column_bytes)
            add_column(bits, sum[chain], w, tile_stride, tiles, x + c + chain, 0, 1);
    if (c < columns) add_column(bits, sum[0], w, tile_stride, tiles, x + c, 0, 1);
    add_chains(sum[0], sum[1], tiles);
    store_sums(y, 0, sum[0], tiles, 1);
}

/* Compute a block: y[t][i] = Σ_c w[t][c] x[i][c], for some tiles t and n rows i of x. The sums
 * leave no registers for a second chain, so the even columns come first, then the odd ones. For
 * each column prefetch the line at `next`, then move `ahead` bytes on: one line at a time, since
 * many at once would delay the loads of weights. */
INLINE void block_rows(weight_bits bits, float *y, size_t y_stride, const uint8_t *w,
                       size_t tile_stride, size_t column_stride, size_t tiles, size_t columns,
                       const float *x, size_t x_stride, size_t n, const uint8_t *next,
                       size_t ahead) {
    const size_t column_bytes = column_stride * bits / 8;
    for (size_t chain = 0; chain < CHAINS; chain++) {
        vector sum[BLOCK_MAX][PARTS];
        clear_sums(sum, tiles, n);
        for (size_t c = chain; c < columns; c += CHAINS, next += ahead) {
            prefetch(next);
            add_column(bits, sum, w + c * column_bytes, tile_stride, tiles, x + c, x_stride, n);
        }
        if (chain) {
            vector even[BLOCK_MAX][PARTS];
            load_sums(even, y, y_stride, tiles, n);
            add_chains(sum, even, tiles * n);
        }
        store_sums(y, y_stride, sum, tiles, n);
    }
}

/* Compute y in blocks. If the tiles are contiguous in memory, each block of rows also prefetches
 * its part of the next four tiles. */
INLINE void matmul_float(weight_bits bits, float *y, size_t y_stride, const void *w,
                         size_t tile_stride, size_t column_stride, size_t tile_count,
                         size_t columns, const float *x, size_t x_stride, size_t n) {
    enum { TILES = 4 };
    const size_t tile_bytes = tile_stride * bits / 8, column_bytes = ROWS * bits / 8;
    const size_t next_tiles = column_stride == ROWS && tile_count > TILES ? tile_count - TILES : 0;
    const uint8_t *tiles = w;
#define BLOCK(tile, tile_n, i, i_n)                                                                \
    do {                                                                                           \
        const uint8_t *at = tiles + (tile) * tile_bytes;                                           \
        const size_t is_ahead = (tile) < next_tiles;                                               \
        float *out = y + (i) * y_stride + (tile) * ROWS;                                           \
        if ((i_n) == 1)                                                                            \
            for (size_t half = 0; half < (tile_n); half += HALF(tile_n))                           \
                block_row(bits, out + half * ROWS, at + half * tile_bytes, tile_stride,            \
                          column_stride, HALF(tile_n), columns, x + (i) * x_stride);               \
        else                                                                                       \
            block_rows(bits, out, y_stride, at, tile_stride, column_stride, tile_n, columns,       \
                       x + (i) * x_stride, x_stride, i_n,                                          \
                       at + TILES * tile_bytes + columns * column_bytes * (i) / n,                 \
                       is_ahead * column_bytes * (i_n) / n);                                       \
    } while (0)
#define HALF(tile_n) ((tile_n) == 4 ? 2 : (tile_n))
    FOR_BLOCKS(BLOCK, tile_count, n, FLOAT_ROWS)
#undef HALF
#undef BLOCK
}

static void matmul_f32(float *y, size_t y_stride, const float *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n) {
    matmul_float(F32, y, y_stride, tiles, tile_stride, column_stride, tile_count, columns, x,
                 x_stride, n);
}

static void matmul_f16(float *y, size_t y_stride, const uint16_t *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n) {
    matmul_float(F16, y, y_stride, tiles, tile_stride, column_stride, tile_count, columns, x,
                 x_stride, n);
}

static void matmul_i8(float *y, size_t y_stride, const int8_t *tiles, size_t tile_stride,
                      size_t column_stride, size_t tile_count, size_t columns, const float *x,
                      size_t x_stride, size_t n) {
    matmul_float(Q8, y, y_stride, tiles, tile_stride, column_stride, tile_count, columns, x,
                 x_stride, n);
}

/* ---- Quantized matrices ---------------------------------------------------------------------- */

/* Compute a block of some tiles t and rows i = row … row + n - 1 of q. The stored weights are w +
 * bias, so for each group g
 *
 *     dot = Σ_c (w[t][c] + bias) x[i][c] - bias Σ_c x[i][c]
 *     sum[t][i] += dot * scale[t][g] * x_scale[i][g] */
INLINE void block_quantized(weight_bits bits, float *y, size_t y_stride, const uint8_t *w,
                            size_t tile_bytes, size_t tiles, const sl_quantized *q, size_t row,
                            size_t n) {
    const size_t group_bytes = q->group_size * ROWS * bits / 8, width = q->groups * q->group_size;
    const uint8_t *weights = w + sl_scale_bytes(q->groups);
    const int8_t *x = q->values + row * width;
    vector sum[BLOCK_MAX][PARTS];
    clear_sums(sum, tiles, n);
    for (size_t g = 0; g < q->groups; g++, weights += group_bytes, x += q->group_size) {
        const int32_t *sums = q->sums + row * q->groups + g;
        const float *x_scales = q->scales + row * q->groups + g;
        const int32_t bias = bits == Q8 ? Q8_BIAS : 8;
        integers dot[BLOCK_MAX][PARTS];
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t i = 0; i < n; i++)
            UNROLL for (size_t p = 0; p < PARTS; p++) dot[t * n + i][p] =
                repeat(bias ? -bias * sums[i * q->groups] : 0);
        if (bits == Q8)
            dot_q8(dot, weights, tile_bytes, tiles, x, width, q->group_size, n);
        else
            dot_q4(dot, weights, tile_bytes, tiles, x, width, q->group_size, n);
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t p = 0; p < PARTS; p++) {
            const uint8_t *at = w + t * tile_bytes + (g * ROWS + p * LANES) * sizeof(uint16_t);
            const vector scales = load_scales(at);
            UNROLL for (size_t i = 0; i < n; i++) sum[t * n + i][p] =
                add_scaled(sum[t * n + i][p], dot[t * n + i][p], scales, x_scales[i * q->groups]);
        }
    }
    store_sums(y, y_stride, sum, tiles, n);
}

INLINE void matmul_quantized(weight_bits bits, float *y, size_t y_stride, const uint8_t *tiles,
                             size_t tile_count, const sl_quantized *x, size_t n) {
    const size_t tile_bytes = sl_tile_bytes(bits, x->groups, x->group_size);
#define BLOCK(tile, tile_n, i, i_n)                                                                \
    block_quantized(bits, y + (i) * y_stride + (tile) * ROWS, y_stride,                            \
                    tiles + (tile) * tile_bytes, tile_bytes, tile_n, x, i, i_n)
    FOR_BLOCKS(BLOCK, tile_count, n, QUANTIZED_ROWS)
#undef BLOCK
}

static void matmul_q8(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    matmul_quantized(Q8, y, y_stride, tiles, tile_count, x, n);
}

static void matmul_q4(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    matmul_quantized(Q4, y, y_stride, tiles, tile_count, x, n);
}

#endif
