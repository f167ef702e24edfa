/* avx512.h: what the AVX-512 kernel files share.
 *
 * A tile's 16 rows are the 16 lanes of a register, so no sum ever crosses lanes. A block is one
 * tile times some rows of x; the tiles are read one after the other, as memory likes it. Sums of
 * floats are kept in two chains, the even and the odd steps, whatever the block, which hides the
 * latency of one addition behind the other. */

#ifndef STORYLLAMAS_AVX512_H
#define STORYLLAMAS_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "blocks.h"
#include "sets.h"

enum { CHAINS = 2, MOST = 8 }; /* MOST: of tiles times rows of x in a block */

/* BLOCK(tile, i, rows) for all of tile_count tiles times n rows of x. */
#define FOR_TILES(BLOCK, tile_count, n)                                                            \
    for (size_t tile = 0; tile < (tile_count); tile++) {                                           \
        size_t i = 0;                                                                              \
        for (; i + 8 <= (n); i += 8) BLOCK(tile, i, 8);                                            \
        if (i + 4 <= (n)) {                                                                        \
            BLOCK(tile, i, 4);                                                                     \
            i += 4;                                                                                \
        }                                                                                          \
        if (i + 2 <= (n)) {                                                                        \
            BLOCK(tile, i, 2);                                                                     \
            i += 2;                                                                                \
        }                                                                                          \
        if (i < (n)) BLOCK(tile, i, 1);                                                            \
    }

#endif
