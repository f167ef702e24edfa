/* neon.c: kernels for ARM64 processors with the 8-bit dot product.
 *
 * A tile's 16 rows are four registers of 4 lanes, so no sum ever crosses lanes. */

#include "sets.h"

#ifdef SL_ARM

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include <arm_neon.h>
#include <float.h>
#include <math.h>

#include "blocks.h"
#include "exponential.h"

enum {
    LANES = 4,
    QUARTERS = ROWS / LANES,
    MOST = 4
}; /* MOST: of tiles times rows of x in a block */

/* ---- Matrices of f32 and f16 ----------------------------------------------------------------- */

INLINE void clear_sums(float32x4_t sum[MOST][QUARTERS], size_t tiles, size_t n) {
    UNROLL for (size_t a = 0; a < tiles * n; a++) UNROLL for (size_t h = 0; h < QUARTERS; h++)
        sum[a][h] = vdupq_n_f32(0);
}

INLINE void store_sums(float *y, size_t y_stride, float32x4_t sum[MOST][QUARTERS], size_t tiles,
                       size_t n) {
    UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t i = 0; i < n; i++)
        UNROLL for (size_t h = 0; h < QUARTERS; h++)
            vst1q_f32(y + i * y_stride + t * ROWS + h * LANES, sum[t * n + i][h]);
}

INLINE void block_f32(float *y, size_t y_stride, const float *w, size_t tile_stride,
                      size_t column_stride, size_t tiles, size_t columns, const float *x,
                      size_t x_stride, size_t n) {
    float32x4_t sum[MOST][QUARTERS];
    clear_sums(sum, tiles, n);
    for (size_t c = 0; c < columns; c++)
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t h = 0; h < QUARTERS; h++) {
            const float32x4_t weights =
                vld1q_f32(w + t * tile_stride + c * column_stride + h * LANES);
            UNROLL for (size_t i = 0; i < n; i++) sum[t * n + i][h] =
                vfmaq_n_f32(sum[t * n + i][h], weights, x[i * x_stride + c]);
        }
    store_sums(y, y_stride, sum, tiles, n);
}

static void matmul_f32(float *y, size_t y_stride, const float *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n){
#define BLOCK(tile, tile_n, i, i_n)                                                                \
    block_f32(y + (i) * y_stride + (tile) * ROWS, y_stride, tiles + (tile) * tile_stride,          \
              tile_stride, column_stride, tile_n, columns, x + (i) * x_stride, x_stride, i_n)
    FOR_BLOCKS(BLOCK, tile_count, n, MOST)
#undef BLOCK
}

INLINE void block_f16(float *y, size_t y_stride, const uint16_t *w, size_t tile_stride,
                      size_t column_stride, size_t tiles, size_t columns, const float *x,
                      size_t x_stride, size_t n) {
    float32x4_t sum[MOST][QUARTERS];
    clear_sums(sum, tiles, n);
    for (size_t c = 0; c < columns; c++)
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t h = 0; h < QUARTERS; h++) {
            const uint16x4_t half = vld1_u16(w + t * tile_stride + c * column_stride + h * LANES);
            const float32x4_t weights = vcvt_f32_f16(vreinterpret_f16_u16(half));
            UNROLL for (size_t i = 0; i < n; i++) sum[t * n + i][h] =
                vfmaq_n_f32(sum[t * n + i][h], weights, x[i * x_stride + c]);
        }
    store_sums(y, y_stride, sum, tiles, n);
}

static void matmul_f16(float *y, size_t y_stride, const uint16_t *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n){
#define BLOCK(tile, tile_n, i, i_n)                                                                \
    block_f16(y + (i) * y_stride + (tile) * ROWS, y_stride, tiles + (tile) * tile_stride,          \
              tile_stride, column_stride, tile_n, columns, x + (i) * x_stride, x_stride, i_n)
    FOR_BLOCKS(BLOCK, tile_count, n, MOST)
#undef BLOCK
}

/* ---- Quantized matrices ---------------------------------------------------------------------- */

