/* avx2.c: kernels for x86-64 processors with AVX2, fused multiply-add and f16 conversion. The 16
 * rows of a tile are two registers of 8 lanes. avxvnni.c defines HAS_VNNI and includes this file:
 * the products of quantized matrices then use the 8-bit dot product. */

#include "sets.h"

#if defined(SL_X86) && (defined(SL_AVX_VNNI) || !defined(HAS_VNNI))

/* The headers come before the target: GCC gives the target at their first #include to all that they
 * define. */
#include <immintrin.h>
#include <math.h>

#if defined(__clang__) && defined(HAS_VNNI)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif defined(HAS_VNNI)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "blocks.h"
#include "exponential.h"

enum { LANES = 8, PARTS = ROWS / LANES, BLOCK_MAX = 6, ROW_TILES = 4 };
enum { FLOAT_ROWS = 6, QUANTIZED_ROWS = 4 };
enum { AVERAGE_REGISTERS = 4 };

/* ---- Registers, for matmul.h ----------------------------------------------------------------- */

typedef __m256 vector;
typedef __m256i integers;

INLINE vector zeros(void) {
    return _mm256_setzero_ps();
}

INLINE integers repeat(int32_t k) {
    return _mm256_set1_epi32(k);
}

INLINE vector load_f32(const float *w) {
    return _mm256_loadu_ps(w);
}

INLINE vector load_f16(const uint16_t *w) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)w));
}

INLINE vector load_i8(const int8_t *w) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)w);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

INLINE vector load_scales(const uint8_t *scales) {
    const __m128i half = _mm_loadu_si128((const __m128i *)(const void *)scales);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

INLINE void store_f32(float *y, vector x) {
    _mm256_storeu_ps(y, x);
}

INLINE vector multiply_add(vector sum, vector w, float x) {
    return _mm256_fmadd_ps(w, _mm256_set1_ps(x), sum);
}

INLINE vector add_scaled(vector sum, integers dot, vector scales, float x_scale) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(scales, _mm256_set1_ps(x_scale)),
                           sum);
}

INLINE __m256i load_bytes(const void *bytes) {
    return _mm256_loadu_si256((const __m256i *)bytes);
}

/* Return the same four bytes in every lane. */
INLINE __m256i repeat_four(const void *bytes) {
    int32_t four;
    memcpy(&four, bytes, sizeof four);
    return _mm256_set1_epi32(four);
}

#ifdef HAS_VNNI

/* vpdpbusd multiplies unsigned bytes by signed ones, so the weights keep their bias. */
enum { Q8_BIAS = 128 };

/* Add the products of 32 bytes of weights, four columns of 8 rows, with four activations. */
INLINE __m256i add_dot(__m256i sum, __m256i weights, __m256i four) {
    sum = _mm256_dpbusd_avx_epi32(sum, weights, four);
    KEEP_IN_REGISTER(sum);
    return sum;
}

/* A single row of x prefetches the next tiles, as in the dot_q8 below. */
INLINE void dot_q8(__m256i dot[BLOCK_MAX][PARTS], const uint8_t *w, size_t tile_bytes, size_t tiles,
                   const int8_t *x, size_t width, size_t group_size, size_t n) {
    for (size_t c = 0; c < group_size; c += 4)
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t h = 0; h < PARTS; h++) {
            const uint8_t *at = w + t * tile_bytes + c * ROWS + h * 4 * LANES;
            const __m256i weights = load_bytes(at);
            if (n == 1 && h == 0) _mm_prefetch((const char *)at + tiles * tile_bytes, _MM_HINT_T1);
            UNROLL for (size_t i = 0; i < n; i++) dot[t * n + i][h] =
                add_dot(dot[t * n + i][h], weights, repeat_four(x + i * width + c));
        }
}

/* Add the products of the low four bits with the first four columns, and of the high ones with the
 * next four. */
INLINE void add_dot_q4(__m256i *sum, __m256i low, __m256i high, __m256i first, __m256i second) {
    *sum = add_dot(add_dot(*sum, low, first), high, second);
}

#else

enum { Q8_BIAS = 0 };

/* Add neighbouring pairs of 16-bit integers. */
INLINE __m256i add_pairs(__m256i sums) {
    return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}

/* sum += x. If GCC chose the instruction and its place, it would multiply for many sums before it
 * adds, run out of registers, and keep half of the sums in memory. */
INLINE void add_to(__m256i *sum, __m256i x) {
#if defined(__OPTIMIZE__) && !defined(__clang__)
    __asm__ volatile("vpaddd %1, %0, %0" : "+x"(*sum) : "x"(x));
#else
    *sum = _mm256_add_epi32(*sum, x);
#endif
}

