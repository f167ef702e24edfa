/* matrix.h: matrices in memory: row-major, or in row-major tiles of 16 rows and 32 columns. Tiles
 * of a wide matrix are read and written in longer runs than its rows. */

#ifndef FUSED_MATRIX_H
#define FUSED_MATRIX_H

#include "vectors.h"

/* Numbers between rows of a tile, between tiles below each other, and between tiles side by side.
 */
typedef struct {
    number *at;
    int64_t row, down, right;
} matrix;

static matrix rows_of(const number *at, int64_t stride) {
    return (matrix){(number *)at, stride, TILE * stride, BLOCK};
}

static matrix tiles_of(const number *at, int64_t columns) {
    return (matrix){(number *)at, BLOCK, columns * TILE, TILE_SIZE};
}

/* Return the place of row i and column j. The columns of the same 32 follow. */
static inline number *place(matrix of, int64_t i, int64_t j) {
    int64_t down = (int64_t)((uint64_t)i / TILE), right = (int64_t)((uint64_t)j / BLOCK);
    return of.at + down * of.down + (i - down * TILE) * of.row + right * of.right +
           (j - right * BLOCK);
}

/* Return the rows from i on and the columns from j on, which are multiples of 16 and 32. */
static matrix part_of(matrix of, int64_t i, int64_t j) {
    of.at = place(of, i, j);
    return of;
}

#endif
