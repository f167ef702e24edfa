/* neon.c: kernels for all ARM64 processors. The 16 rows of a tile are four registers of 4 lanes.
 * dotprod.c and i8mm.c include this file for processors with more instructions. */

#include "sets.h"

#ifdef SL_ARM

#if defined(__clang__)
#if defined(HAS_I8MM)
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#elif defined(HAS_DOTPROD)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#endif
#else
#pragma GCC push_options
#if defined(HAS_I8MM)
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#elif defined(HAS_DOTPROD)
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#endif

#include <arm_neon.h>
#include <math.h>

#include "blocks.h"
#include "exponential.h"

/* A block of 6 rows of x has 24 sums, and leaves 8 of the 32 registers for weights and x. By the
 * number of instructions, 6 rows are better for pairs of rows, and 4 for the dot product. */
enum { LANES = 4, PARTS = ROWS / LANES, BLOCK_MAX = 6, ROW_TILES = 4 };
enum { FLOAT_ROWS = 6, AVERAGE_REGISTERS = 8 };
#ifdef HAS_I8MM
enum { QUANTIZED_ROWS = 6, Q8_BIAS = 128 };
#else
enum { QUANTIZED_ROWS = 4, Q8_BIAS = 0 };
#endif

/* ---- Registers, for matmul.h ----------------------------------------------------------------- */

typedef float32x4_t vector;
typedef int32x4_t integers;

INLINE vector zeros(void) {
    return vdupq_n_f32(0);
}

INLINE integers repeat(int32_t k) {
    return vdupq_n_s32(k);
}

INLINE vector load_f32(const float *w) {
    return vld1q_f32(w);
}

INLINE vector load_f16(const uint16_t *w) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(w)));
}

INLINE vector load_i8(const int8_t *w) {
    uint32_t four;
    memcpy(&four, w, sizeof four);
    const int16x4_t shorts = vget_low_s16(vmovl_s8(vcreate_s8(four)));
    return vcvtq_f32_s32(vmovl_s16(shorts));
}

INLINE vector load_scales(const uint8_t *scales) {
    const uint16x4_t half = vreinterpret_u16_u8(vld1_u8(scales));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

INLINE void store_f32(float *y, vector x) {
    vst1q_f32(y, x);
}

INLINE vector multiply_add(vector sum, vector w, float x) {
    return vfmaq_n_f32(sum, w, x);
}

INLINE vector add_scaled(vector sum, integers dot, vector scales, float x_scale) {
    return vfmaq_f32(sum, vcvtq_f32_s32(dot), vmulq_n_f32(scales, x_scale));
}

/* ---- Dot products of a group ----------------------------------------------------------------- */

#ifdef HAS_I8MM

/* The instructions multiply unsigned bytes by signed ones, so the weights keep their bias. */
INLINE uint8x16_t load_q8(const uint8_t *w) {
    return vld1q_u8(w);
}

/* Return sum plus the dot product of each lane's four weights with x[4]. */
INLINE int32x4_t add_dot(int32x4_t sum, uint8x16_t weights, const int8_t *x) {
    uint32_t four;
    memcpy(&four, x, sizeof four);
    return vusdotq_lane_s32(sum, weights, vcreate_s8(four), 0);
}

#else

/* The instructions multiply signed bytes, so the bias of 128 is first removed from q8 weights. q4
 * weights keep their bias of 8, because they are positive bytes. */
INLINE uint8x16_t load_q8(const uint8_t *w) {
    return veorq_u8(vld1q_u8(w), vdupq_n_u8(0x80));
}

/* Return sum plus the dot product of each lane's four weights with x[4]. */
INLINE int32x4_t add_dot(int32x4_t sum, uint8x16_t weights, const int8_t *x) {
    uint32_t four;
    memcpy(&four, x, sizeof four);
    const int8x16_t bytes = vreinterpretq_s8_u8(weights);
#ifdef HAS_DOTPROD
    return vdotq_lane_s32(sum, bytes, vcreate_s8(four), 0);
#else
    /* The sum of two products fits in 16 bits, since x is in -127 … 127. */
    const int8x16_t values = vreinterpretq_s8_u32(vdupq_n_u32(four));
    const int16x8_t first = vmull_s8(vget_low_s8(bytes), vget_low_s8(values));
    return vpadalq_s16(sum, vpaddq_s16(first, vmull_high_s8(bytes, values)));
#endif
}

#endif

/* Return sum plus the dot product of each lane's four weights, of 4 bits, in `low` with x[4] and in
 * `high` with the next four. */
INLINE int32x4_t add_dots_q4(int32x4_t sum, uint8x16_t low, uint8x16_t high, const int8_t *x) {
#ifdef HAS_DOTPROD
    return add_dot(add_dot(sum, low, x), high, x + 4);
#else
    const int8x16_t four = vreinterpretq_s8_u8(low), next = vreinterpretq_s8_u8(high);
    const int32x2_t values = vreinterpret_s32_s8(vld1_s8(x));
    const int8x16_t x0 = vreinterpretq_s8_s32(vdupq_lane_s32(values, 0));
    const int8x16_t x4 = vreinterpretq_s8_s32(vdupq_lane_s32(values, 1));
    int16x8_t first = vmull_s8(vget_low_s8(four), vget_low_s8(x0));
    first = vmlal_s8(first, vget_low_s8(next), vget_low_s8(x4));
    const int16x8_t second = vmlal_high_s8(vmull_high_s8(four, x0), next, x4);
    return vpadalq_s16(sum, vpaddq_s16(first, second));
#endif
}

/* Return the lower four bits of each byte. */
INLINE uint8x16_t low_bits(uint8x16_t both) {
    return vandq_u8(both, vdupq_n_u8(15));
}

INLINE void dot_rows_q8(int32x4_t dot[BLOCK_MAX][PARTS], const uint8_t *w, size_t tile_bytes,
                        size_t tiles, const int8_t *x, size_t width, size_t group_size, size_t n) {
    for (size_t c = 0; c < group_size; c += 4)
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t h = 0; h < PARTS; h++) {
            const uint8x16_t weights = load_q8(w + t * tile_bytes + c * ROWS + h * 4 * LANES);
            UNROLL for (size_t i = 0; i < n; i++) dot[t * n + i][h] =
                add_dot(dot[t * n + i][h], weights, x + i * width + c);
        }
}

