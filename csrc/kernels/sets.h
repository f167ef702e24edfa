/* sets.h: the kernel sets, and the conditions under which each is built. */

#ifndef STORYLLAMAS_SETS_H
#define STORYLLAMAS_SETS_H

#include "kernels.h"

#if defined(SL_SCALAR_ONLY) /* for programs that need no speed and must compile fast */
#elif defined(__x86_64__)
#define SL_X86
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define SL_AVX_VNNI /* the compiler knows the 8-bit dot product in AVX */
#ifdef __linux__
#define SL_AMX /* and tile registers, for which other systems need other permissions */
#endif
#endif
#elif defined(__aarch64__)
#define SL_ARM
#if !defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD)
#define SL_DOTPROD /* an older Clang has the dot product only if all files are compiled for it */
#endif
#if defined(__clang__) ? __clang_major__ >= 16 || defined(__ARM_FEATURE_MATMUL_INT8)               \
                       : __GNUC__ >= 10
#define SL_I8MM /* the compiler knows the product of matrices of 8-bit integers */
#endif
#elif defined(__wasm_simd128__)
#define SL_WASM /* a module either runs or is rejected as a whole, so there is no test at run time \
                 */
#endif

extern const sl_kernels sl_kernels_scalar;
extern const sl_kernels sl_kernels_avx2;
extern const sl_kernels sl_kernels_avxvnni;
extern const sl_kernels sl_kernels_avx512; /* with VNNI */
#ifdef SL_AMX
/* Return the kernels with tile registers, or NULL if they are not bit-identical to those
 * of sl_kernels_avx512. Call it once, if sl_request_tiles returns true. */
const sl_kernels *sl_kernels_amx(void);
#endif
extern const sl_kernels sl_kernels_neon;
extern const sl_kernels sl_kernels_dotprod; /* neon with the 8-bit dot product */
extern const sl_kernels sl_kernels_i8mm;    /* and with the product of matrices of 8-bit integers */
extern const sl_kernels sl_kernels_wasm;    /* with SIMD128 */

/* The averages of average.h, or none. */
#define SL_AVERAGES .average_f32 = average_f32, .average_f16 = average_f16, .average_i8 = average_i8
#define SL_NO_AVERAGES .average_f32 = NULL

/* Define the table of a set. Its file has a static function for each kernel, of the same name. The
 * other arguments are the products for quantized weight types. */
#define SL_KERNEL_SET(set, averages, ...)                                                          \
    const sl_kernels sl_kernels_##set = {                                                          \
        .name = #set,                                                                              \
        .matmul_f32 = matmul_f32,                                                                  \
        .matmul_f16 = matmul_f16,                                                                  \
        .matmul_i8 = matmul_i8,                                                                    \
        averages,                                                                                  \
        .matmul_quantized = {__VA_ARGS__},                                                         \
        .quantize = quantize,                                                                      \
        .to_f16 = to_f16,                                                                          \
        .rmsnorm = rmsnorm,                                                                        \
        .rotate = rotate,                                                                          \
        .swiglu = swiglu,                                                                          \
        .argmax = argmax,                                                                          \
        .exponentials = exponentials,                                                              \
        .select = select,                                                                          \
    }

#endif