/* 4 bf16 numbers as floats. */
INLINE float32x4_t load_scales(const uint8_t *scales) {
    const uint16x4_t half = vreinterpret_u16_u8(vld1_u8(scales));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

/* sum + the dot products of each lane's four weights with x[4]. */
INLINE int32x4_t add_dot(int32x4_t sum, int8x16_t weights, const int8_t *x) {
    uint32_t four;
    memcpy(&four, x, sizeof four);
    return vdotq_lane_s32(sum, weights, vcreate_s8(four), 0);
}

/* Both of these add to dot[tiles * n] the products of a group of x, n rows that are `width` apart,
 * with the group's weights of tiles that are tile_bytes apart. The dot product takes signed bytes
 * on both sides, so the bias of 128 comes off; that of 8 may stay. */
INLINE void dot_q8(int32x4_t dot[MOST][QUARTERS], const uint8_t *w, size_t tile_bytes, size_t tiles,
                   const int8_t *x, size_t width, size_t group_size, size_t n) {
    const uint8x16_t bias = vdupq_n_u8(0x80);
    for (size_t c = 0; c < group_size; c += 4)
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t h = 0; h < QUARTERS; h++) {
            const uint8x16_t biased = vld1q_u8(w + t * tile_bytes + c * ROWS + h * 4 * LANES);
            const int8x16_t weights = vreinterpretq_s8_u8(veorq_u8(biased, bias));
            UNROLL for (size_t i = 0; i < n; i++) dot[t * n + i][h] =
                add_dot(dot[t * n + i][h], weights, x + i * width + c);
        }
}

INLINE void dot_q4(int32x4_t dot[MOST][QUARTERS], const uint8_t *w, size_t tile_bytes, size_t tiles,
                   const int8_t *x, size_t width, size_t group_size, size_t n) {
    const uint8x16_t nibble = vdupq_n_u8(15);
    for (size_t c = 0; c < group_size; c += 8)
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t h = 0; h < QUARTERS; h++) {
            const uint8x16_t both = vld1q_u8(w + t * tile_bytes + c * ROWS / 2 + h * 4 * LANES);
            const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, nibble));
            const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            UNROLL for (size_t i = 0; i < n; i++) {
                const int8_t *values = x + i * width + c;
                int32x4_t *d = &dot[t * n + i][h];
                *d = add_dot(*d, low, values);
                *d = add_dot(*d, high, values + 4);
            }
        }
}

INLINE void block_quantized(weight_bits type, float *y, size_t y_stride, const uint8_t *w,
                            size_t tile_bytes, size_t tiles, const sl_quantized *q, size_t row,
                            size_t n) {
    const size_t group_bytes = q->group_size * ROWS * type / 8, width = q->groups * q->group_size;
    const uint8_t *weights = w + sl_scale_bytes(q->groups);
    const int8_t *x = q->values + row * width;
    float32x4_t sum[MOST][QUARTERS];
    clear_sums(sum, tiles, n);
    for (size_t g = 0; g < q->groups; g++, weights += group_bytes, x += q->group_size) {
        const int32_t *sums = q->sums + row * q->groups + g;
        const float *x_scales = q->scales + row * q->groups + g;
        int32x4_t dot[MOST][QUARTERS];
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t i = 0; i < n; i++)
            UNROLL for (size_t h = 0; h < QUARTERS; h++) dot[t * n + i][h] =
                vdupq_n_s32(type == Q8 ? 0 : -8 * sums[i * q->groups]);
        if (type == Q8)
            dot_q8(dot, weights, tile_bytes, tiles, x, width, q->group_size, n);
        else
            dot_q4(dot, weights, tile_bytes, tiles, x, width, q->group_size, n);
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t h = 0; h < QUARTERS; h++) {
            const uint8_t *at = w + t * tile_bytes + (g * ROWS + h * LANES) * sizeof(uint16_t);
            const float32x4_t scales = load_scales(at);
            UNROLL for (size_t i = 0; i < n; i++) sum[t * n + i][h] =
                vfmaq_f32(sum[t * n + i][h], vcvtq_f32_s32(dot[t * n + i][h]),
                          vmulq_n_f32(scales, x_scales[i * q->groups]));
        }
    }
    store_sums(y, y_stride, sum, tiles, n);
}

static void matmul_q8(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    const size_t tile_bytes = sl_tile_bytes(8, x->groups, x->group_size);
#define BLOCK(tile, tile_n, i, i_n)                                                                \
    block_quantized(Q8, y + (i) * y_stride + (tile) * ROWS, y_stride, tiles + (tile) * tile_bytes, \
                    tile_bytes, tile_n, x, i, i_n)
    FOR_BLOCKS(BLOCK, tile_count, n, MOST)
#undef BLOCK
}

