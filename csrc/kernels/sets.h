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
extern const sl_kernels sl_kernels_avx512; /* with VNNI */
extern const sl_kernels sl_kernels_neon;   /* with the dot product */

#endif