/* Multiply four columns of 8 rows: first * second = |first| * (sign(first) second).
 *
 * vpmaddubsw multiplies unsigned bytes by signed ones and saturates the sum of two products at
 * 2^15 - 1. Two products of at most 128 * 127 fit. Those of weights up to 255, with their bias,
 * would not. */
INLINE __m256i multiply_signed(__m256i magnitudes, __m256i first, __m256i second) {
    return add_pairs(_mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(second, first)));
}

/* Load four columns of 8 rows, without their bias. */
INLINE __m256i load_signed(const uint8_t *w) {
    return _mm256_xor_si256(load_bytes(w), _mm256_set1_epi8((char)0x80));
}

/* A single row of x shares its magnitudes among several tiles. The speed is that of loading
 * weights. So each line prefetches the same line of the next tiles, to the cache level that is
 * fastest by measurement. */
INLINE void dot_q8_of_row(__m256i dot[BLOCK_MAX][PARTS], const uint8_t *w, size_t tile_bytes,
                          size_t tiles, const int8_t *x, size_t group_size) {
    for (size_t c = 0; c < group_size; c += 4) {
        const __m256i four = repeat_four(x + c), magnitudes = _mm256_abs_epi8(four);
        UNROLL for (size_t t = 0; t < tiles; t++) {
            const uint8_t *at = w + t * tile_bytes + c * ROWS;
            _mm_prefetch((const char *)at + tiles * tile_bytes, _MM_HINT_T1);
            UNROLL for (size_t h = 0; h < PARTS; h++) add_to(
                &dot[t][h], multiply_signed(magnitudes, four, load_signed(at + h * 4 * LANES)));
        }
    }
}

/* Several rows of x share the magnitudes of the weights. */
INLINE void dot_q8(__m256i dot[BLOCK_MAX][PARTS], const uint8_t *w, size_t tile_bytes, size_t tiles,
                   const int8_t *x, size_t width, size_t group_size, size_t n) {
    if (n == 1) {
        dot_q8_of_row(dot, w, tile_bytes, tiles, x, group_size);
        return;
    }
    for (size_t c = 0; c < group_size; c += 4) UNROLL for (size_t t = 0; t < tiles; t++) {
            const uint8_t *at = w + t * tile_bytes + c * ROWS;
            __m256i weights[PARTS], magnitudes[PARTS];
            UNROLL for (size_t h = 0; h < PARTS; h++) {
                weights[h] = load_signed(at + h * 4 * LANES);
                magnitudes[h] = _mm256_abs_epi8(weights[h]);
            }
            UNROLL for (size_t i = 0; i < n; i++) {
                const __m256i four = repeat_four(x + i * width + c);
                UNROLL for (size_t h = 0; h < PARTS; h++)
                    add_to(&dot[t * n + i][h], multiply_signed(magnitudes[h], weights[h], four));
            }
        }
}

/* The weights are at most 15 with their bias, so the sum of four products fits in 16 bits. */
INLINE void add_dot_q4(__m256i *sum, __m256i low, __m256i high, __m256i first, __m256i second) {
    add_to(sum, add_pairs(_mm256_add_epi16(_mm256_maddubs_epi16(low, first),
                                           _mm256_maddubs_epi16(high, second))));
}

#endif

INLINE void dot_q4(__m256i dot[BLOCK_MAX][PARTS], const uint8_t *w, size_t tile_bytes, size_t tiles,
                   const int8_t *x, size_t width, size_t group_size, size_t n) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (size_t c = 0; c < group_size; c += 8) UNROLL for (size_t t = 0; t < tiles; t++) {
            const uint8_t *at = w + t * tile_bytes + c * ROWS / 2;
            if (n == 1) _mm_prefetch((const char *)at + tiles * tile_bytes, _MM_HINT_T0);
            __m256i low[PARTS], high[PARTS];
            UNROLL for (size_t h = 0; h < PARTS; h++) {
                const __m256i both = load_bytes(at + h * 4 * LANES);
                low[h] = _mm256_and_si256(both, nibble);
                high[h] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
            }
            UNROLL for (size_t i = 0; i < n; i++) {
                const int8_t *values = x + i * width + c;
                const __m256i first = repeat_four(values), second = repeat_four(values + 4);
                UNROLL for (size_t h = 0; h < PARTS; h++)
                    add_dot_q4(&dot[t * n + i][h], low[h], high[h], first, second);
            }
        }
}

#include "matmul.h"

#include "average.h"

/* ---- Lanes ----------------------------------------------------------------------------------- */

/* Return a mask of the first n lanes, or of all lanes if n is 8 or more. */
INLINE __m256i lanes(size_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < LANES ? (int32_t)n : LANES), lane);
}

/* Load 8 numbers of x[n]; if n is below 8, zeros follow. */
INLINE __m256 load(const float *x, size_t n) {
    return n >= LANES ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, lanes(n));
}

