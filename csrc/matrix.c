/* matrix.c: a matrix of the weight file, of any weight type. */

#include "matrix.h"

/* A new weight type needs a value in storyllamas.h, a row here, and a product in
 * kernels/scalar.c; the other kernel sets may add faster products. */
static const struct {
    const char *name;
    uint32_t bits; /* of a weight */
} types[] = {
    [SL_F32] = {"f32", 32},
    [SL_Q8] = {"q8", 8},
    [SL_Q4] = {"q4", 4},
};

_Static_assert(sizeof types / sizeof *types == SL_TYPE_COUNT, "every weight type has a row");

const char *sl_type_name(uint32_t type) {
    return type < SL_TYPE_COUNT ? types[type].name : NULL;
}

uint32_t sl_group_multiple(uint32_t type) {
    return SL_TILE_COLUMNS * 8 / types[type].bits;
}

size_t sl_matrix_tile_bytes(const sl_matrix *matrix) {
    if (!sl_is_quantized(matrix->type)) return SL_TILE_ROWS * matrix->columns * sizeof(float);
    return sl_tile_bytes(types[matrix->type].bits, sl_groups(matrix), matrix->group_size);
}

static const uint8_t *tile_start(const sl_matrix *matrix, size_t tile) {
    return (const uint8_t *)matrix->tiles + tile * sl_matrix_tile_bytes(matrix);
}

/* A row has four bytes in each block of columns. The low bits of the four bytes hold the first four
 * columns of the block, the next bits the next four. */
static void read_quantized_row(const sl_matrix *matrix, size_t row, float *x) {
    const uint32_t bits = types[matrix->type].bits;
    const int mask = (1 << bits) - 1, bias = 1 << (bits - 1);
    const size_t lane = row % SL_TILE_ROWS, columns = matrix->columns;
    const sl_tile tile = sl_tile_at(tile_start(matrix, row / SL_TILE_ROWS), sl_groups(matrix));
    const uint8_t *bytes = tile.weights + lane * SL_TILE_COLUMNS;
    for (size_t c = 0; c < columns; bytes += SL_TILE_ROWS * SL_TILE_COLUMNS) {
        const size_t group = c / matrix->group_size;
        const float scale = sl_from_bf16(tile.scales[group * SL_TILE_ROWS + lane]);
        for (uint32_t shift = 0; shift < 8; shift += bits)
            for (size_t j = 0; j < SL_TILE_COLUMNS && c < columns; j++, c++)
                x[c] = scale * (float)((bytes[j] >> shift & mask) - bias);
    }
}

void sl_read_row(const sl_matrix *matrix, size_t row, float *x) {
    if (sl_is_quantized(matrix->type)) {
        read_quantized_row(matrix, row, x);
        return;
    }
    const float *tile = (const float *)(const void *)tile_start(matrix, row / SL_TILE_ROWS);
    for (size_t c = 0; c < matrix->columns; c++) x[c] = tile[c * SL_TILE_ROWS + row % SL_TILE_ROWS];
}

void sl_multiply_tiles(const sl_kernels *kernels, const sl_matrix *matrix, size_t first,
                       size_t count, const float *x, const sl_quantized *quantized, size_t n,
                       float *y, size_t y_stride) {
    const uint8_t *tiles = tile_start(matrix, first);
    const size_t columns = matrix->columns;
    if (sl_is_quantized(matrix->type))
        sl_matmul_of(kernels, matrix->type)(y, y_stride, tiles, count, quantized, n);
    else
        kernels->matmul_f32(y, y_stride, (const float *)(const void *)tiles, SL_TILE_ROWS * columns,
                            SL_TILE_ROWS, count, columns, x, columns, n);
}