INLINE void dot_rows_q4(int32x4_t dot[BLOCK_MAX][PARTS], const uint8_t *w, size_t tile_bytes,
                        size_t tiles, const int8_t *x, size_t width, size_t group_size, size_t n) {
    for (size_t c = 0; c < group_size; c += 8)
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t h = 0; h < PARTS; h++) {
            const uint8x16_t both = vld1q_u8(w + t * tile_bytes + c * ROWS / 2 + h * 4 * LANES);
            const uint8x16_t low = low_bits(both), high = vshrq_n_u8(both, 4);
            UNROLL for (size_t i = 0; i < n; i++) {
                const int8_t *values = x + i * width + c;
                dot[t * n + i][h] = add_dots_q4(dot[t * n + i][h], low, high, values);
            }
        }
}

#ifdef HAS_I8MM

/* The instruction multiplies 2 rows r of the matrix by 2 rows i of x, 8 columns each:
 *
 *     sum[r][i] += Σ_c w[r][c] x[i][c]
 *
 * so the sums of rows i and i + 1 of x lie side by side: dot[i] has those of the first two rows of
 * the matrix in a register, dot[i + 1] those of the other two. */
INLINE void interleave(int32x4_t dot[BLOCK_MAX][PARTS], size_t n) {
    UNROLL for (size_t i = 0; i < n; i += 2) UNROLL for (size_t h = 0; h < PARTS; h++) {
        const int32x4x2_t both = vzipq_s32(dot[i][h], dot[i + 1][h]);
        dot[i][h] = both.val[0], dot[i + 1][h] = both.val[1];
    }
}

/* Undo interleave. */
INLINE void separate(int32x4_t dot[BLOCK_MAX][PARTS], size_t n) {
    UNROLL for (size_t i = 0; i < n; i += 2) UNROLL for (size_t h = 0; h < PARTS; h++) {
        const int32x4x2_t both = vuzpq_s32(dot[i][h], dot[i + 1][h]);
        dot[i][h] = both.val[0], dot[i + 1][h] = both.val[1];
    }
}

/* Load 8 columns of 4 rows of the matrix: in weights[0] those of the first two rows, in weights[1]
 * those of the other two. In memory each row has four columns together. */
INLINE void load_pairs(uint8x16_t weights[2], weight_bits bits, const uint8_t *w) {
    const uint8x16_t start = vld1q_u8(w);
    const uint8x16_t first = bits == Q8 ? start : low_bits(start);
    const uint8x16_t second = bits == Q8 ? vld1q_u8(w + 4 * ROWS) : vshrq_n_u8(start, 4);
    const uint32x4x2_t both = vzipq_u32(vreinterpretq_u32_u8(first), vreinterpretq_u32_u8(second));
    weights[0] = vreinterpretq_u8_u32(both.val[0]);
    weights[1] = vreinterpretq_u8_u32(both.val[1]);
}

/* Add the dot products of a tile's group, whose columns are a multiple of 8, with an even number of
 * rows of x. */
