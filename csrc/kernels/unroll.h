/* unroll.h: what the kernels with registers of constant number share. */

#ifndef STORYLLAMAS_UNROLL_H
#define STORYLLAMAS_UNROLL_H

#include "kernels.h"

/* CHAINS: the even and the odd columns are added apart, so that an addition of one chain hides the
 * latency of the other; see kernels.h. */
enum { ROWS = SL_TILE_ROWS, CHAINS = 2 };

/* Types of the elements of a matrix, as bits of an element. */
typedef enum { Q4 = 4, Q8 = 8, F16 = 16, F32 = 32 } weight_bits;

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline)) /* for large functions that are called in two places */

/* Keep x in its register, on x86. Without this GCC copies the sums of vpdpbusd from register to
 * register in every iteration of a loop, which takes a third of the time. */
#if defined(__OPTIMIZE__) && !defined(__clang__)
#define KEEP_IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define KEEP_IN_REGISTER(x) ((void)0)
#endif

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#endif