/* Store 8 numbers to y[n], or n if n is below 8. */
INLINE void store(float *y, size_t n, __m256 x) {
    if (n >= LANES)
        _mm256_storeu_ps(y, x);
    else
        _mm256_maskstore_ps(y, lanes(n), x);
}

/* Return the sum of the 16 lanes of two registers, in the order of kernels.h. */
INLINE float add_lanes(const __m256 x[PARTS]) {
    const __m256 eight = _mm256_add_ps(x[0], x[1]);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float largest_lane(__m256 x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

INLINE int32_t add_integers(__m256i x) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

/* Convert 8 integers to 16 bits; they fit. */
INLINE __m128i narrow_signed(__m256i x) {
    return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

/* ---- Quantization of activations ------------------------------------------------------------- */

/* Return the largest |x|, or NaN if there is one. Positive floats have the same order as their bits
 * compared as integers. */
INLINE float largest_magnitude(const float *x, size_t n) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i max = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += LANES)
        max = _mm256_max_epi32(
            max, _mm256_and_si256(_mm256_castps_si256(load(x + i, n - i)), magnitude));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(four));
}

/* values = round(x * inverse); returns the sum of values */
INLINE int32_t quantize_group(int8_t *values, size_t group_size, const float *x, size_t width,
                              float inverse) {
    __m256i sum = _mm256_setzero_si256();
    for (size_t c = 0; c < group_size; c += LANES) {
        const __m256 part = load(x + c, c < width ? width - c : 0);
        const __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(part, _mm256_set1_ps(inverse)));
        const __m128i shorts = narrow_signed(rounded);
        const __m128i bytes = _mm_packs_epi16(shorts, shorts);
        const size_t left = group_size - c;
        memcpy(values + c, &bytes, left < LANES ? left : LANES);
        sum = _mm256_add_epi32(sum, rounded);
    }
    return add_integers(sum);
}

#include "quantize.h"

/* ---- Conversion to f16 ----------------------------------------------------------------------- */

/* y = x rounded to f16 */
static void to_f16(uint16_t *y, const float *x, size_t n) {
    const __m256 max = _mm256_set1_ps(SL_F16_MAX), min = _mm256_set1_ps(-SL_F16_MAX);
    for (size_t i = 0; i < n; i += LANES) {
        const __m256 saturated = _mm256_min_ps(max, _mm256_max_ps(min, load(x + i, n - i)));
        const __m128i rounded = _mm256_cvtps_ph(saturated, _MM_FROUND_TO_NEAREST_INT);
        if (n - i >= LANES)
            _mm_storeu_si128((__m128i *)(void *)(y + i), rounded);
        else
            memcpy(y + i, &rounded, (n - i) * sizeof *y);
    }
}

/* ---- RMSNorm, rotary position embedding, SwiGLU ---------------------------------------------- */

/* y = x / sqrt(mean(x²) + eps) * weight */
static void rmsnorm(float *y, const float *x, const float *weight, size_t n, float eps) {
    __m256 squares[PARTS] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (size_t i = 0; i < n; i += ROWS)
        UNROLL for (size_t p = 0; p < PARTS; p++) if (i + p * LANES < n) {
            const __m256 part = load(x + i + p * LANES, n - i - p * LANES);
            squares[p] = _mm256_fmadd_ps(part, part, squares[p]);
        }
    const __m256 scale = _mm256_set1_ps(1.0f / sqrtf(add_lanes(squares) / (float)n + eps));
    for (size_t i = 0; i < n; i += LANES)
        store(y + i, n - i,
              _mm256_mul_ps(_mm256_mul_ps(load(x + i, n - i), scale), load(weight + i, n - i)));
}

/* (even, odd) = (even * cosine - odd * sine, odd * cosine + even * sine): each lane times the
 * cosine, minus or plus its neighbour times the sine. */
static void rotate(float *x, size_t heads, size_t head_dim, const float *table) {
    for (size_t h = 0; h < heads; h++, x += head_dim)
        for (size_t i = 0; i < head_dim; i += LANES) {
            const __m256 pairs = load(x + i, head_dim - i), angles = load(table + i, head_dim - i);
            const __m256 swapped = _mm256_permute_ps(pairs, 0xb1);
            const __m256 cosine = _mm256_moveldup_ps(angles), sine = _mm256_movehdup_ps(angles);
            store(x + i, head_dim - i,
                  _mm256_fmaddsub_ps(pairs, cosine, _mm256_mul_ps(swapped, sine)));
        }
}

/* Return 2^k for k in -126 … 127. */
INLINE __m256 power_of_2(__m256i k) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
}

/* Return exp(x) for x up to EXP_MAX, see exponential.h; NaN stays NaN. The factor 2^k is split in
 * two, because 2^k itself may be below the smallest normal float. */