INLINE void dot_pairs(weight_bits bits, int32x4_t dot[BLOCK_MAX][PARTS], const uint8_t *w,
                      const int8_t *x, size_t width, size_t group_size, size_t n) {
    interleave(dot, n);
    for (size_t c = 0; c < group_size; c += 8, w += 8 * ROWS * bits / 8) {
        int8x16_t pairs[BLOCK_MAX / 2];
        UNROLL for (size_t i = 0; i < n; i += 2) pairs[i / 2] =
            vcombine_s8(vld1_s8(x + i * width + c), vld1_s8(x + (i + 1) * width + c));
        UNROLL for (size_t h = 0; h < PARTS; h++) {
            uint8x16_t weights[2];
            load_pairs(weights, bits, w + h * 4 * LANES);
            UNROLL for (size_t i = 0; i < n; i++) dot[i][h] =
                vusmmlaq_s32(dot[i][h], weights[i % 2], pairs[i / 2]);
        }
    }
    separate(dot, n);
}

#endif

INLINE void dot_q8(int32x4_t dot[BLOCK_MAX][PARTS], const uint8_t *w, size_t tile_bytes,
                   size_t tiles, const int8_t *x, size_t width, size_t group_size, size_t n) {
#ifdef HAS_I8MM
    if (n > 1 && group_size % 8 == 0) {
        dot_pairs(Q8, dot, w, x, width, group_size, n);
        return;
    }
#endif
    dot_rows_q8(dot, w, tile_bytes, tiles, x, width, group_size, n);
}

INLINE void dot_q4(int32x4_t dot[BLOCK_MAX][PARTS], const uint8_t *w, size_t tile_bytes,
                   size_t tiles, const int8_t *x, size_t width, size_t group_size, size_t n) {
#ifdef HAS_I8MM
    if (n > 1) {
        dot_pairs(Q4, dot, w, x, width, group_size, n);
        return;
    }
#endif
    dot_rows_q4(dot, w, tile_bytes, tiles, x, width, group_size, n);
}

#include "matmul.h"

#include "average.h"

/* ---- Lanes ----------------------------------------------------------------------------------- */

/* Load 4 numbers of x[n]; if n is below 4, zeros follow. */
INLINE float32x4_t load(const float *x, size_t n) {
    if (n >= LANES) return vld1q_f32(x);
    float part[LANES] = {0};
    memcpy(part, x, n * sizeof *x);
    return vld1q_f32(part);
}

/* Store 4 numbers to y[n], or n if n is below 4. */
INLINE void store(float *y, size_t n, float32x4_t x) {
    if (n >= LANES)
        vst1q_f32(y, x);
    else
        memcpy(y, &x, n * sizeof *y);
}

/* Return x in the first n lanes and `other` in the rest. */
INLINE float32x4_t choose(size_t n, float32x4_t x, float32x4_t other) {
    const uint32x4_t lane = {0, 1, 2, 3};
    return vbslq_f32(vcltq_u32(lane, vdupq_n_u32(n < LANES ? (uint32_t)n : LANES)), x, other);
}

/* Return the sum of the 16 lanes of four registers, in the order of kernels.h. */
INLINE float add_lanes(const float32x4_t x[PARTS]) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/* ---- Quantization of activations ------------------------------------------------------------- */

/* Return the largest |x|, or NaN if there is one. Positive floats have the same order as their bits
 * compared as integers. */
INLINE float largest_magnitude(const float *x, size_t n) {
    uint32x4_t max = vdupq_n_u32(0);
    for (size_t i = 0; i < n; i += LANES)
        max = vmaxq_u32(max, vreinterpretq_u32_f32(vabsq_f32(load(x + i, n - i))));
    return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(max))), 0);
}

/* values = round(x * inverse); returns the sum of values */
INLINE int32_t quantize_group(int8_t *values, size_t group_size, const float *x, size_t width,
                              float inverse) {
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t c = 0; c < group_size; c += LANES) {
        const float32x4_t part = load(x + c, c < width ? width - c : 0);
        const int32x4_t rounded = vcvtnq_s32_f32(vmulq_n_f32(part, inverse));
        const int16x4_t shorts = vmovn_s32(rounded);
        const int8x8_t bytes = vmovn_s16(vcombine_s16(shorts, shorts));
        memcpy(values + c, &bytes, LANES);
        sum = vaddq_s32(sum, rounded);
    }
    return vaddvq_s32(sum);
}

#include "quantize.h"

/* ---- Conversion to f16 ----------------------------------------------------------------------- */

