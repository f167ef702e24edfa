/* peak.c: the loops of peak.h, in the widest vectors that the compiler may use. */

#include "peak.h"

#include <stddef.h>
#include <stdint.h>

#include "platform.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define REGISTER "v"
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define REGISTER "w"
#endif

/* The sums of a round must hide the latency of an instruction. Processors with AVX-512 or NEON have
 * 32 registers, others 16. */
#if defined(__AVX512F__) || defined(__ARM_NEON)
enum { ROUNDS = 1 << 20, SUMS = 24 };
#else
enum { ROUNDS = 1 << 21, SUMS = 12 };
#endif

/* Only unrolled loops have their sums in registers. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif

/* Define a loop over step(sum, a, b), which does `operations` operations. The sums do not wait for
 * each other. The empty assembly hides the values from the compiler, so it neither merges equal
 * sums nor removes unused ones. */
#define LOOP(name, input, result, operations, step)                                                \
    static double name(void) {                                                                     \
        result sums[SUMS] = {0};                                                                   \
        input a = {0}, b = {0};                                                                    \
        UNROLL for (int k = 0; k < SUMS; k++) __asm__ volatile("" : "+" REGISTER(sums[k]));        \
        for (int round = 0; round < ROUNDS; round++) {                                             \
            __asm__ volatile("" : "+" REGISTER(a), "+" REGISTER(b));                               \
            UNROLL for (int k = 0; k < SUMS; k++) sums[k] = step(sums[k], a, b);                   \
        }                                                                                          \
        UNROLL for (int k = 0; k < SUMS; k++) __asm__ volatile("" : : REGISTER(sums[k]));          \
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

/* ---- Tiles of AMX ---------------------------------------------------------------------------- */

#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
/* Configure all tile registers as 16 rows of 64 bytes. Returns whether the system permits it. */
static bool start_tiles(void) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, 16, 16},
    };
    if (!sl_request_tiles()) return false;
    __asm__ volatile("" : : "r"(&shapes) : "memory"); /* GCC does not know that all is read */
    _tile_loadconfig(&shapes);
    return true;
}

/* Define a loop over products of two tiles with four sums: more would not be faster, since a
 * product takes 16 cycles and 52 until its sum can be added to. */
#define TILE_LOOP(name, operations, product)                                                       \
    static double name(void) {                                                                     \
        enum { TILE_ROUNDS = 1 << 19, TILE_SUMS = 4 };                                             \
        if (!start_tiles()) return 0;                                                              \
        _tile_zero(0);                                                                             \
        _tile_zero(1);                                                                             \
        _tile_zero(2);                                                                             \
        _tile_zero(3);                                                                             \
        _tile_zero(4);                                                                             \
        _tile_zero(5);                                                                             \
        for (int round = 0; round < TILE_ROUNDS; round++) {                                        \
            product(0, 4, 5);                                                                      \
            product(1, 4, 5);                                                                      \
            product(2, 4, 5);                                                                      \
            product(3, 4, 5);                                                                      \
        }                                                                                          \
        _tile_release();                                                                           \
        return (double)TILE_ROUNDS * TILE_SUMS * (operations);                                     \
    }

TILE_LOOP(amx_int8, 2 * 16 * 16 * 64, _tile_dpbssd)
TILE_LOOP(amx_bf16, 2 * 16 * 16 * 32, _tile_dpbf16ps)
#else
#define amx_int8 NULL
#define amx_bf16 NULL
#endif

const peak peaks[PEAKS] = {
    {"f32", f32}, {"bf16", bf16}, {"int8", int8}, {"AMX bf16", amx_bf16}, {"AMX int8", amx_int8},
};