INLINE __m256 exponential(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(EXP_MIN), x);
    const __m256 k = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(LOG2_E)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(k, _mm256_set1_ps(LN_2_UPPER), x);
    r = _mm256_fnmadd_ps(k, _mm256_set1_ps(LN_2_LOWER), r);
    __m256 p = _mm256_set1_ps(EXP_P4);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_P3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_P2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_P1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_P0));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
    const __m256i whole = _mm256_cvtps_epi32(k), half = _mm256_srai_epi32(whole, 1);
    p = _mm256_mul_ps(_mm256_add_ps(p, _mm256_set1_ps(1.0f)), power_of_2(half));
    return _mm256_mul_ps(p, power_of_2(_mm256_sub_epi32(whole, half)));
}

/* y = gate / (1 + exp(-gate)) * up */
static void swiglu(float *y, const float *gate, const float *up, size_t n) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    for (size_t i = 0; i < n; i += LANES) {
        const __m256 g = load(gate + i, n - i);
        /* -gate is limited to 88, as exp needs. Above that, silu is within 1e-36 of 0 anyway. */
        const __m256 negative = _mm256_min_ps(_mm256_set1_ps(EXP_MAX), _mm256_xor_ps(g, sign));
        const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, exponential(negative)));
        store(y + i, n - i, _mm256_mul_ps(silu, load(up + i, n - i)));
    }
}

/* ---- Softmax and sampling -------------------------------------------------------------------- */

/* Return a bit mask of the lanes of x[n] for which `x relation number` is true. */
#define COMPARE(x, n, relation, number)                                                            \
    ((uint32_t)_mm256_movemask_ps(                                                                 \
        _mm256_and_ps(_mm256_castsi256_ps(lanes(n)),                                               \
                      _mm256_cmp_ps(load(x, n), _mm256_set1_ps(number), relation))))

/* Return the largest of x[n]; n is at least 1. */
INLINE float largest_of(const float *x, size_t n) {
    const __m256 low = _mm256_set1_ps(-INFINITY);
    const size_t whole = n / LANES * LANES;
    __m256 max =
        _mm256_blendv_ps(low, load(x + whole, n - whole), _mm256_castsi256_ps(lanes(n - whole)));
    for (size_t i = 0; i < whole; i += LANES) max = _mm256_max_ps(max, _mm256_loadu_ps(x + i));
    return largest_lane(max);
}

static size_t argmax(const float *x, size_t n) {
    const __m256 largest = _mm256_set1_ps(largest_of(x, n));
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const __m256 equal = _mm256_cmp_ps(_mm256_loadu_ps(x + i), largest, _CMP_EQ_OQ);
        if (_mm256_movemask_ps(equal))
            return i + (size_t)__builtin_ctz((uint32_t)_mm256_movemask_ps(equal));
    }
    for (; i < n; i++)
        if (x[i] == _mm256_cvtss_f32(largest)) return i;
    return 0;
}

/* y = exp((x - shift) * scale); the sum of y is the denominator of softmax */
static float exponentials(float *y, const float *x, size_t n, float shift, float scale) {
    const __m256 shifts = _mm256_set1_ps(shift), scales = _mm256_set1_ps(scale);
    __m256 sum[PARTS] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + ROWS <= n; i += ROWS) UNROLL for (size_t p = 0; p < PARTS; p++) {
            const __m256 distance = _mm256_sub_ps(_mm256_loadu_ps(x + i + p * LANES), shifts);
            const __m256 e = exponential(_mm256_mul_ps(distance, scales));
            _mm256_storeu_ps(y + i + p * LANES, e);
            sum[p] = _mm256_add_ps(sum[p], e);
        }
    for (size_t p = 0; i < n; i += LANES, p++) {
        const __m256 distance = _mm256_sub_ps(load(x + i, n - i), shifts);
        const __m256 e = exponential(_mm256_mul_ps(distance, scales));
        store(y + i, n - i, e);
        sum[p] = _mm256_add_ps(sum[p], _mm256_and_ps(e, _mm256_castsi256_ps(lanes(n - i))));
    }
    return add_lanes(sum);
}

static size_t select(int32_t *indices, const float *weights, size_t n, float floor) {
    size_t count = 0;
    for (size_t i = 0; i < n; i += LANES)
        for (uint32_t left = COMPARE(weights + i, n - i, _CMP_GE_OQ, floor); left; left &= left - 1)
            indices[count++] = (int32_t)i + __builtin_ctz(left);
    return count;
}

#ifdef HAS_VNNI
SL_KERNEL_SET(avxvnni, SL_AVERAGES, [SL_Q8] = matmul_q8, [SL_Q4] = matmul_q4);
#else
SL_KERNEL_SET(avx2, SL_AVERAGES, [SL_Q8] = matmul_q8, [SL_Q4] = matmul_q4);
#endif

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