static void matmul_q4(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    const size_t tile_bytes = sl_tile_bytes(4, x->groups, x->group_size);
#define BLOCK(tile, tile_n, i, i_n)                                                                \
    block_quantized(Q4, y + (i) * y_stride + (tile) * ROWS, y_stride, tiles + (tile) * tile_bytes, \
                    tile_bytes, tile_n, x, i, i_n)
    FOR_BLOCKS(BLOCK, tile_count, n, MOST)
#undef BLOCK
}

/* ---- Vectors --------------------------------------------------------------------------------- */

/* x[n], n of at least 4 as 4 and zeros after fewer; and the way back. */
INLINE float32x4_t load(const float *x, size_t n) {
    if (n >= LANES) return vld1q_f32(x);
    float part[LANES] = {0};
    memcpy(part, x, n * sizeof *x);
    return vld1q_f32(part);
}

INLINE void store(float *y, size_t n, float32x4_t x) {
    if (n >= LANES)
        vst1q_f32(y, x);
    else
        memcpy(y, &x, n * sizeof *y);
}

/* x in the first n lanes, `other` in the rest. */
INLINE float32x4_t choose(size_t n, float32x4_t x, float32x4_t other) {
    const uint32x4_t lane = {0, 1, 2, 3};
    return vbslq_f32(vcltq_u32(lane, vdupq_n_u32(n < LANES ? (uint32_t)n : LANES)), x, other);
}

/* The largest |x|; NaN if there is one. Compared as integers, which order magnitudes the same. */
INLINE float largest_magnitude(const float *x, size_t n) {
    uint32x4_t most = vdupq_n_u32(0);
    for (size_t i = 0; i < n; i += LANES)
        most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(load(x + i, n - i))));
    return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(most))), 0);
}

static void quantize(const sl_quantized *q, size_t i, const float *x, size_t columns) {
    int8_t *values = q->values + i * q->groups * q->group_size;
    for (size_t g = 0; g < q->groups; g++, values += q->group_size) {
        const size_t start = g * q->group_size, rest = columns - start;
        const size_t width = rest < q->group_size ? rest : q->group_size;
        const float scale = largest_magnitude(x + start, width) / 127.0f;
        const float inverse = scale >= FLT_MIN ? 1.0f / scale : 0.0f;
        int32x4_t sum = vdupq_n_s32(0);
        for (size_t c = 0; c < q->group_size; c += LANES) {
            const float32x4_t part = load(x + start + c, c < width ? width - c : 0);
            const int32x4_t rounded = vcvtnq_s32_f32(vmulq_n_f32(part, inverse));
            const int16x4_t shorts = vmovn_s32(rounded);
            const int8x8_t bytes = vmovn_s16(vcombine_s16(shorts, shorts));
            memcpy(values + c, &bytes, LANES);
            sum = vaddq_s32(sum, rounded);
        }
        q->scales[i * q->groups + g] = scale;
        q->sums[i * q->groups + g] = vaddvq_s32(sum);
    }
}

static void to_f16(uint16_t *y, const float *x, size_t n) {
    const float32x4_t most = vdupq_n_f32(SL_F16_MAX), least = vdupq_n_f32(-SL_F16_MAX);
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t saturated = vminq_f32(most, vmaxq_f32(least, load(x + i, n - i)));
        const uint16x4_t rounded = vreinterpret_u16_f16(vcvt_f16_f32(saturated));
        memcpy(y + i, &rounded, (n - i < LANES ? n - i : LANES) * sizeof *y);
    }
}

static void rmsnorm(float *y, const float *x, const float *weight, size_t n, float eps) {
    float32x4_t squares = vdupq_n_f32(0);
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t part = load(x + i, n - i);
        squares = vfmaq_f32(squares, part, part);
    }
    const float scale = 1.0f / sqrtf(vaddvq_f32(squares) / (float)n + eps);
    for (size_t i = 0; i < n; i += LANES)
        store(y + i, n - i,
              vmulq_f32(vmulq_n_f32(load(x + i, n - i), scale), load(weight + i, n - i)));
}

