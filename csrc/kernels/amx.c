/* amx.c: products of quantized matrices on AMX, the tile registers of Intel's server processors
 * from Sapphire Rapids on. All other kernels are those of avx512.c. Where there is no such
 * processor, the tests run this file on a model of the tile instructions.
 *
 * A tile register holds up to 16 rows of 64 bytes. An instruction adds the product of two of them,
 * A · B, to a third: Σ_c a[i][c] b[c][r], in 32-bit integers. Here
 *
 *     A  is some rows i of x, up to 64 columns of a group
 *     B  is a tile of the weight file: 4 columns in each line of 64 bytes, 16 rows r of the matrix
 *     Σ  has a row for each i, which is the register `dot` of avx512.c
 *
 * so the sums are the same integers as there. They are multiplied by their scales in the same
 * order, and all results are bit-identical. */

#include "sets.h"

#ifdef SL_AMX

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,"           \
                                                   "avx512vnni,amx-tile,amx-int8"))),              \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8")
#endif

#include "unroll.h"

/* A product of fewer rows of x is that of avx512.c. Measured on Sapphire Rapids: tiles are faster
 * from 5 rows on in q8 and from 8 in q4, whose weights must be unpacked. */
enum { MIN_ROWS_Q8 = 5, MIN_ROWS_Q4 = 8 };

/* MIN_COLUMNS: fewer columns in A and B leave most of the instruction's time unused. */
enum { LINE = 64, MIN_COLUMNS = 32, PAIR = 2 };

/* The tile registers: the sums of two blocks of rows by two tiles, A of each block, B of each tile.
 * The intrinsics need numbers, since they write them into assembly. */
#define SUM_00 0
#define SUM_01 1
#define SUM_10 2
#define SUM_11 3
#define A_0 4
#define A_1 5
#define B_0 6
#define B_1 7

/* How a product is divided. All blocks have the same number of rows, so a thread configures its
 * tiles once; the last block overlaps the one before it. */
typedef struct {
    size_t blocks, rows; /* of x */
    size_t columns;      /* in A and B: a part of a group */
} division;

/* ---- Tile registers -------------------------------------------------------------------------- */

/* What LDTILECFG reads. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

_Static_assert(sizeof(tile_shapes) == 64, "the instruction reads 64 bytes");

/* Keep the compiler from moving or removing stores to what is at `start`. GCC's intrinsics do not
 * say what they read, so there must be a fence before and after they read what this file stores. */
INLINE void fence(const void *start) {
    __asm__ volatile("" : : "r"(start) : "memory");
}

/* Set the shapes of this thread's tile registers. */
INLINE void configure_tiles(division d) {
    tile_shapes shapes = {.palette = 1};
    for (size_t t = SUM_00; t <= SUM_11; t++) {
        shapes.rows[t] = (uint8_t)d.rows;
        shapes.row_bytes[t] = LINE;
    }
    for (size_t t = A_0; t <= A_1; t++) {
        shapes.rows[t] = (uint8_t)d.rows;
        shapes.row_bytes[t] = (uint16_t)d.columns;
    }
    for (size_t t = B_0; t <= B_1; t++) {
        shapes.rows[t] = (uint8_t)(d.columns / SL_TILE_COLUMNS);
        shapes.row_bytes[t] = LINE;
    }
    fence(&shapes);
    _tile_loadconfig(&shapes);
    fence(&shapes);
}

INLINE void clear_sums(void) {
    _tile_zero(SUM_00);
    _tile_zero(SUM_01);
    _tile_zero(SUM_10);
    _tile_zero(SUM_11);
}

/* Add the products of the columns in A and B, for a block or two and a tile or two. x0 and x1 are
 * the first rows of the blocks, w0 and w1 the columns of the tiles. */
INLINE void add_products(const int8_t *x0, const int8_t *x1, size_t x_stride, size_t blocks,
                         const uint8_t *w0, const uint8_t *w1, size_t tiles) {
    _tile_loadd(A_0, x0, x_stride);
    _tile_loadd(B_0, w0, LINE);
    _tile_dpbsud(SUM_00, A_0, B_0);
    if (tiles == 2) {
        _tile_loadd(B_1, w1, LINE);
        _tile_dpbsud(SUM_01, A_0, B_1);
    }
    if (blocks == 2) {
        _tile_loadd(A_1, x1, x_stride);
        _tile_dpbsud(SUM_10, A_1, B_0);
    }
    if (blocks == 2 && tiles == 2) _tile_dpbsud(SUM_11, A_1, B_1);
}

/* dot[block][tile][row of x][row of the matrix] = the sums */
INLINE void store_sums(int32_t dot[PAIR][PAIR][ROWS][ROWS], size_t blocks, size_t tiles) {
    _tile_stored(SUM_00, dot[0][0], LINE);
    if (tiles == 2) _tile_stored(SUM_01, dot[0][1], LINE);
    if (blocks == 2) _tile_stored(SUM_10, dot[1][0], LINE);
    if (blocks == 2 && tiles == 2) _tile_stored(SUM_11, dot[1][1], LINE);
}

