/* wasm.c: kernels for WebAssembly with SIMD128. The 16 rows of a tile are four registers of 4
 * lanes. */

#include "sets.h"

#ifdef SL_WASM

#include <math.h>
#include <wasm_simd128.h>

#include "blocks.h"
#include "exponential.h"

/* A browser compiles these instructions to those of the processor, which may have only 16
 * registers. So a block has 8 sums: two tiles with a row of x, or a tile with two rows. */
enum { LANES = 4, PARTS = ROWS / LANES, BLOCK_MAX = 2, ROW_TILES = 2 };
enum { FLOAT_ROWS = 2, QUANTIZED_ROWS = 2, Q8_BIAS = 128 };
enum { AVERAGE_REGISTERS = 8 };

/* ---- Registers, for matmul.h ----------------------------------------------------------------- */

typedef v128_t vector;
typedef v128_t integers;

INLINE vector zeros(void) {
    return wasm_f32x4_const_splat(0);
}

INLINE integers repeat(int32_t k) {
    return wasm_i32x4_splat(k);
}

INLINE vector load_f32(const float *w) {
    return wasm_v128_load(w);
}

/* Return a pointer about which the compiler knows nothing. Then constants that are added to it
 * become the offsets in instructions that load, and not additions of their own. */
INLINE const uint8_t *base(const uint8_t *at) {
    __asm__("" : "+r"(at));
    return at;
}

/* The NaN that to_f16 writes, as the largest integer. */
enum { NAN_F16 = 0x7fff };

/* Convert four f16 numbers that to_f16 wrote: shift the bits to where a float has them, then
 * multiply to correct the bias of the exponent. The product also makes subnormal numbers normal.
 * All bits of a float are set for NaN. */
INLINE vector load_f16(const uint16_t *w) {
    v128_t half = wasm_i32x4_load16x4(w);
    __asm__("" : "+r"(half)); /* else the compiler compares 16 bits, and widens the result */
    const v128_t is_nan = wasm_i32x4_eq(half, wasm_i32x4_const_splat(NAN_F16));
    const v128_t bits =
        wasm_v128_and(wasm_i32x4_shl(half, 13), wasm_i32x4_const_splat((int32_t)0x8fffe000));
    return wasm_f32x4_mul(wasm_v128_or(bits, is_nan), wasm_f32x4_const_splat(0x1p112f));
}

INLINE vector load_i8(const int8_t *w) {
    const v128_t shorts = wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(w));
    return wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(shorts));
}

INLINE vector load_scales(const uint8_t *scales) {
    return wasm_i32x4_shl(wasm_u32x4_load16x4(scales), 16);
}

INLINE void store_f32(float *y, vector x) {
    wasm_v128_store(y, x);
}

INLINE vector multiply_add(vector sum, vector w, float x) {
    return wasm_f32x4_add(sum, wasm_f32x4_mul(w, wasm_f32x4_splat(x)));
}

INLINE vector add_scaled(vector sum, integers dot, vector scales, float x_scale) {
    const vector scale = wasm_f32x4_mul(scales, wasm_f32x4_splat(x_scale));
    return wasm_f32x4_add(sum, wasm_f32x4_mul(wasm_f32x4_convert_i32x4(dot), scale));
}

/* Four columns of x as 16-bit numbers, the same in every lane: columns 0 and 2, columns 1 and 3. */
typedef struct {
    v128_t even, odd;
} columns4;

INLINE columns4 repeat_columns(const int8_t *x) {
    const v128_t four = wasm_v128_load32_splat(x);
    return (columns4){wasm_i16x8_shr(wasm_i16x8_shl(four, 8), 8), wasm_i16x8_shr(four, 8)};
}

/* Return sum plus the dot product of each lane's two 16-bit weights with x. */
INLINE v128_t add_dot(v128_t sum, v128_t weights, v128_t x) {
    return wasm_i32x4_add(sum, wasm_i32x4_dot_i16x8(weights, x));
}

