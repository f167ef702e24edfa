/* packing.h: matrices in the order in which a product reads them.
 *
 * A product takes its right matrix "packed": tiles of 32 rows (k) and 16 columns (n), the tiles of
 * the same columns one after the other. In float32 a tile is row-major. In bfloat16 its 16 lines
 * are n0k0 n0k1 n1k0 n1k1 …, the order that the instructions ask for. The left matrix may be
 * row-major or in tiles, see matrix.h. Sizes are multiples of 32; the columns of `pack` and the
 * rows of `pack_transpose` may be a multiple of 16.
 *
 * packing_bf16.h and packing_f32.h define
 *
 *     pack(to, from, rows, columns)                    pack matrix [rows, columns]
 *     pack_transpose(to, from, stride, rows, columns)  pack its transpose; row-major
 *     tile_transpose(to, from, rows, columns)          write its transpose in tiles
 *     transpose(to, from, rows, columns)               write its transpose; both row-major */

#ifndef FUSED_PACKING_H
#define FUSED_PACKING_H

#ifdef FUSED_FLOAT32
#include "packing_f32.h"
#else
#include "packing_bf16.h"
#endif

/* Pack 32 rows from `first` on of weights [rows, columns], and of their transpose. */
static void pack_weights(number *plain, number *transposed, const float *weights, int64_t first,
                         int64_t rows, int64_t columns) {
    number part[BLOCK * BLOCK];
    for (int64_t k = 0; k < columns; k += BLOCK) {
        for (int i = 0; i < BLOCK; i++)
            for (int j = 0; j < BLOCK; j += LANES)
                store(part + i * BLOCK + j, load_f32(weights + (first + i) * columns + k + j));
        for (int i = 0; i < 2; i++) {
            number *to =
                transposed + ((first / TILE + i) * (columns / BLOCK) + k / BLOCK) * TILE_SIZE;
            pack_transpose(to, part + i * TILE_SIZE, BLOCK, TILE, BLOCK);
            to = plain + ((k / TILE + i) * (rows / BLOCK) + first / BLOCK) * TILE_SIZE;
            pack(to, rows_of(part + i * TILE, BLOCK), BLOCK, TILE);
        }
    }
}

#endif
