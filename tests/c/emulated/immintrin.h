/* immintrin.h: the instructions that csrc/kernels/avx512.c and amx.c use, and the training step
 * with AVX-512, in plain C.
 *
 * Tests compile these files against this header, so they also run on processors without AVX-512 and
 * AMX. Each function is a loop over the lanes that computes what Intel's manual specifies for the
 * instruction. Masked loads and stores do not access the other lanes. */

#ifndef STORYLLAMAS_EMULATED_IMMINTRIN_H
#define STORYLLAMAS_EMULATED_IMMINTRIN_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef float __m512 __attribute__((vector_size(64)));
typedef int32_t __m512i __attribute__((vector_size(64)));
typedef uint16_t __m256i __attribute__((vector_size(32)));
typedef int8_t __m128i __attribute__((vector_size(16)));
typedef uint16_t __mmask16;

#define EMULATED static inline
#define LANE for (int l = 0; l < 16; l++)

/* Define a function that computes lane l of r, which is of type `type`. */
#define DEFINE(type, name, parameters, lane)                                                       \
    EMULATED type name parameters {                                                                \
        type r;                                                                                    \
        LANE lane;                                                                                 \
        return r;                                                                                  \
    }

/* ---- Constants, loads and stores ------------------------------------------------------------- */

#define _MM_HINT_T0 3
#define _MM_HINT_T1 2
#define _mm_prefetch(at, hint) __builtin_prefetch(at)

DEFINE(__m512, _mm512_setzero_ps, (void), r[l] = 0)
DEFINE(__m512, _mm512_set1_ps, (float x), r[l] = x)
DEFINE(__m512i, _mm512_setzero_si512, (void), r[l] = 0)
DEFINE(__m512i, _mm512_set1_epi32, (int32_t x), r[l] = x)
DEFINE(__m512i, _mm512_set1_epi8, (int8_t x), r[l] = (int32_t)((uint8_t)x * 0x01010101u))

#define _mm512_setr_epi32(...) ((__m512i){__VA_ARGS__})

EMULATED __m512 _mm512_loadu_ps(const void *at) {
    __m512 r;
    memcpy(&r, at, sizeof r);
    return r;
}

EMULATED __m512i _mm512_loadu_si512(const void *at) {
    __m512i r;
    memcpy(&r, at, sizeof r);
    return r;
}

EMULATED __m256i _mm256_loadu_si256(const __m256i *at) {
    __m256i r;
    memcpy(&r, at, sizeof r);
    return r;
}

EMULATED __m128i _mm_loadu_si128(const __m128i *at) {
    __m128i r;
    memcpy(&r, at, sizeof r);
    return r;
}

EMULATED void _mm512_storeu_ps(void *at, __m512 x) {
    memcpy(at, &x, sizeof x);
}

EMULATED void _mm512_storeu_si512(void *at, __m512i x) {
    memcpy(at, &x, sizeof x);
}

DEFINE(__m512, _mm512_mask_loadu_ps, (__m512 other, __mmask16 mask, const float *at),
       r[l] = mask >> l & 1 ? at[l] : other[l])
DEFINE(__m512, _mm512_maskz_loadu_ps, (__mmask16 mask, const float *at),
       r[l] = mask >> l & 1 ? at[l] : 0)

EMULATED void _mm512_mask_storeu_ps(float *at, __mmask16 mask, __m512 x) {
    LANE if (mask >> l & 1) at[l] = x[l];
}

EMULATED void _mm256_mask_storeu_epi16(uint16_t *at, __mmask16 mask, __m256i x) {
    LANE if (mask >> l & 1) at[l] = x[l];
}

EMULATED void _mm512_mask_cvtepi32_storeu_epi8(int8_t *at, __mmask16 mask, __m512i x) {
    LANE if (mask >> l & 1) at[l] = (int8_t)x[l];
}

/* ---- Floats ---------------------------------------------------------------------------------- */