/* There is no product of bytes. Even and odd bytes become 16-bit numbers, which keep their bias. */
INLINE void dot_q8(v128_t dot[BLOCK_MAX][PARTS], const uint8_t *w, size_t tile_bytes, size_t tiles,
                   const int8_t *x, size_t width, size_t group_size, size_t n) {
    const v128_t byte = wasm_i16x8_const_splat(255);
    for (size_t c = 0; c < group_size; c += 4) {
        columns4 columns[BLOCK_MAX];
        UNROLL for (size_t i = 0; i < n; i++) columns[i] = repeat_columns(x + i * width + c);
        UNROLL for (size_t t = 0; t < tiles; t++) {
            const uint8_t *at = base(w + t * tile_bytes + c * ROWS);
            UNROLL for (size_t h = 0; h < PARTS; h++) {
                const v128_t weights = wasm_v128_load(at + h * 4 * LANES);
                const v128_t even = wasm_v128_and(weights, byte), odd = wasm_u16x8_shr(weights, 8);
                UNROLL for (size_t i = 0; i < n; i++) {
                    v128_t *d = &dot[t * n + i][h];
                    *d = add_dot(*d, even, columns[i].even);
                    *d = add_dot(*d, odd, columns[i].odd);
                }
            }
        }
    }
}

/* The low four bits of a byte belong to the first four columns, the high ones to the next four. */
INLINE void dot_q4(v128_t dot[BLOCK_MAX][PARTS], const uint8_t *w, size_t tile_bytes, size_t tiles,
                   const int8_t *x, size_t width, size_t group_size, size_t n) {
    const v128_t nibble = wasm_i16x8_const_splat(15);
    for (size_t c = 0; c < group_size; c += 8) {
        columns4 first[BLOCK_MAX], second[BLOCK_MAX];
        UNROLL for (size_t i = 0; i < n; i++) {
            first[i] = repeat_columns(x + i * width + c);
            second[i] = repeat_columns(x + i * width + c + 4);
        }
        UNROLL for (size_t t = 0; t < tiles; t++) {
            const uint8_t *at = base(w + t * tile_bytes + c * ROWS / 2);
            UNROLL for (size_t h = 0; h < PARTS; h++) {
                const v128_t both = wasm_v128_load(at + h * 4 * LANES);
                const v128_t low_even = wasm_v128_and(both, nibble);
                const v128_t high_even = wasm_v128_and(wasm_u16x8_shr(both, 4), nibble);
                const v128_t low_odd = wasm_v128_and(wasm_u16x8_shr(both, 8), nibble);
                const v128_t high_odd = wasm_u16x8_shr(both, 12);
                UNROLL for (size_t i = 0; i < n; i++) {
                    v128_t *d = &dot[t * n + i][h];
                    *d = add_dot(*d, low_even, first[i].even);
                    *d = add_dot(*d, low_odd, first[i].odd);
                    *d = add_dot(*d, high_even, second[i].even);
                    *d = add_dot(*d, high_odd, second[i].odd);
                }
            }
        }
    }
}

#include "matmul.h"

#include "average.h"

/* ---- Lanes ----------------------------------------------------------------------------------- */

/* A browser makes each constant again in every round of a loop, so a round has many lanes. */
enum { ROUND = 4 * LANES };

/* Load 4 numbers of x[n]; if n is below 4, zeros follow. */
INLINE v128_t load(const float *x, size_t n) {
    if (n >= LANES) return wasm_v128_load(x);
    float part[LANES] = {0};
    memcpy(part, x, n * sizeof *x);
    return wasm_v128_load(part);
}

/* Store 4 numbers to y[n], or n if n is below 4. */
INLINE void store(float *y, size_t n, v128_t x) {
    if (n >= LANES)
        wasm_v128_store(y, x);
    else
        memcpy(y, &x, n * sizeof *y);
}

/* Return x in the first n lanes and `other` in the rest. */
INLINE v128_t choose(size_t n, v128_t x, v128_t other) {
    const v128_t lane = wasm_i32x4_const(0, 1, 2, 3);
    const v128_t is_first = wasm_i32x4_lt(lane, wasm_i32x4_splat(n < LANES ? (int32_t)n : LANES));
    return wasm_v128_bitselect(x, other, is_first);
}

/* Swap the two halves of a register, or the lanes of each half. */
INLINE v128_t swap_halves(v128_t x) {
    return wasm_i32x4_shuffle(x, x, 2, 3, 0, 1);
}

INLINE v128_t swap_pairs(v128_t x) {
    return wasm_i32x4_shuffle(x, x, 1, 0, 3, 2);
}

