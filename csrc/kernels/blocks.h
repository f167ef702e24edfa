/* blocks.h: splits a product of matrices into blocks whose sums stay in registers.
 *
 * A block is a few tiles times a few rows of x. The size of a block is a constant at its call, so
 * the compiler unrolls its loops. Each sum adds the columns in the same order in every block. */

#ifndef STORYLLAMAS_BLOCKS_H
#define STORYLLAMAS_BLOCKS_H

#include "kernels.h"

enum { ROWS = SL_TILE_ROWS };

/* A weight type, as the bits of a weight. */
typedef enum { Q4 = 4, Q8 = 8, F16 = 16, F32 = 32 } weight_bits;

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Call BLOCK(tile, tiles, i, rows) until all of tile_count tiles are multiplied with n rows of x.
 * If there are enough rows, `together` rows, or 4, share the load of a weight. A single row takes
 * up to 4 tiles, whose sums do not wait for each other. */
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
