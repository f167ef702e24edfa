/* vectors.h: vectors of LANES floats, and the type of the matrices' numbers: bfloat16, or float32
 * if FUSED_FLOAT32 is defined. Arithmetic on vectors is that of the compiler: a * b + c is one
 * instruction. */

#ifndef FUSED_VECTORS_H
#define FUSED_VECTORS_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if !defined(FUSED_FLOAT32) && !defined(__AVX512F__)
#error "bfloat16 needs AVX-512 BF16"
#endif

#ifdef __AVX512F__
enum { LANES = 16 };
typedef float vector __attribute__((vector_size(64)));
typedef int32_t integers __attribute__((vector_size(64)));
typedef uint32_t naturals __attribute__((vector_size(64)));
static const naturals COUNT = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
enum { LANES = 8 };
typedef float vector __attribute__((vector_size(32)));
typedef int32_t integers __attribute__((vector_size(32)));
typedef uint32_t naturals __attribute__((vector_size(32)));
static const naturals COUNT = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

/* Sizes of the tiles and blocks that products compute, see packing.h. */
enum { TILE = 16, BLOCK = 32, TILE_SIZE = TILE * BLOCK };

static inline vector load_f32(const float *from) {
    vector x;
    memcpy(&x, from, sizeof x);
    return x;
}

static inline void store_f32(float *to, vector x) {
    memcpy(to, &x, sizeof x);
}

static inline vector repeat(float x) {
    return x - (vector){0};
}

/* Return a in the lanes whose mask is -1, and b in those whose mask is 0. */
static inline vector choose(integers mask, vector a, vector b) {
    return (vector)((mask & (integers)a) | (~mask & (integers)b));
}

/* ---- What has no operator -------------------------------------------------------------------- */

#ifdef __AVX512F__
#define OF_LANES(instruction) _mm512_##instruction
#else
#define OF_LANES(instruction) _mm256_##instruction
#endif

static inline vector larger_lanes(vector a, vector b) {
    return OF_LANES(max_ps)(a, b);
}

/* Pairs of lanes a b become b a, a a and b b. */
static inline vector swap_pairs(vector x) {
    return OF_LANES(permute_ps)(x, 0xb1);
}

static inline vector repeat_first(vector x) {
    return OF_LANES(moveldup_ps)(x);
}

static inline vector repeat_second(vector x) {
    return OF_LANES(movehdup_ps)(x);
}

#ifdef __AVX512F__

static inline float sum_of(vector x) {
    return _mm512_reduce_add_ps(x);
}

static inline float largest_of(vector x) {
    return _mm512_reduce_max_ps(x);
}

static inline vector nearest_integer(vector x) {
    return _mm512_roundscale_ps(x, 0);
}

/* Return x * 2^power for an integer `power` of at least -126. */
static inline vector times_power(vector x, vector power) {
    return _mm512_scalef_ps(x, power);
}

/* Transpose 16 x 16 numbers of 32 bits. */
static inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Write the transpose of 16 x 16 floats, whose rows are a stride apart. */
static inline void transpose_tile(float *to, int64_t to_stride, const float *from, int64_t stride) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * stride);
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * to_stride, r[i]);
}

#else

static inline float sum_of(vector x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline float largest_of(vector x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

static inline vector nearest_integer(vector x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* Return x * 2^power for an integer `power` of at least -126. Above 127 it is infinite. */
static inline vector times_power(vector x, vector power) {
    power = _mm256_min_ps(power, _mm256_set1_ps(128));
    integers exponent = (integers)_mm256_cvtps_epi32(power) + 127;
    return x * (vector)(exponent << 23);
}

/* Write the transpose of 8 x 8 floats. */
static inline void transpose8(float *to, int64_t to_stride, const float *from, int64_t stride) {
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(from + i * stride);
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

/* Write the transpose of 16 x 16 floats, whose rows are a stride apart. */
static inline void transpose_tile(float *to, int64_t to_stride, const float *from, int64_t stride) {
    for (int i = 0; i < TILE; i += 8)
        for (int j = 0; j < TILE; j += 8)
            transpose8(to + j * to_stride + i, to_stride, from + i * stride + j, stride);
}

#endif

/* ---- The numbers of a matrix ----------------------------------------------------------------- */

#ifdef FUSED_FLOAT32

typedef float number;

static inline vector load(const number *from) {
    return load_f32(from);
}

static inline void store(number *to, vector x) {
    store_f32(to, x);
}

/* Store 32 floats. */
static inline void store_row(number *to, const float *from) {
    memcpy(to, from, BLOCK * sizeof *to);
}

static inline float to_float(number x) {
    return x;
}

#else

typedef uint16_t number;

static inline vector load(const number *from) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

static inline void store(number *to, vector x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* Store 32 floats. */
static inline void store_row(number *to, const float *from) {
    _mm512_storeu_si512(
        to, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + TILE), _mm512_loadu_ps(from)));
}

static inline float to_float(number x) {
    uint32_t bits = (uint32_t)x << 16;
    float whole;
    memcpy(&whole, &bits, sizeof whole);
    return whole;
}

#endif

/* ---- Functions ------------------------------------------------------------------------------- */

static inline vector exponential(vector x) {
    x = larger_lanes(x, repeat(-87.0f));
    vector whole = nearest_integer(x * 1.44269504f);
    vector rest = x - whole * 0.693359375f;
    rest = rest - whole * -2.12194440e-4f;
    vector sum = repeat(1.0f / 720);
    sum = sum * rest + 1.0f / 120;
    sum = sum * rest + 1.0f / 24;
    sum = sum * rest + 1.0f / 6;
    sum = sum * rest + 0.5f;
    sum = sum * rest + 1.0f;
    sum = sum * rest + 1.0f;
    return times_power(sum, whole);
}

static inline vector sigmoid(vector x) {
    return 1.0f / (1.0f + exponential(-x));
}

#endif
