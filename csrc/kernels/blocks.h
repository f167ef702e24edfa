/* blocks.h: divides a product of matrices into blocks whose sums stay in registers.
 *
 * A block is a few tiles times a few rows of x. The size of a block is a constant at its call, so
 * the compiler unrolls its loops. Each sum adds the columns in the same order in every block. */

#ifndef STORYLLAMAS_BLOCKS_H
#define STORYLLAMAS_BLOCKS_H

#include <stdbool.h>

#include "unroll.h"

/* Return the rows of the next block if n rows are left: `together`, 4 or 1. Single rows are slow,
 * so 8 or 9 rows become blocks of 4 and not one of 6. */
static inline size_t sl_block_rows(size_t n, size_t together) {
    if (n < 4 && n < together) return 1;
    const bool is_better_by_fours = together == 6 && n / 2 == 4;
    return n < together || is_better_by_fours ? 4 : together;
}

/* Call BLOCK(tile, tiles, i, rows) until all of tile_count tiles are multiplied with n rows of x.
 * A block of `together` rows, or of 4, loads each weight once for all its rows. A block of a single
 * row has up to ROW_TILES tiles, 4 or 2, whose sums do not wait for each other. All rows are
 * multiplied with these tiles before the next ones, so they stay in the second-level cache. */
#define FOR_BLOCKS(BLOCK, tile_count, n, together)                                                 \
    for (size_t tile = 0, tiles_; tile < (tile_count); tile += tiles_) {                           \
        const size_t left = (tile_count) - tile;                                                   \
        tiles_ = left >= ROW_TILES ? ROW_TILES : left >= 2 ? 2 : 1;                                \
        for (size_t i = 0, rows_; i < (n); i += rows_) {                                           \
            rows_ = sl_block_rows((n) - i, together);                                              \
            if (rows_ == (together))                                                               \
                for (size_t t = 0; t < tiles_; t++) BLOCK(tile + t, 1, i, together);               \
            else if (rows_ == 4)                                                                   \
                for (size_t t = 0; t < tiles_; t++) BLOCK(tile + t, 1, i, 4);                      \
            else if (tiles_ == 4)                                                                  \
                BLOCK(tile, 4, i, 1);                                                              \
            else if (tiles_ == 2)                                                                  \
                BLOCK(tile, 2, i, 1);                                                              \
            else                                                                                   \
                BLOCK(tile, 1, i, 1);                                                              \
        }                                                                                          \
    }

#endif
