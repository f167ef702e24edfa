/* bf16.h: the instructions on bfloat16 and on the order of lanes that the training step uses, in
 * plain C. See immintrin.h. */

#ifndef STORYLLAMAS_EMULATED_BF16_H
#define STORYLLAMAS_EMULATED_BF16_H

typedef uint16_t __m512bh __attribute__((vector_size(64)));
typedef uint16_t __m256bh __attribute__((vector_size(32)));

static inline float from_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float whole;
    memcpy(&whole, &bits, sizeof whole);
    return whole;
}

/* Round to the nearest, ties to even; NaN stays NaN. */
static inline uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isnan(x)) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline __m256bh _mm512_cvtneps_pbh(__m512 x) {
    __m256bh r;
    for (int l = 0; l < 16; l++) r[l] = to_bf16(x[l]);
    return r;
}

/* The numbers of b come first. */
static inline __m512bh _mm512_cvtne2ps_pbh(__m512 a, __m512 b) {
    __m512bh r;
    for (int l = 0; l < 32; l++) r[l] = to_bf16(l < 16 ? b[l % 16] : a[l % 16]);
    return r;
}

/* Add the products of two neighbouring numbers of a and b to each lane, the second first. */
static inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    for (int l = 0; l < 16; l++)
        for (int i = 2 * l + 1; i >= 2 * l; i--)
            sum[l] = fmaf(from_bf16(a[i]), from_bf16(b[i]), sum[l]);
    return sum;
}

static inline void _mm256_storeu_si256(__m256i *at, __m256i x) {
    memcpy(at, &x, sizeof x);
}

static inline __m512i _mm512_or_si512(__m512i a, __m512i b) {
    return a | b;
}

/* Interleave numbers of `size` lanes from each four lanes of a and b: the lower or the upper half.
 */
static inline __m512i interleave_halves(__m512i a, __m512i b, int size, int upper) {
    __m512i r;
    for (int l = 0; l < 16; l++) {
        const int part = l % 4 / size, from = l / 4 * 4 + 2 * upper + part / 2 * size + l % size;
        r[l] = part % 2 ? b[from] : a[from];
    }
    return r;
}

static inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) {
    return interleave_halves(a, b, 1, 0);
}

static inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) {
    return interleave_halves(a, b, 1, 1);
}

static inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) {
    return interleave_halves(a, b, 2, 0);
}

static inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) {
    return interleave_halves(a, b, 2, 1);
}

/* Take two groups of four lanes of a, then two of b. */
static inline __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int groups) {
    __m512i r;
    for (int l = 0; l < 16; l++) {
        const int from = (groups >> l / 4 * 2 & 3) * 4 + l % 4;
        r[l] = l < 8 ? a[from] : b[from];
    }
    return r;
}

#endif