INLINE float add_lanes(v128_t x) {
    const v128_t two = wasm_f32x4_add(x, swap_halves(x));
    return wasm_f32x4_extract_lane(wasm_f32x4_add(two, swap_pairs(two)), 0);
}

/* ---- Quantization of activations ------------------------------------------------------------- */

/* Return the largest |x|, or NaN if there is one. Positive floats have the same order as their bits
 * compared as integers. */
INLINE float largest_magnitude(const float *x, size_t n) {
    v128_t max = zeros();
    size_t i = 0;
    for (; i + ROUND <= n; i += ROUND)
        UNROLL for (size_t j = i; j < i + ROUND; j += LANES) max =
            wasm_i32x4_max(max, wasm_f32x4_abs(wasm_v128_load(x + j)));
    for (; i < n; i += LANES) max = wasm_i32x4_max(max, wasm_f32x4_abs(load(x + i, n - i)));
    max = wasm_i32x4_max(max, swap_halves(max));
    return wasm_f32x4_extract_lane(wasm_i32x4_max(max, swap_pairs(max)), 0);
}

/* Round x to the nearest integers, ties to even, for |x| < 2^22. Adding 1.5 * 2^23 leaves an
 * integer in the low bits of the sum. The instruction that converts is many on some processors. */
INLINE v128_t nearest(v128_t x) {
    const v128_t shifted = wasm_f32x4_add(x, wasm_f32x4_const_splat(12582912.0f));
    return wasm_i32x4_sub(shifted, wasm_i32x4_const_splat(0x4b400000));
}

/* values = round(x * inverse); returns the sum of values */
INLINE int32_t quantize_group(int8_t *values, size_t group_size, const float *x, size_t width,
                              float inverse) {
    const v128_t factor = wasm_f32x4_splat(inverse);
    v128_t sum = zeros();
    size_t c = 0;
    for (; c + ROUND <= width; c += ROUND) {
        v128_t rounded[ROUND / LANES];
        UNROLL for (size_t p = 0; p < ROUND / LANES; p++) {
            rounded[p] = nearest(wasm_f32x4_mul(wasm_v128_load(x + c + p * LANES), factor));
            sum = wasm_i32x4_add(sum, rounded[p]);
        }
        const v128_t low = wasm_i16x8_narrow_i32x4(rounded[0], rounded[1]);
        const v128_t high = wasm_i16x8_narrow_i32x4(rounded[2], rounded[3]);
        wasm_v128_store(values + c, wasm_i8x16_narrow_i16x8(low, high));
    }
    for (; c < group_size; c += LANES) {
        const v128_t part = load(x + c, c < width ? width - c : 0);
        const v128_t rounded = nearest(wasm_f32x4_mul(part, factor));
        const v128_t shorts = wasm_i16x8_narrow_i32x4(rounded, rounded);
        wasm_v128_store32_lane(values + c, wasm_i8x16_narrow_i16x8(shorts, shorts), 0);
        sum = wasm_i32x4_add(sum, rounded);
    }
    sum = wasm_i32x4_add(sum, swap_halves(sum));
    return wasm_i32x4_extract_lane(wasm_i32x4_add(sum, swap_pairs(sum)), 0);
}

#include "quantize.h"

/* ---- Conversion to f16 ----------------------------------------------------------------------- */

/* Return x rounded to f16, in the low half of each lane. Adding 0.5 to a number below the smallest
 * normal f16 leaves the bits of the subnormal f16 in the low bits of the sum. */
INLINE v128_t nearest_f16(v128_t x) {
    const v128_t sign = wasm_v128_and(wasm_u32x4_shr(x, 16), wasm_i32x4_const_splat(0x8000));
    const v128_t magnitude = wasm_f32x4_pmin(wasm_f32x4_abs(x), wasm_f32x4_const_splat(SL_F16_MAX));
    const v128_t half = wasm_f32x4_const_splat(0.5f);
    const v128_t subnormal = wasm_i32x4_sub(wasm_f32x4_add(magnitude, half), half);
    const v128_t least_bit =
        wasm_v128_and(wasm_u32x4_shr(magnitude, 13), wasm_i32x4_const_splat(1));
    const v128_t rounding = wasm_i32x4_add(least_bit, wasm_i32x4_const_splat(0xfff - 0x38000000));
    const v128_t normal = wasm_u32x4_shr(wasm_i32x4_add(magnitude, rounding), 13);
    const v128_t is_subnormal = wasm_f32x4_lt(magnitude, wasm_f32x4_const_splat(0x1p-14f));
    const v128_t bits = wasm_v128_or(sign, wasm_v128_bitselect(subnormal, normal, is_subnormal));
    return wasm_v128_bitselect(wasm_i32x4_const_splat(NAN_F16), bits, wasm_f32x4_ne(x, x));
}

