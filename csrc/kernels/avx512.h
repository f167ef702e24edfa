/* avx512.h: what the AVX-512 kernel files share. Include it before anything else of theirs.
 *
 * A tile's 16 rows are the 16 lanes of a register, so no sum ever crosses lanes. A block is a few
 * tiles times a few rows of x whose sums stay in registers; its size is a constant where it is
 * called, so that the compiler unrolls it. Each sum is kept in two chains, the even and the odd
 * steps, whatever the block, which hides the latency of one addition behind the other. */

#ifndef STORYLLAMAS_AVX512_H
#define STORYLLAMAS_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "sets.h"

enum { ROWS = SL_TILE_ROWS, CHAINS = 2 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Cut tile_count tiles times n rows of x into blocks: 8 rows of x share the load of a weight where
 * there are as many; a single one keeps several tiles' sums in flight. */
#define FOR_BLOCKS(BLOCK, tile_count, n)                                                           \
    for (size_t tile = 0; tile < (tile_count);) {                                                  \
        const size_t tiles_left = (tile_count) - tile;                                             \
        const size_t step = tiles_left < 4 ? 1 : 4;                                                \
        for (size_t i = 0; i < (n);) {                                                             \
            const size_t left = (n) - i;                                                           \
            if (left >= 8) {                                                                       \
                for (size_t t = 0; t < step; t++) BLOCK(tile + t, 1, i, 8);                        \
                i += 8;                                                                            \
            } else if (left >= 4) {                                                                \
                for (size_t t = 0; t < step; t++) BLOCK(tile + t, 1, i, 4);                        \
                i += 4;                                                                            \
            } else if (step == 4) {                                                                \
                BLOCK(tile, 4, i, 1);                                                              \
                i++;                                                                               \
            } else {                                                                               \
                BLOCK(tile, 1, i, 1);                                                              \
                i++;                                                                               \
            }                                                                                      \
        }                                                                                          \
        tile += step;                                                                              \
    }

#endif
