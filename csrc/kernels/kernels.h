/* kernels.h: the arithmetic of a forward pass, as a table of functions for each instruction set.
 *
 * Strides and sizes count elements. Matrices are stored in tiles of 16 rows (see storyllamas.h), so
 * a product has its rows rounded up to whole tiles. A call may multiply some of a matrix's tiles,
 * so that threads can share a matrix. The product of a tile and a row of x is bit-identical in any
 * call, whatever other tiles and rows the call has.
 *
 * Sets with fused multiply-add, which are all but scalar and wasm, are bit-identical to each other.
 * A product of floats adds the even columns one after the other, and the odd ones, then both sums.
 * A product of integers adds its groups one after the other. The sum of a vector has 16 parts:
 * element i is added to part i % 16. Then parts i and i + 8 are added for i below 8, i and i + 4
 * for i below 4, i and i + 2 for i below 2, and the last two. */

#ifndef STORYLLAMAS_KERNELS_H
#define STORYLLAMAS_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../storyllamas.h"

enum { SL_TILE_ROWS = 16, SL_TILE_COLUMNS = 4 };

/* A tile of a quantized matrix. The weights start at a multiple of 64 bytes. */
typedef struct {
    const uint16_t *scales; /* [groups][16 rows] bf16 */
    const uint8_t *weights; /* [columns / n][16 rows][4], n columns in 4 bytes: 4 of q8, 8 of q4 */
} sl_tile;

/* Return the bytes of a tile's scales. */
static inline size_t sl_scale_bytes(size_t groups) {
    return (groups * SL_TILE_ROWS * sizeof(uint16_t) + 63) / 64 * 64;
}

/* Return the bytes of a tile whose weights have `bits` bits. */
static inline size_t sl_tile_bytes(size_t bits, size_t groups, size_t group_size) {
    return sl_scale_bytes(groups) + groups * group_size * (SL_TILE_ROWS * bits / 8);
}

/* Return the tile that starts at `tile`. */
static inline sl_tile sl_tile_at(const uint8_t *tile, size_t groups) {
    return (sl_tile){(const uint16_t *)(const void *)tile, tile + sl_scale_bytes(groups)};
}

/* Convert a bf16, the upper half of a float, to a float. */
static inline float sl_from_bf16(uint16_t bf16) {
    const uint32_t bits = (uint32_t)bf16 << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Rows of activations, quantized to 8 bits: x = scale * value, with values from -127 to 127 and one
 * scale for each group_size columns. Columns are rounded up to whole groups with zeros. */
typedef struct {
    int8_t *values; /* [n][groups * group_size] */
    float *scales;  /* [n][groups] */
    int32_t *sums;  /* [n][groups]: the sum of a group's values */
    size_t groups;
    size_t group_size;
} sl_quantized;

#define SL_F16_MAX 65504.0f

/* The values of a layer's heads, and the shares of the positions for the queries of one token.
 * `sharing` queries share each head. */
typedef struct {
    const void *values; /* [positions][stride]: [heads][head_dim in whole tiles], f32, f16 or i8 */
    size_t stride;
    size_t positions;
    size_t heads, sharing, head_dim;
    const float *shares; /* [heads * sharing][shares_stride] */
    size_t shares_stride;
} sl_values;

/* y[heads * sharing][head_dim in whole tiles] = Σ_i shares[i] * values[i], the values of a query's
 * head. Padding of y may stay as it is. */
typedef void sl_average(float *y, const sl_values *values);

/* y[n][16 tiles] = x[n] times the transposed matrix of quantized tiles: the sum over groups of
 * scale * x_scale * Σ weight * x, with an integer sum Σ over the columns of the group. n is at
 * least 1. */
typedef void sl_matmul_quantized(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                                 const sl_quantized *x, size_t n);

typedef struct {
    const char *name;

    /* y[n][16 tiles] = x[n][columns] times the transposed matrix of f32 tiles [columns][16 rows],
     * whose columns are column_stride apart. column_stride is a multiple of 16. */
    void (*matmul_f32)(float *y, size_t y_stride, const float *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n);

    /* The same with f16 tiles; x, products and sums are f32. */
    void (*matmul_f16)(float *y, size_t y_stride, const uint16_t *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n);

    /* The same with tiles of 8-bit integers; x, products and sums are f32. */
    void (*matmul_i8)(float *y, size_t y_stride, const int8_t *tiles, size_t tile_stride,
                      size_t column_stride, size_t tile_count, size_t columns, const float *x,
                      size_t x_stride, size_t n);

    /* The product for each quantized weight type, or NULL: see sl_matmul_of. */
    sl_matmul_quantized *matmul_quantized[SL_TYPE_COUNT];

    /* The average of values of each type, or NULL. It is bit-identical to the product of matrices.
     */
    sl_average *average_f32, *average_f16, *average_i8;

    /* Quantize x[columns] to row i of q. A group with infinity or NaN gets zeros, and a scale that
     * is not finite. */
    void (*quantize)(const sl_quantized *q, size_t i, const float *x, size_t columns);

    /* y[n] = x[n] rounded to the nearest f16, ties to even. Magnitudes above the largest f16,
     * infinity included, become 65504. NaN stays NaN. */
    void (*to_f16)(uint16_t *y, const float *x, size_t n);

    /* y[n] = x[n] / sqrt(mean(x²) + eps) * weight[n]. */
    void (*rmsnorm)(float *y, const float *x, const float *weight, size_t n, float eps);

    /* Rotate each pair (2i, 2i + 1) of x[heads][head_dim] in place. table[head_dim / 2] has the
     * cosine and sine of each pair's angle. */
    void (*rotate)(float *x, size_t heads, size_t head_dim, const float *table);

    /* y[n] = silu(gate[n]) * up[n], where silu(g) = g / (1 + exp(-g)). */
    void (*swiglu)(float *y, const float *gate, const float *up, size_t n);

    /* Return the index of the largest of x[n], the lowest index among equals. No x is NaN. */
    size_t (*argmax)(const float *x, size_t n);

    /* y[n] = exp((x[n] - shift) * scale), for exponents up to 88. Returns the sum of y. The
     * relative error of each y is below 3e-7. y may be x. */
    float (*exponentials)(float *y, const float *x, size_t n, float shift, float scale);

    /* Write the indices of all weights[n] that are at least `floor`, in rising order, and return
     * their number. indices has room for n + 16. */
    size_t (*select)(int32_t *indices, const float *weights, size_t n, float floor);
} sl_kernels;

/* Return the kernel sets that this processor runs, the fastest first, then NULL. The last set is
 * the scalar one, the reference. */
const sl_kernels *const *sl_kernels_available(void);

/* Return the set of this name, the fastest if name is NULL, or NULL if there is no such set. */
const sl_kernels *sl_kernels_find(const char *name);

/* Return a set's product for a quantized weight type. A set without one uses the scalar product. */
sl_matmul_quantized *sl_matmul_of(const sl_kernels *kernels, uint32_t type);

#endif