/* y = x rounded to f16 */
static void to_f16(uint16_t *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const v128_t bits = nearest_f16(load(x + i, n - i));
        const v128_t rounded = wasm_u16x8_narrow_i32x4(bits, bits);
        memcpy(y + i, &rounded, (n - i < LANES ? n - i : LANES) * sizeof *y);
    }
}

/* ---- RMSNorm, rotary position embedding, SwiGLU ---------------------------------------------- */

/* y = x / sqrt(mean(x²) + eps) * weight */
static void rmsnorm(float *y, const float *x, const float *weight, size_t n, float eps) {
    v128_t squares = zeros();
    for (size_t i = 0; i < n; i += LANES) {
        const v128_t part = load(x + i, n - i);
        squares = wasm_f32x4_add(squares, wasm_f32x4_mul(part, part));
    }
    const v128_t scale = wasm_f32x4_splat(1.0f / sqrtf(add_lanes(squares) / (float)n + eps));
    for (size_t i = 0; i < n; i += LANES)
        store(y + i, n - i,
              wasm_f32x4_mul(wasm_f32x4_mul(load(x + i, n - i), scale), load(weight + i, n - i)));
}

/* (even, odd) = (even * cosine - odd * sine, odd * cosine + even * sine): each lane times the
 * cosine, minus or plus its neighbour times the sine. */
static void rotate(float *x, size_t heads, size_t head_dim, const float *table) {
    const v128_t signs = wasm_f32x4_const(-1, 1, -1, 1);
    for (size_t h = 0; h < heads; h++, x += head_dim)
        for (size_t i = 0; i < head_dim; i += LANES) {
            const v128_t pairs = load(x + i, head_dim - i), angles = load(table + i, head_dim - i);
            const v128_t cosine = wasm_i32x4_shuffle(angles, angles, 0, 0, 2, 2);
            const v128_t sine =
                wasm_f32x4_mul(wasm_i32x4_shuffle(angles, angles, 1, 1, 3, 3), signs);
            store(x + i, head_dim - i,
                  wasm_f32x4_add(wasm_f32x4_mul(pairs, cosine),
                                 wasm_f32x4_mul(swap_pairs(pairs), sine)));
        }
}

/* Return 2^k for k in -126 … 127. */
INLINE v128_t power_of_2(v128_t k) {
    return wasm_i32x4_shl(wasm_i32x4_add(k, wasm_i32x4_const_splat(127)), 23);
}

/* Return p * r + k. */
INLINE v128_t horner(v128_t p, v128_t r, float k) {
    return wasm_f32x4_add(wasm_f32x4_mul(p, r), wasm_f32x4_splat(k));
}

/* Return exp(x) for x up to EXP_MAX, see exponential.h; NaN stays NaN. The factor 2^k is split in
 * two, because 2^k itself may be below the smallest normal float. */
INLINE v128_t exponential(v128_t x) {
    x = wasm_f32x4_pmax(x, wasm_f32x4_const_splat(EXP_MIN));
    const v128_t whole = nearest(wasm_f32x4_mul(x, wasm_f32x4_const_splat(LOG2_E)));
    const v128_t half = wasm_i32x4_shr(whole, 1), k = wasm_f32x4_convert_i32x4(whole);
    v128_t r = wasm_f32x4_sub(x, wasm_f32x4_mul(k, wasm_f32x4_const_splat(LN_2_UPPER)));
    r = wasm_f32x4_sub(r, wasm_f32x4_mul(k, wasm_f32x4_const_splat(LN_2_LOWER)));
    v128_t p = wasm_f32x4_const_splat(EXP_P4);
    p = horner(p, r, EXP_P3);
    p = horner(p, r, EXP_P2);
    p = horner(p, r, EXP_P1);
    p = horner(p, r, EXP_P0);
    p = wasm_f32x4_add(r, wasm_f32x4_mul(p, wasm_f32x4_mul(r, r)));
    p = wasm_f32x4_mul(wasm_f32x4_add(p, wasm_f32x4_const_splat(1)), power_of_2(half));
    return wasm_f32x4_mul(p, power_of_2(wasm_i32x4_sub(whole, half)));
}

