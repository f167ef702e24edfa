/* avxvnni.h: the 8-bit dot product of AVX-VNNI, by instructions of AVX2. */

#ifndef STORYLLAMAS_EMULATED_AVXVNNI_H
#define STORYLLAMAS_EMULATED_AVXVNNI_H

#include <immintrin.h>

/* Multiply the bytes of even or odd numbers, unsigned by signed, and add neighbouring products. */
#define EVEN_PRODUCTS(a, b)                                                                        \
    _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),                                 \
                      _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8))
#define ODD_PRODUCTS(a, b) _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8))

#define _mm256_dpbusd_avx_epi32(sum, a, b)                                                         \
    _mm256_add_epi32(sum, _mm256_add_epi32(EVEN_PRODUCTS(a, b), ODD_PRODUCTS(a, b)))

#endif
