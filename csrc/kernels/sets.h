/* sets.h: the kernel sets that are built for this family of processors. */

#ifndef STORYLLAMAS_SETS_H
#define STORYLLAMAS_SETS_H

#include "kernels.h"

#if defined(__x86_64__)
#define SL_X86
#elif defined(__aarch64__) &&                                                                      \
    (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))
#define SL_ARM /* older Clangs have the dot product only where all files are compiled for it */
#endif

extern const sl_kernels sl_kernels_scalar;
extern const sl_kernels sl_kernels_avx2;
extern const sl_kernels sl_kernels_avx512;     /* with VNNI */
extern const sl_kernels sl_kernels_avx512bf16; /* and BF16 */
extern const sl_kernels sl_kernels_neon;       /* with the dot product */

/* matmul_bf16 of sl_kernels_avx512bf16. */
void sl_matmul_bf16_native(float *y, size_t y_stride, const uint16_t *tiles, size_t tile_stride,
                           size_t tile_count, size_t columns, const uint16_t *x, size_t x_stride,
                           size_t n);

#endif