/* Return gate / (1 + exp(-gate)) * up. -gate is limited to 88, as exp needs. Above that, silu is
 * within 1e-36 of 0 anyway. */
INLINE v128_t gated(v128_t gate, v128_t up) {
    const v128_t max = wasm_f32x4_const_splat(EXP_MAX);
    const v128_t e = exponential(wasm_f32x4_pmin(wasm_f32x4_neg(gate), max));
    const v128_t silu = wasm_f32x4_div(gate, wasm_f32x4_add(wasm_f32x4_const_splat(1), e));
    return wasm_f32x4_mul(silu, up);
}

static void swiglu(float *y, const float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + ROUND <= n; i += ROUND)
        UNROLL for (size_t j = i; j < i + ROUND; j += LANES)
            wasm_v128_store(y + j, gated(wasm_v128_load(gate + j), wasm_v128_load(up + j)));
    for (; i < n; i += LANES)
        store(y + i, n - i, gated(load(gate + i, n - i), load(up + i, n - i)));
}

/* ---- Softmax and sampling -------------------------------------------------------------------- */

static size_t argmax(const float *x, size_t n) {
    v128_t max = wasm_f32x4_splat(-INFINITY);
    size_t from = 0;
    for (; from + ROUND <= n; from += ROUND)
        UNROLL for (size_t j = from; j < from + ROUND; j += LANES) max =
            wasm_f32x4_pmax(max, wasm_v128_load(x + j));
    for (; from < n; from += LANES)
        max = wasm_f32x4_pmax(max, choose(n - from, load(x + from, n - from), max));
    max = wasm_f32x4_pmax(max, swap_halves(max));
    max = wasm_f32x4_pmax(max, swap_pairs(max));
    const float largest = wasm_f32x4_extract_lane(max, 0);
    size_t i = 0;
    while (i + LANES <= n && !wasm_v128_any_true(wasm_f32x4_eq(wasm_v128_load(x + i), max)))
        i += LANES;
    while (i + 1 < n && x[i] != largest) i++;
    return i;
}

/* y = exp((x - shift) * scale); the sum of y is the denominator of softmax */
static float exponentials(float *y, const float *x, size_t n, float shift, float scale) {
    const v128_t shifts = wasm_f32x4_splat(shift), scales = wasm_f32x4_splat(scale);
    v128_t sum = zeros();
    size_t i = 0;
    for (; i + ROUND <= n; i += ROUND) UNROLL for (size_t j = i; j < i + ROUND; j += LANES) {
            const v128_t distance = wasm_f32x4_sub(wasm_v128_load(x + j), shifts);
            const v128_t e = exponential(wasm_f32x4_mul(distance, scales));
            wasm_v128_store(y + j, e);
            sum = wasm_f32x4_add(sum, e);
        }
    for (; i < n; i += LANES) {
        const v128_t distance = wasm_f32x4_sub(load(x + i, n - i), shifts);
        const v128_t e = exponential(wasm_f32x4_mul(distance, scales));
        store(y + i, n - i, e);
        sum = wasm_f32x4_add(sum, choose(n - i, e, zeros()));
    }
    return add_lanes(sum);
}

static size_t select(int32_t *indices, const float *weights, size_t n, float floor) {
    const v128_t least = wasm_f32x4_splat(floor);
    size_t count = 0;
    for (size_t i = 0; i < n; i += LANES) {
        const size_t end = n - i < LANES ? n : i + LANES;
        if (wasm_v128_any_true(wasm_f32x4_ge(load(weights + i, n - i), least)))
            for (size_t j = i; j < end; j++)
                if (weights[j] >= floor) indices[count++] = (int32_t)j;
    }
    return count;
}

SL_KERNEL_SET(wasm, SL_AVERAGES, [SL_Q8] = matmul_q8, [SL_Q4] = matmul_q4);

#endif
