/* kernels.h: the arithmetic, as a table of functions for each instruction set.
 *
 * Strides and sizes count elements. Matrices are in tiles of 16 rows (see storyllamas.h), so every
 * result has its rows rounded up to whole tiles. A kernel may be called on a run of tiles: threads
 * that share a matrix pass each its own. What a tile and a row of x give does not depend on the
 * other tiles and rows that are passed with them, to the last bit. */

#ifndef STORYLLAMAS_KERNELS_H
#define STORYLLAMAS_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { SL_TILE_ROWS = 16, SL_TILE_COLUMNS = 4 };

/* A tile of a quantized matrix, whose weights start at a multiple of 64 bytes. */
typedef struct {
    const uint16_t *scales; /* [groups][16 rows] bf16 */
    const uint8_t *weights; /* q8: [columns / 4][16 rows][4]; q4: [columns / 8][16 rows][4] */
} sl_tile;

static inline size_t sl_scale_bytes(size_t groups) {
    return (groups * SL_TILE_ROWS * sizeof(uint16_t) + 63) / 64 * 64;
}

static inline size_t sl_q8_tile_bytes(size_t groups, size_t group_size) {
    return sl_scale_bytes(groups) + groups * group_size * SL_TILE_ROWS;
}

static inline size_t sl_q4_tile_bytes(size_t groups, size_t group_size) {
    return sl_scale_bytes(groups) + groups * group_size * SL_TILE_ROWS / 2;
}

/* The tile that starts at `tile`. */
static inline sl_tile sl_tile_at(const uint8_t *tile, size_t groups) {
    return (sl_tile){(const uint16_t *)(const void *)tile, tile + sl_scale_bytes(groups)};
}

/* The float whose upper half is a bf16. */
static inline float sl_from_bf16(uint16_t bf16) {
    const uint32_t bits = (uint32_t)bf16 << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Rows of activations rounded to 8 bits: x = scale * value, value in -127 … 127,
 * one scale for each group_size columns. Columns are rounded up to whole groups with zeros. */
typedef struct {
    int8_t *values; /* [n][groups * group_size] */
    float *scales;  /* [n][groups] */
    int32_t *sums;  /* [n][groups]: the sum of a group's values */
    size_t groups;
    size_t group_size;
} sl_quantized;

#define SL_F16_MOST 65504.0f

typedef struct {
    const char *name;

    /* y[n][16 tiles] = x[n][columns] times the transposed matrix of f32 tiles [columns][16 rows],
     * whose columns are column_stride apart, a multiple of 16. */
    void (*matmul_f32)(float *y, size_t y_stride, const float *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n);

    /* Likewise with tiles of f16; x, products and sums are f32. */
    void (*matmul_f16)(float *y, size_t y_stride, const uint16_t *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n);

    /* y[n][16 tiles] = the quantized x[n] times the transposed matrix of q8 or q4 tiles; for q4 the
     * group_size is a multiple of 8. */
    void (*matmul_q8)(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n);
    void (*matmul_q4)(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n);

    /* Row i of q = x[columns]. */
    void (*quantize)(const sl_quantized *q, size_t i, const float *x, size_t columns);

    /* y[n] = x[n] rounded to the nearest f16, of two the even one; what is beyond the largest,
     * infinity too, becomes +-65504, and NaN stays NaN. */
    void (*to_f16)(uint16_t *y, const float *x, size_t n);

    /* y[n] = x[n] / sqrt(mean(x²) + eps) * weight[n]. */
    void (*rmsnorm)(float *y, const float *x, const float *weight, size_t n, float eps);

    /* Turn each pair (2i, 2i + 1) of every head: x[heads][head_dim], table[head_dim / 2] of
     * cosine and sine. */
    void (*rotate)(float *x, size_t heads, size_t head_dim, const float *table);

    /* y[n] = silu(gate[n]) * up[n]; silu(g) = g / (1 + exp(-g)). */
    void (*swiglu)(float *y, const float *gate, const float *up, size_t n);

    /* Index of the largest x, of equals the lowest; no x is NaN. */
    size_t (*argmax)(const float *x, size_t n);

    /* y[n] = exp((x[n] - shift) * scale), for exponents up to 88; returns the sum. y may be x.
     * Relative error of each below 3e-7. */
    float (*exponentials)(float *y, const float *x, size_t n, float shift, float scale);

    /* Write the indices of weights[n] of at least `floor`, in order; returns how many.
     * indices has room for n + 16. */
    size_t (*select)(int32_t *indices, const float *weights, size_t n, float floor);
} sl_kernels;

/* In order of preference, ended by NULL: those that were built and that this processor runs. The
 * last are the scalar ones, the reference. */
const sl_kernels *const *sl_kernels_available(void);

#endif