/* x * cosine -+ swapped x * sine, the sign by lane. */
static void rotate(float *x, size_t heads, size_t head_dim, const float *table) {
    const float32x4_t signs = {-1, 1, -1, 1};
    for (size_t h = 0; h < heads; h++, x += head_dim)
        for (size_t i = 0; i < head_dim; i += LANES) {
            const float32x4_t pairs = load(x + i, head_dim - i);
            const float32x4_t angles = load(table + i, head_dim - i);
            const float32x4_t cosine = vtrn1q_f32(angles, angles);
            const float32x4_t sine = vmulq_f32(vtrn2q_f32(angles, angles), signs);
            store(x + i, head_dim - i,
                  vfmaq_f32(vmulq_f32(vrev64q_f32(pairs), sine), pairs, cosine));
        }
}

/* 2^k for k in -126 … 127. */
INLINE float32x4_t power_of_2(int32x4_t k) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(k, vdupq_n_s32(127)), 23));
}

/* exp(x) for x up to 88; 0 for what is below the smallest float; NaN stays NaN. 2^k goes in by
 * halves, for it may be below the smallest power that a float holds in full. */
INLINE float32x4_t exponential(float32x4_t x) {
    x = vmaxq_f32(vdupq_n_f32(EXP_MIN), x);
    const int32x4_t whole = vcvtnq_s32_f32(vmulq_n_f32(x, LOG2_E)), half = vshrq_n_s32(whole, 1);
    const float32x4_t k = vcvtq_f32_s32(whole);
    float32x4_t r = vfmsq_n_f32(x, k, LN_2_UPPER);
    r = vfmsq_n_f32(r, k, LN_2_LOWER);
    float32x4_t p = vdupq_n_f32(EXP_P4);
    p = vfmaq_f32(vdupq_n_f32(EXP_P3), p, r);
    p = vfmaq_f32(vdupq_n_f32(EXP_P2), p, r);
    p = vfmaq_f32(vdupq_n_f32(EXP_P1), p, r);
    p = vfmaq_f32(vdupq_n_f32(EXP_P0), p, r);
    p = vfmaq_f32(r, p, vmulq_f32(r, r));
    p = vmulq_f32(vaddq_f32(p, vdupq_n_f32(1)), power_of_2(half));
    return vmulq_f32(p, power_of_2(vsubq_s32(whole, half)));
}

static void swiglu(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t g = load(gate + i, n - i);
        /* Past 88 exp(-gate) is as good as infinite: silu is within 1e-36 of 0 there. */
        const float32x4_t e = exponential(vminq_f32(vdupq_n_f32(EXP_MAX), vnegq_f32(g)));
        const float32x4_t silu = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), e));
        store(y + i, n - i, vmulq_f32(silu, load(up + i, n - i)));
    }
}

/* Whether any lane of a comparison is true. */
INLINE int any(uint32x4_t lanes) {
    return vmaxvq_u32(lanes) != 0;
}

static size_t argmax(const float *x, size_t n) {
    float32x4_t most = vdupq_n_f32(-INFINITY);
    for (size_t i = 0; i < n; i += LANES)
        most = vmaxq_f32(most, choose(n - i, load(x + i, n - i), most));
    const float largest = vmaxvq_f32(most);
    size_t i = 0;
    while (i + LANES <= n && !any(vceqq_f32(vld1q_f32(x + i), vdupq_n_f32(largest)))) i += LANES;
    while (i + 1 < n && x[i] != largest) i++;
    return i;
}

static float exponentials(float *y, const float *x, size_t n, float shift, float scale) {
    float32x4_t sum = vdupq_n_f32(0);
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t distance = vsubq_f32(load(x + i, n - i), vdupq_n_f32(shift));
        const float32x4_t e = exponential(vmulq_n_f32(distance, scale));
        store(y + i, n - i, e);
        sum = vaddq_f32(sum, choose(n - i, e, vdupq_n_f32(0)));
    }
    return vaddvq_f32(sum);
}

static size_t select(int32_t *indices, const float *weights, size_t n, float floor) {
    size_t count = 0;
    for (size_t i = 0; i < n; i += LANES) {
        const size_t end = n - i < LANES ? n : i + LANES;
        if (any(vcgeq_f32(load(weights + i, n - i), vdupq_n_f32(floor))))
            for (size_t j = i; j < end; j++)
                if (weights[j] >= floor) indices[count++] = (int32_t)j;
    }
    return count;
}

SL_KERNEL_SET(neon, [SL_Q8] = matmul_q8, [SL_Q4] = matmul_q4);

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
