/* peak.c: the loops of peak.h, in the widest vectors that the compiler may use. */

#include "peak.h"

#include <stddef.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define REGISTER "v"
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define REGISTER "w"
#endif

enum { ROUNDS = 1 << 21, SUMS = 12 };

/* Define a loop over step(sum, a, b), which does `operations` operations. The sums do not wait for
 * each other. The empty assembly hides the values from the compiler, so it neither merges equal
 * sums nor removes unused ones. */
#define LOOP(name, input, result, operations, step)                                                \
    static double name(void) {                                                                     \
        result sums[SUMS] = {0};                                                                   \
        input a = {0}, b = {0};                                                                    \
        for (int k = 0; k < SUMS; k++) __asm__ volatile("" : "+" REGISTER(sums[k]));               \
        for (int round = 0; round < ROUNDS; round++) {                                             \
            __asm__ volatile("" : "+" REGISTER(a), "+" REGISTER(b));                               \
            for (int k = 0; k < SUMS; k++) sums[k] = step(sums[k], a, b);                          \
        }                                                                                          \
        for (int k = 0; k < SUMS; k++) __asm__ volatile("" : : REGISTER(sums[k]));                 \
        return (double)ROUNDS * SUMS * (operations);                                               \
    }

/* ---- f32 ------------------------------------------------------------------------------------- */

#if defined(__AVX512F__)
#define STEP(sum, a, b) _mm512_fmadd_ps(a, b, sum)
LOOP(f32, __m512, __m512, 32, STEP)
#elif defined(__FMA__)
#define STEP(sum, a, b) _mm256_fmadd_ps(a, b, sum)
LOOP(f32, __m256, __m256, 16, STEP)
#elif defined(__ARM_NEON)
LOOP(f32, float32x4_t, float32x4_t, 8, vfmaq_f32)
#else
#define f32 NULL
#endif
#undef STEP

/* ---- bf16, with sums in f32 ------------------------------------------------------------------ */

#if defined(__AVX512BF16__)
#define STEP(sum, a, b) _mm512_dpbf16_ps(sum, a, b)
LOOP(bf16, __m512bh, __m512, 64, STEP)
#elif defined(__ARM_FEATURE_BF16)
LOOP(bf16, bfloat16x8_t, float32x4_t, 16, vbfdotq_f32)
#else
#define bf16 NULL
#endif
#undef STEP

/* ---- int8, with sums in 32 bits -------------------------------------------------------------- */

#if defined(__AVX512VNNI__)
#define STEP(sum, a, b) _mm512_dpbusd_epi32(sum, a, b)
LOOP(int8, __m512i, __m512i, 128, STEP)
#elif defined(__AVX2__) && defined(__AVXVNNI__)
#define STEP(sum, a, b) _mm256_dpbusd_avx_epi32(sum, a, b)
LOOP(int8, __m256i, __m256i, 64, STEP)
#elif defined(__AVX2__)
/* The product does not depend on the sum. The empty assembly keeps the compiler from computing it
 * once for all sums. */
static inline __m256i add_products(__m256i sum, __m256i a, __m256i b) {
    __asm__ volatile("" : "+v"(a));
    const __m256i pairs = _mm256_maddubs_epi16(a, b);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#define STEP(sum, a, b) add_products(sum, a, b)
LOOP(int8, __m256i, __m256i, 64, STEP)
#elif defined(__ARM_FEATURE_DOTPROD)
LOOP(int8, int8x16_t, int32x4_t, 32, vdotq_s32)
#else
#define int8 NULL
#endif

const peak peaks[PEAKS] = {{"f32", f32}, {"bf16", bf16}, {"int8", int8}};