/* ---- Quantized matrices ---------------------------------------------------------------------- */

/* Convert 16 bf16 numbers to floats. */
INLINE __m512 load_scales(const uint16_t *scales) {
    const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)scales);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Unpack columns of q4 weights to the layout of q8. A line has four columns in the lower bits of
 * its bytes and the next four in the upper bits. */
INLINE void unpack_q4(uint8_t *target, const uint8_t *w, size_t columns) {
    const __m512i lower = _mm512_set1_epi8(0x0f);
    for (size_t c = 0; c < columns; c += 2 * SL_TILE_COLUMNS, w += LINE, target += 2 * LINE) {
        const __m512i both = _mm512_loadu_si512(w);
        const __m512i upper = _mm512_and_si512(_mm512_srli_epi32(both, 4), lower);
        _mm512_storeu_si512(target, _mm512_and_si512(both, lower));
        _mm512_storeu_si512(target + LINE, upper);
    }
}

/* Return the first row of a block. */
INLINE size_t block_start(division d, size_t block, size_t n) {
    return block + 1 < d.blocks ? block * d.rows : n - d.rows;
}

/* Compute the rows of a block or two, which start at rows[block], for a tile or two. The stored
 * weights are w + bias, so for each group g
 *
 *     dot = Σ_c (w[t][c] + bias) x[i][c] - bias Σ_c x[i][c]
 *     sum[t][i] += dot * scale[t][g] * x_scale[i][g] */
INLINE void block_quantized(weight_bits bits, float *y, size_t y_stride, const uint8_t *start,
                            size_t tile_bytes, size_t tiles, const sl_quantized *q,
                            const size_t rows[PAIR], size_t blocks, division d) {
    const size_t width = q->groups * q->group_size, column_bytes = ROWS * bits / 8;
    const int32_t bias = bits == Q8 ? 128 : 8; /* of the stored weights */
    const int8_t *x0 = q->values + rows[0] * width, *x1 = q->values + rows[blocks - 1] * width;
    _Alignas(LINE) float sum[PAIR][PAIR][ROWS][ROWS];
    _Alignas(LINE) int32_t dot[PAIR][PAIR][ROWS][ROWS];
    _Alignas(LINE) uint8_t unpacked[PAIR][LINE * ROWS];
    const uint8_t *w0 = sl_tile_at(start, q->groups).weights, *w1 = w0 + (tiles - 1) * tile_bytes;
    memset(sum, 0, sizeof sum);
    for (size_t g = 0; g < q->groups; g++) {
        clear_sums();
        for (size_t c = 0; c < q->group_size; c += d.columns) {
            const uint8_t *b0 = w0, *b1 = w1;
            if (bits == Q4) {
                b0 = unpacked[0], b1 = unpacked[1];
                unpack_q4(unpacked[0], w0, d.columns);
                if (tiles == 2) unpack_q4(unpacked[1], w1, d.columns);
                fence(unpacked);
            }
            add_products(x0, x1, width, blocks, b0, b1, tiles);
            if (bits == Q4) fence(unpacked);
            x0 += d.columns, x1 += d.columns;
            w0 += d.columns * column_bytes, w1 += d.columns * column_bytes;
        }
        store_sums(dot, blocks, tiles);
        __m512 scales[PAIR];
        for (size_t t = 0; t < tiles; t++)
            scales[t] =
                load_scales(sl_tile_at(start + t * tile_bytes, q->groups).scales + g * ROWS);
        for (size_t b = 0; b < blocks; b++)
            for (size_t i = 0; i < d.rows; i++) {
                const size_t at = (rows[b] + i) * q->groups + g; /* of scales and sums */
                const __m512i biased = _mm512_set1_epi32(-bias * q->sums[at]);
                const __m512 x_scale = _mm512_set1_ps(q->scales[at]);
                UNROLL for (size_t t = 0; t < tiles; t++) {
                    const __m512i whole =
                        _mm512_add_epi32(_mm512_loadu_si512(dot[b][t][i]), biased);
                    const __m512 next = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole),
                                                        _mm512_mul_ps(scales[t], x_scale),
                                                        _mm512_loadu_ps(sum[b][t][i]));
                    _mm512_storeu_ps(sum[b][t][i], next);
                }
            }
    }
    for (size_t b = 0; b < blocks; b++)
        for (size_t i = 0; i < d.rows; i++)
            for (size_t t = 0; t < tiles; t++)
                memcpy(y + (rows[b] + i) * y_stride + t * ROWS, sum[b][t][i], sizeof sum[b][t][i]);
}

/* Compute y by two tiles and two blocks of rows at a time: four sums, which do not wait for each
 * other and use each A and B twice. */
