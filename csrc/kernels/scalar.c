/* scalar.c: the reference kernels. They use no instruction of a particular processor.
 *
 * The 16 rows of a tile are 16 independent sums, so they are fast without reordering floating-point
 * additions. They are written as vectors of four, an extension of GCC and Clang. Such vectors are
 * registers on every x86-64 and ARM64 processor. */

#include <math.h>
#include <string.h>

#include "sets.h"

typedef float float4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef int16_t short8 __attribute__((vector_size(16)));
typedef uint16_t ushort4 __attribute__((vector_size(8)));
typedef int8_t byte4 __attribute__((vector_size(4)));

enum { ROWS = SL_TILE_ROWS, VECTORS = ROWS / 4 };

/* ---- Products of matrices -------------------------------------------------------------------- */

/* y[i] = Σ_c w[c] x[i][c], for the 16 rows of each tile */
static void matmul_f32(float *y, size_t y_stride, const float *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n) {
    for (size_t tile = 0; tile < tile_count; tile++) {
        const float *w = tiles + tile * tile_stride;
        for (size_t i = 0; i < n; i++) {
            const float *xi = x + i * x_stride;
            float4 sum[VECTORS] = {0};
            for (size_t c = 0; c < columns; c++) {
                const float4 *column = (const float4 *)(w + c * column_stride);
                for (size_t v = 0; v < VECTORS; v++) sum[v] += column[v] * xi[c];
            }
            memcpy(y + i * y_stride + tile * ROWS, sum, sizeof sum);
        }
    }
}

/* Convert four f16 numbers to floats: shift the bits to where a float has them, then multiply to
 * correct the bias of the exponent. The product also makes subnormal numbers normal. */
static inline float4 load_f16(const uint16_t *x) {
    const float4 rebias = {0x1p112f, 0x1p112f, 0x1p112f, 0x1p112f};
    ushort4 half;
    memcpy(&half, x, sizeof half);
    const int4 bits = (__builtin_convertvector(half, int4) << 16 >> 3) & (int32_t)0x8fffe000;
    const int4 is_nan = (bits & 0x0f800000) == 0x0f800000;
    return (float4)((int4)((float4)bits * rebias) | (is_nan & 0x7f800000));
}

static void matmul_f16(float *y, size_t y_stride, const uint16_t *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n) {
    for (size_t tile = 0; tile < tile_count; tile++) {
        const uint16_t *w = tiles + tile * tile_stride;
        for (size_t i = 0; i < n; i++) {
            const float *xi = x + i * x_stride;
            float4 sum[VECTORS] = {0};
            for (size_t c = 0; c < columns; c++)
                for (size_t v = 0; v < VECTORS; v++)
                    sum[v] += load_f16(w + c * column_stride + 4 * v) * xi[c];
            memcpy(y + i * y_stride + tile * ROWS, sum, sizeof sum);
        }
    }
}

static inline float4 load_i8(const int8_t *x) {
    byte4 bytes;
    memcpy(&bytes, x, sizeof bytes);
    return __builtin_convertvector(bytes, float4);
}

static void matmul_i8(float *y, size_t y_stride, const int8_t *tiles, size_t tile_stride,
                      size_t column_stride, size_t tile_count, size_t columns, const float *x,
                      size_t x_stride, size_t n) {
    for (size_t tile = 0; tile < tile_count; tile++) {
        const int8_t *w = tiles + tile * tile_stride;
        for (size_t i = 0; i < n; i++) {
            const float *xi = x + i * x_stride;
            float4 sum[VECTORS] = {0};
            for (size_t c = 0; c < columns; c++)
                for (size_t v = 0; v < VECTORS; v++)
                    sum[v] += load_i8(w + c * column_stride + 4 * v) * xi[c];
            memcpy(y + i * y_stride + tile * ROWS, sum, sizeof sum);
        }
    }
}

/* Return two 16-bit numbers, the same in every lane. */
static int4 repeat_pair(int8_t low, int8_t high) {
    const int32_t pair = (int32_t)((uint16_t)low | (uint32_t)(uint16_t)high << 16);
    return (int4){pair, pair, pair, pair};
}

/* Multiply 16-bit numbers and add the two products in each lane. a has unsigned bytes and b signed
 * ones, so their products fit in 16 bits. */
static int4 dot_pairs(int4 a, int4 b) {
    const int4 products = (int4)((short8)a * (short8)b);
    return ((products << 16) >> 16) + (products >> 16);
}

/* Add the dot products of q[4] with the bytes of w, four columns for each row, to the 16 sums. Even
 * and odd bytes are multiplied separately. */
static inline void add_dot(int4 dot[VECTORS], const int4 w[VECTORS], const int8_t *q) {
    const int4 even = repeat_pair(q[0], q[2]), odd = repeat_pair(q[1], q[3]);
    for (size_t v = 0; v < VECTORS; v++)
        dot[v] += dot_pairs(w[v] & 0x00ff00ff, even) + dot_pairs(w[v] >> 8 & 0x00ff00ff, odd);
}

/* Add the dot products of a group's 16 rows with q[group_size]. The weights have a bias of 128. */
static inline void dot_q8(int4 dot[VECTORS], const uint8_t *weights, const int8_t *q,
                          size_t group_size) {
    const int4 *w = (const int4 *)weights;
    for (size_t c = 0; c < group_size; c += 4, w += VECTORS) add_dot(dot, w, q + c);
}

/* The same for weights of four bits, which have a bias of 8. */
static inline void dot_q4(int4 dot[VECTORS], const uint8_t *weights, const int8_t *q,
                          size_t group_size) {
    const int4 *w = (const int4 *)weights;
    for (size_t c = 0; c < group_size; c += 8, w += VECTORS) {
        int4 low[VECTORS], high[VECTORS];
        for (size_t v = 0; v < VECTORS; v++) {
            low[v] = w[v] & 0x0f0f0f0f;
            high[v] = w[v] >> 4 & 0x0f0f0f0f;
        }
        add_dot(dot, low, q + c);
        add_dot(dot, high, q + c + 4);
    }
}