DEFINE(__m512, _mm512_add_ps, (__m512 a, __m512 b), r[l] = a[l] + b[l])
DEFINE(__m512, _mm512_sub_ps, (__m512 a, __m512 b), r[l] = a[l] - b[l])
DEFINE(__m512, _mm512_mul_ps, (__m512 a, __m512 b), r[l] = a[l] * b[l])
DEFINE(__m512, _mm512_div_ps, (__m512 a, __m512 b), r[l] = a[l] / b[l])
DEFINE(__m512, _mm512_abs_ps, (__m512 a), r[l] = fabsf(a[l]))
/* If one is NaN the second operand is the result. */
DEFINE(__m512, _mm512_max_ps, (__m512 a, __m512 b), r[l] = a[l] > b[l] ? a[l] : b[l])
DEFINE(__m512, _mm512_min_ps, (__m512 a, __m512 b), r[l] = a[l] < b[l] ? a[l] : b[l])
DEFINE(__m512, _mm512_fmadd_ps, (__m512 a, __m512 b, __m512 c), r[l] = fmaf(a[l], b[l], c[l]))
DEFINE(__m512, _mm512_fnmadd_ps, (__m512 a, __m512 b, __m512 c), r[l] = fmaf(-a[l], b[l], c[l]))
DEFINE(__m512, _mm512_fmaddsub_ps, (__m512 a, __m512 b, __m512 c),
       r[l] = fmaf(a[l], b[l], l % 2 ? c[l] : -c[l]))
DEFINE(__m512, _mm512_mask_add_ps, (__m512 other, __mmask16 mask, __m512 a, __m512 b),
       r[l] = mask >> l & 1 ? a[l] + b[l] : other[l])
DEFINE(__m512, _mm512_moveldup_ps, (__m512 a), r[l] = a[l / 2 * 2])
DEFINE(__m512, _mm512_movehdup_ps, (__m512 a), r[l] = a[l / 2 * 2 + 1])
DEFINE(__m512, _mm512_permute_ps, (__m512 a, int order),
       r[l] = a[l / 4 * 4 + (order >> l % 4 * 2 & 3)])
/* The kernels only round to the nearest integer, ties to even: `how` is 0. */
DEFINE(__m512, _mm512_roundscale_ps, (__m512 a, int how), r[l] = how ? NAN : rintf(a[l]))
DEFINE(__m512, _mm512_scalef_ps, (__m512 a, __m512 b),
       r[l] = isnan(b[l]) ? b[l] : ldexpf(a[l], (int)floorf(b[l])))

/* Sums add halves, as compilers do. */
EMULATED float _mm512_reduce_add_ps(__m512 x) {
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++) x[l] += x[l + half];
    return x[0];
}

EMULATED float _mm512_reduce_max_ps(__m512 x) {
    LANE x[0] = x[0] > x[l] ? x[0] : x[l];
    return x[0];
}

enum { _CMP_EQ_OQ = 0x00, _CMP_GE_OQ = 0x1d };

EMULATED __mmask16 _mm512_mask_cmp_ps_mask(__mmask16 mask, __m512 a, __m512 b, int relation) {
    unsigned r = 0;
    LANE if (relation == _CMP_EQ_OQ ? a[l] == b[l] : a[l] >= b[l]) r |= 1u << l;
    return (__mmask16)(r & mask);
}

/* ---- Integers -------------------------------------------------------------------------------- */

EMULATED int32_t wrap(int64_t x) {
    return (int32_t)(uint32_t)x;
}

DEFINE(__m512i, _mm512_add_epi32, (__m512i a, __m512i b), r[l] = wrap((int64_t)a[l] + b[l]))
DEFINE(__m512i, _mm512_max_epi32, (__m512i a, __m512i b), r[l] = a[l] > b[l] ? a[l] : b[l])
DEFINE(__m512i, _mm512_and_si512, (__m512i a, __m512i b), r[l] = a[l] & b[l])
DEFINE(__m512i, _mm512_andnot_si512, (__m512i a, __m512i b), r[l] = ~a[l] & b[l])
DEFINE(__m512i, _mm512_slli_epi32, (__m512i a, unsigned k), r[l] = (int32_t)((uint32_t)a[l] << k))
DEFINE(__m512i, _mm512_srli_epi32, (__m512i a, unsigned k), r[l] = (int32_t)((uint32_t)a[l] >> k))
DEFINE(__m512i, _mm512_srai_epi32, (__m512i a, unsigned k), r[l] = a[l] >> k)