/* y = x rounded to f16 */
static void to_f16(uint16_t *y, const float *x, size_t n) {
    const float32x4_t max = vdupq_n_f32(SL_F16_MAX), min = vdupq_n_f32(-SL_F16_MAX);
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t saturated = vminq_f32(max, vmaxq_f32(min, load(x + i, n - i)));
        const uint16x4_t rounded = vreinterpret_u16_f16(vcvt_f16_f32(saturated));
        memcpy(y + i, &rounded, (n - i < LANES ? n - i : LANES) * sizeof *y);
    }
}

/* ---- RMSNorm, rotary position embedding, SwiGLU ---------------------------------------------- */

/* y = x / sqrt(mean(x²) + eps) * weight */
static void rmsnorm(float *y, const float *x, const float *weight, size_t n, float eps) {
    float32x4_t squares[PARTS] = {zeros(), zeros(), zeros(), zeros()};
    for (size_t i = 0; i < n; i += ROWS)
        UNROLL for (size_t p = 0; p < PARTS; p++) if (i + p * LANES < n) {
            const float32x4_t part = load(x + i + p * LANES, n - i - p * LANES);
            squares[p] = vfmaq_f32(squares[p], part, part);
        }
    const float scale = 1.0f / sqrtf(add_lanes(squares) / (float)n + eps);
    for (size_t i = 0; i < n; i += LANES)
        store(y + i, n - i,
              vmulq_f32(vmulq_n_f32(load(x + i, n - i), scale), load(weight + i, n - i)));
}

/* (even, odd) = (even * cosine - odd * sine, odd * cosine + even * sine): each lane times the
 * cosine, minus or plus its neighbour times the sine. */
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

/* Return 2^k for k in -126 … 127. */
INLINE float32x4_t power_of_2(int32x4_t k) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(k, vdupq_n_s32(127)), 23));
}

/* Return exp(x) for x up to EXP_MAX, see exponential.h; NaN stays NaN. The factor 2^k is split in
 * two, because 2^k itself may be below the smallest normal float. */
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

/* y = gate / (1 + exp(-gate)) * up */
static void swiglu(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t g = load(gate + i, n - i);
        /* -gate is limited to 88, as exp needs. Above that, silu is within 1e-36 of 0 anyway. */
        const float32x4_t e = exponential(vminq_f32(vdupq_n_f32(EXP_MAX), vnegq_f32(g)));
        const float32x4_t silu = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), e));
        store(y + i, n - i, vmulq_f32(silu, load(up + i, n - i)));
    }
}

/* ---- Softmax and sampling -------------------------------------------------------------------- */

/* Return whether a comparison is true in any lane. */
INLINE int any(uint32x4_t lanes) {
    return vmaxvq_u32(lanes) != 0;
}

static size_t argmax(const float *x, size_t n) {
    float32x4_t max = vdupq_n_f32(-INFINITY);
    for (size_t i = 0; i < n; i += LANES)
        max = vmaxq_f32(max, choose(n - i, load(x + i, n - i), max));
    const float largest = vmaxvq_f32(max);
    size_t i = 0;
    while (i + LANES <= n && !any(vceqq_f32(vld1q_f32(x + i), vdupq_n_f32(largest)))) i += LANES;
    while (i + 1 < n && x[i] != largest) i++;
    return i;
}

/* y = exp((x - shift) * scale); the sum of y is the denominator of softmax */
static float exponentials(float *y, const float *x, size_t n, float shift, float scale) {
    float32x4_t sum[PARTS] = {zeros(), zeros(), zeros(), zeros()};
    for (size_t i = 0; i < n; i += ROWS)
        UNROLL for (size_t p = 0; p < PARTS; p++) if (i + p * LANES < n) {
            const size_t at = i + p * LANES;
            const float32x4_t distance = vsubq_f32(load(x + at, n - at), vdupq_n_f32(shift));
            const float32x4_t e = exponential(vmulq_n_f32(distance, scale));
            store(y + at, n - at, e);
            sum[p] = vaddq_f32(sum[p], choose(n - at, e, zeros()));
        }
    return add_lanes(sum);
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

#if defined(HAS_I8MM)
SL_KERNEL_SET(i8mm, SL_AVERAGES, [SL_Q8] = matmul_q8, [SL_Q4] = matmul_q4);
#elif defined(HAS_DOTPROD)
SL_KERNEL_SET(dotprod, SL_AVERAGES, [SL_Q8] = matmul_q8, [SL_Q4] = matmul_q4);
#else
SL_KERNEL_SET(neon, SL_AVERAGES, [SL_Q8] = matmul_q8, [SL_Q4] = matmul_q4);
#endif

#ifdef __clang__
#ifdef HAS_DOTPROD
#pragma clang attribute pop
#endif
#else
#pragma GCC pop_options
#endif

#endif