INLINE void matmul_quantized(weight_bits bits, float *y, size_t y_stride, const uint8_t *tiles,
                             size_t tile_count, const sl_quantized *x, size_t n, division d) {
    const size_t tile_bytes = sl_tile_bytes(bits, x->groups, x->group_size);
    configure_tiles(d);
    for (size_t tile = 0; tile < tile_count; tile += PAIR)
        for (size_t block = 0; block < d.blocks; block += PAIR) {
            const size_t rows[PAIR] = {block_start(d, block, n), block_start(d, block + 1, n)};
#define BLOCK(tile_n, blocks)                                                                      \
    block_quantized(bits, y + tile * ROWS, y_stride, tiles + tile * tile_bytes, tile_bytes,        \
                    tile_n, x, rows, blocks, d)
            const bool has_tiles = tile + 1 < tile_count, has_blocks = block + 1 < d.blocks;
            if (has_tiles && has_blocks)
                BLOCK(2, 2);
            else if (has_tiles)
                BLOCK(2, 1);
            else if (has_blocks)
                BLOCK(1, 2);
            else
                BLOCK(1, 1);
#undef BLOCK
        }
    _tile_release(); /* so that the system need not save the tiles when it switches threads */
}

/* Divide a product of n rows. The columns of A and B are the largest part of a group that fits and
 * is a whole number of lines. */
INLINE division divide(size_t line_columns, size_t group_size, size_t n) {
    division d = {.blocks = (n + ROWS - 1) / ROWS, .columns = LINE};
    if (d.blocks) d.rows = (n + d.blocks - 1) / d.blocks;
    while (d.columns > line_columns && group_size % d.columns) d.columns -= line_columns;
    return d;
}

static void matmul_q8(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    const division d = divide(4, x->group_size, n);
    if (n < MIN_ROWS_Q8 || d.columns < MIN_COLUMNS)
        sl_kernels_avx512.matmul_quantized[SL_Q8](y, y_stride, tiles, tile_count, x, n);
    else
        matmul_quantized(Q8, y, y_stride, tiles, tile_count, x, n, d);
}

static void matmul_q4(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    const division d = divide(8, x->group_size, n);
    if (n < MIN_ROWS_Q4 || d.columns < MIN_COLUMNS)
        sl_kernels_avx512.matmul_quantized[SL_Q4](y, y_stride, tiles, tile_count, x, n);
    else
        matmul_quantized(Q4, y, y_stride, tiles, tile_count, x, n, d);
}

/* ---- The set --------------------------------------------------------------------------------- */

/* Return whether a small product is bit-identical to that of avx512.c. */
static bool agrees(sl_matmul_quantized *matmul, uint32_t type, size_t bits) {
    enum {
        TILES = 3,
        GROUPS = 2,
        GROUP_SIZE = 96,
        N = 35,
        BYTES = TILES * GROUPS * GROUP_SIZE * 17
    };
    _Alignas(LINE) uint8_t tiles[BYTES];
    int8_t values[N * GROUPS * GROUP_SIZE];
    float scales[N * GROUPS], y[N][TILES * ROWS], expected[N][TILES * ROWS];
    int32_t sums[N * GROUPS] = {0};
    const sl_quantized x = {values, scales, sums, GROUPS, GROUP_SIZE};
    const size_t tile_bytes = sl_tile_bytes(bits, GROUPS, GROUP_SIZE);
    uint32_t random = 1;
    for (size_t i = 0; i < BYTES; i++) {
        random = random * 1664525u + 1013904223u;
        tiles[i] = (uint8_t)(random >> 24);
    }
    for (size_t t = 0; t < TILES; t++) {
        const uint16_t scale = 0x3c01; /* 0.0079 */
        for (size_t i = 0; i < GROUPS * ROWS; i++)
            memcpy(tiles + t * tile_bytes + i * sizeof scale, &scale, sizeof scale);
    }
    for (size_t i = 0; i < sizeof values; i++) {
        random = random * 1664525u + 1013904223u;
        values[i] = (int8_t)((int32_t)(random >> 24) - 127);
        sums[i / GROUP_SIZE] += values[i];
        scales[i / GROUP_SIZE] = 0.01f * (float)(1 + i / GROUP_SIZE);
    }
    matmul(y[0], TILES * ROWS, tiles, TILES, &x, N);
    sl_kernels_avx512.matmul_quantized[type](expected[0], TILES * ROWS, tiles, TILES, &x, N);
    return memcmp(y, expected, sizeof y) == 0;
}

const sl_kernels *sl_kernels_amx(void) {
    static sl_kernels set;
    set = sl_kernels_avx512;
    set.name = "amx";
    set.matmul_quantized[SL_Q8] = matmul_q8;
    set.matmul_quantized[SL_Q4] = matmul_q4;
    return agrees(matmul_q8, SL_Q8, 8) && agrees(matmul_q4, SL_Q4, 4) ? &set : NULL;
}

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