EMULATED int32_t _mm512_reduce_add_epi32(__m512i x) {
    int64_t sum = 0;
    LANE sum += x[l];
    return wrap(sum);
}

EMULATED int32_t _mm512_reduce_max_epi32(__m512i x) {
    LANE x[0] = x[0] > x[l] ? x[0] : x[l];
    return x[0];
}

EMULATED __m512i _mm512_maskz_compress_epi32(__mmask16 mask, __m512i x) {
    __m512i r = {0};
    int count = 0;
    LANE if (mask >> l & 1) r[count++] = x[l];
    return r;
}

/* Add the products of four unsigned bytes of a with four signed bytes of b to each lane. */
EMULATED __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    LANE for (int shift = 0; shift < 32; shift += 8) {
        const int64_t product = (int64_t)(uint8_t)(a[l] >> shift) * (int8_t)(b[l] >> shift);
        sum[l] = wrap(sum[l] + product);
    }
    return sum;
}

/* ---- Conversions ----------------------------------------------------------------------------- */

EMULATED __m512i _mm512_castps_si512(__m512 x) {
    __m512i r;
    memcpy(&r, &x, sizeof r);
    return r;
}

EMULATED __m512 _mm512_castsi512_ps(__m512i x) {
    __m512 r;
    memcpy(&r, &x, sizeof r);
    return r;
}

EMULATED __m512 _mm512_xor_ps(__m512 a, __m512 b) {
    __m512i x = _mm512_castps_si512(a), y = _mm512_castps_si512(b);
    LANE x[l] ^= y[l];
    return _mm512_castsi512_ps(x);
}

DEFINE(__m512i, _mm512_cvtepu16_epi32, (__m256i x), r[l] = x[l])
EMULATED __m512i _mm512_sub_epi8(__m512i a, __m512i b) {
    uint8_t x[64], y[64];
    memcpy(x, &a, sizeof a);
    memcpy(y, &b, sizeof b);
    for (size_t i = 0; i < sizeof x; i++) x[i] = (uint8_t)(x[i] - y[i]);
    memcpy(&a, x, sizeof a);
    return a;
}

DEFINE(__m512i, _mm512_cvtepi8_epi32, (__m128i x), r[l] = x[l])
DEFINE(__m512, _mm512_cvtepi32_ps, (__m512i x), r[l] = (float)x[l])
DEFINE(__m512i, _mm512_cvtps_epi32, (__m512 x),
       r[l] = fabsf(x[l]) < 0x1p31f ? (int32_t)rintf(x[l]) : INT32_MIN)

EMULATED float from_half(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    float x =
        exponent ? ldexpf((float)(1024 + mantissa), exponent - 25) : ldexpf((float)mantissa, -24);
    if (exponent == 31) x = mantissa ? NAN : INFINITY;
    return half >> 15 ? -x : x;
}

/* The mantissa of a normal number has a leading one, 1024, which counts as one of the exponent. */
EMULATED uint16_t to_half(float x) {
    const unsigned sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return (uint16_t)(sign | 0x7e00);
    if (fabsf(x) >= 65520) return (uint16_t)(sign | 0x7c00);
    int exponent = x == 0 ? -14 : ilogbf(x);
    if (exponent < -14) exponent = -14;
    const unsigned mantissa = (unsigned)rintf(ldexpf(fabsf(x), 10 - exponent));
    return (uint16_t)(sign | (((unsigned)(exponent + 14) << 10) + mantissa));
}

enum { _MM_FROUND_TO_NEAREST_INT };

DEFINE(__m512, _mm512_cvtph_ps, (__m256i x), r[l] = from_half(x[l]))
DEFINE(__m256i, _mm512_cvtps_ph, (__m512 x, int how), r[l] = how ? 0x7e00 : to_half(x[l]))

#undef DEFINE
#undef EMULATED
#undef LANE

#include "bf16.h"
#include "tiles.h"

#endif
