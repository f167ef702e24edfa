/* matrix.h: a matrix of the weight file, of any weight type. */

#ifndef STORYLLAMAS_MATRIX_H
#define STORYLLAMAS_MATRIX_H

#include <stdbool.h>

#include "kernels/kernels.h"

typedef struct {
    const void *tiles;
    uint32_t rows;
    uint32_t columns;
    uint32_t type;       /* SL_F32, SL_Q8 or SL_Q4 */
    uint32_t group_size; /* columns that share a scale; 0 for SL_F32 */
} sl_matrix;

/* Return whether a weight type has integer weights and a scale for each group. */
static inline bool sl_is_quantized(uint32_t type) {
    return type != SL_F32;
}

/* Return the number that a group size of a quantized type must be a multiple of: the columns whose
 * weights share four bytes of a row. */
uint32_t sl_group_multiple(uint32_t type);

/* Return the groups in a row of a quantized matrix. */
static inline size_t sl_groups(const sl_matrix *matrix) {
    return ((size_t)matrix->columns + matrix->group_size - 1) / matrix->group_size;
}

/* Round a number of rows up to whole tiles. A product has this many rows. */
static inline size_t sl_padded_rows(size_t rows) {
    return (rows + SL_TILE_ROWS - 1) / SL_TILE_ROWS * SL_TILE_ROWS;
}

/* Return the floats from one row of a product to the next. There is a cache line between them: rows
 * of 4 KB would compete for the same few lines of the first-level cache. */
static inline size_t sl_product_stride(size_t rows) {
    return sl_padded_rows(rows) + SL_TILE_ROWS;
}

/* Return the bytes from one tile to the next. */
size_t sl_matrix_tile_bytes(const sl_matrix *matrix);

/* Write row number `row` to x[columns]. */
void sl_read_row(const sl_matrix *matrix, size_t row, float *x);

/* Multiply n inputs with `count` tiles of the matrix from tile `first` on:
 * y[n][y_stride] = x[n][columns] times the transposed tiles. A quantized matrix multiplies
 * `quantized`, which holds the n inputs rounded to 8 bits. */
void sl_multiply_tiles(const sl_kernels *kernels, const sl_matrix *matrix, size_t first,
                       size_t count, const float *x, const sl_quantized *quantized, size_t n,
                       float *y, size_t y_stride);

#endif
