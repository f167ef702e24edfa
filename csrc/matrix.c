/* matrix.c: single numbers of a matrix in the file. */

#include "internal.h"

static int q8_weight(const sl_tile *tile, size_t lane, size_t column) {
    const size_t block = column / SL_TILE_COLUMNS, j = column % SL_TILE_COLUMNS;
    return tile->weights[(block * SL_TILE_ROWS + lane) * SL_TILE_COLUMNS + j] - 128;
}

static int q4_weight(const sl_tile *tile, size_t lane, size_t column) {
    const size_t half = column / SL_TILE_COLUMNS, j = column % SL_TILE_COLUMNS;
    const uint8_t byte = tile->weights[(half / 2 * SL_TILE_ROWS + lane) * SL_TILE_COLUMNS + j];
    return (half % 2 ? byte >> 4 : byte & 15) - 8;
}

size_t sl_tile_bytes(const sl_matrix *matrix) {
    const size_t columns = matrix->columns;
    if (matrix->type == SL_F32) return SL_TILE_ROWS * columns * sizeof(float);
    const size_t groups = sl_groups(matrix);
    return matrix->type == SL_Q8 ? sl_q8_tile_bytes(groups, matrix->group_size)
                                 : sl_q4_tile_bytes(groups, matrix->group_size);
}

void sl_read_row(const sl_matrix *matrix, size_t row, float *x) {
    const size_t lane = row % SL_TILE_ROWS, columns = matrix->columns;
    const uint8_t *start =
        (const uint8_t *)matrix->tiles + row / SL_TILE_ROWS * sl_tile_bytes(matrix);
    if (matrix->type == SL_F32) {
        const float *w = (const float *)(const void *)start + lane;
        for (size_t c = 0; c < columns; c++) x[c] = w[c * SL_TILE_ROWS];
        return;
    }
    const sl_tile tile = sl_tile_at(start, sl_groups(matrix));
    for (size_t c = 0; c < columns; c++) {
        const uint16_t scale = tile.scales[c / matrix->group_size * SL_TILE_ROWS + lane];
        const int weight =
            matrix->type == SL_Q4 ? q4_weight(&tile, lane, c) : q8_weight(&tile, lane, c);
        x[c] = sl_from_bf16(scale) * (float)weight;
    }
}