/* Add dot * scales * x_scale to the sums of 16 rows. */
static inline void add_scaled(float4 sum[VECTORS], const int4 dot[VECTORS], const uint16_t *scales,
                              float x_scale) {
    for (size_t v = 0; v < VECTORS; v++) {
        ushort4 half;
        memcpy(&half, scales + 4 * v, sizeof half);
        const float4 scale = (float4)(__builtin_convertvector(half, int4) << 16);
        sum[v] += scale * x_scale * __builtin_convertvector(dot[v], float4);
    }
}

typedef void dot_group(int4 dot[VECTORS], const uint8_t *weights, const int8_t *q,
                       size_t group_size);

/* The product for any quantized weight type. The stored weights are w + bias, so for each group
 *
 *     dot = Σ_c (w[c] + bias) x[i][c] - bias Σ_c x[i][c]
 *     y[i] += dot * scale * x_scale[i]
 *
 * dot_of computes the first sum. A group has group_bytes of weights. */
static inline void matmul_quantized(float *y, size_t y_stride, const uint8_t *tiles,
                                    size_t tile_count, const sl_quantized *x, size_t n,
                                    dot_group *dot_of, int32_t bias, size_t tile_bytes,
                                    size_t group_bytes) {
    for (size_t t = 0; t < tile_count; t++) {
        const sl_tile tile = sl_tile_at(tiles + t * tile_bytes, x->groups);
        for (size_t i = 0; i < n; i++) {
            const int8_t *values = x->values + i * x->groups * x->group_size;
            float4 sum[VECTORS] = {0};
            for (size_t g = 0; g < x->groups; g++) {
                const int32_t excess = bias * x->sums[i * x->groups + g];
                int4 dot[VECTORS] = {0};
                dot_of(dot, tile.weights + g * group_bytes, values + g * x->group_size,
                       x->group_size);
                for (size_t v = 0; v < VECTORS; v++) dot[v] -= excess;
                add_scaled(sum, dot, tile.scales + g * ROWS, x->scales[i * x->groups + g]);
            }
            memcpy(y + i * y_stride + t * ROWS, sum, sizeof sum);
        }
    }
}

static void matmul_q8(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    matmul_quantized(y, y_stride, tiles, tile_count, x, n, dot_q8, 128,
                     sl_tile_bytes(8, x->groups, x->group_size), ROWS * x->group_size);
}

static void matmul_q4(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    matmul_quantized(y, y_stride, tiles, tile_count, x, n, dot_q4, 8,
                     sl_tile_bytes(4, x->groups, x->group_size), ROWS * x->group_size / 2);
}

/* ---- Quantization of activations ------------------------------------------------------------- */

/* Return the largest |x|, or NaN if there is one. Positive floats have the same order as their bits
 * compared as integers. */
static float largest_magnitude(const float *x, size_t n) {
    int32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    return magnitude;
}

/* Round x to the nearest integer, ties to even, for |x| < 2^22. Adding 1.5 * 2^23 leaves the
 * integer in the low bits of the sum. */
static int32_t nearest(float x) {
    const float shifted = x + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4b400000;
}

/* values = round(x * inverse); returns the sum of values */
static int32_t quantize_group(int8_t *values, size_t group_size, const float *x, size_t width,
                              float inverse) {
    int32_t sum = 0;
    for (size_t c = 0; c < width; c++) {
        const int32_t value = nearest(x[c] * inverse);
        values[c] = (int8_t)value;
        sum += (int8_t)value;
    }
    memset(values + width, 0, group_size - width);
    return sum;
}

#include "quantize.h"

/* ---- Conversion to f16 ----------------------------------------------------------------------- */

static uint16_t nearest_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, least_bit = bits >> 13 & 1;
    const float magnitude = fabsf(x);
    if (isnan(x)) return 0x7e00;
    if (magnitude >= SL_F16_MAX) return (uint16_t)(sign | 0x7bff);
    if (magnitude < 0x1p-14f) return (uint16_t)(sign | (uint32_t)nearest(magnitude * 0x1p24f));
    return (uint16_t)(sign | (((bits & 0x7fffffff) - 0x38000000 + 0xfff + least_bit) >> 13));
}

static void to_f16(uint16_t *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = nearest_f16(x[i]);
}

/* ---- RMSNorm, rotary position embedding, SwiGLU ---------------------------------------------- */

static void rmsnorm(float *y, const float *x, const float *weight, size_t n, float eps) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    const float scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

static void rotate(float *x, size_t heads, size_t head_dim, const float *table) {
    for (size_t h = 0; h < heads; h++, x += head_dim) {
        for (size_t i = 0; i < head_dim; i += 2) {
            const float even = x[i], odd = x[i + 1], cosine = table[i], sine = table[i + 1];
            x[i] = even * cosine - odd * sine;
            x[i + 1] = even * sine + odd * cosine;
        }
    }
}

static void swiglu(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

/* ---- Softmax and sampling -------------------------------------------------------------------- */

static size_t argmax(const float *x, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static float exponentials(float *y, const float *x, size_t n, float shift, float scale) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += y[i] = expf((x[i] - shift) * scale);
    return sum;
}

static size_t select(int32_t *indices, const float *weights, size_t n, float floor) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        if (weights[i] >= floor) indices[count++] = (int32_t)i;
    return count;
}

SL_KERNEL_SET(scalar, SL_NO_AVERAGES, [SL_Q8] = matmul_q8, [SL_Q4] = matmul_q4);
