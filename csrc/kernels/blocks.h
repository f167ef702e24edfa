/* blocks.h: cuts a product of matrices into blocks whose sums stay in registers.
 *
 * A block is a few tiles times a few rows of x. Its size is a constant where it is called, so that
 * the compiler unrolls it. Each sum is added up in the order of the columns whatever the block. */

#ifndef STORYLLAMAS_BLOCKS_H
#define STORYLLAMAS_BLOCKS_H

#include "kernels.h"

enum { ROWS = SL_TILE_ROWS };

typedef enum { Q4 = 4, Q8 = 8 } weight_bits;

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* BLOCK(tile, tiles, i, rows) for all of tile_count tiles times n rows of x. Where there are as
 * many, `together` rows, or 4, share the load of a weight; a single one keeps several tiles' sums
 * in flight. */
#define FOR_BLOCKS(BLOCK, tile_count, n, together)                                                 \
    for (size_t tile = 0, tiles_; tile < (tile_count); tile += tiles_) {                           \
        const size_t left = (tile_count) - tile;                                                   \
        tiles_ = left >= 4 ? 4 : left >= 2 ? 2 : 1;                                                \
        size_t i = 0;                                                                              \
        for (; i + (together) <= (n); i += (together))                                             \
            for (size_t t = 0; t < tiles_; t++) BLOCK(tile + t, 1, i, together);                   \
        for (; i + 4 <= (n); i += 4)                                                               \
            for (size_t t = 0; t < tiles_; t++) BLOCK(tile + t, 1, i, 4);                          \
        for (; i < (n); i++) {                                                                     \
            if (tiles_ == 4)                                                                       \
                BLOCK(tile, 4, i, 1);                                                              \
            else if (tiles_ == 2)                                                                  \
                BLOCK(tile, 2, i, 1);                                                              \
            else                                                                                   \
                BLOCK(tile, 1, i, 1);                                                              \
        }                                                                                          \
    }

#endif
