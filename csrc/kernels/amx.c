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

/* A product of fewer rows of x is that of avx512.c. Measured on Sapphire Rapids: tiles are 1.2
 * to 1.4 times as fast from 5 rows on in q8 and from 8 in q4, whose weights must be unpacked. With
 * fewer the gain is less than what dense tile instructions cost: an eighth of the processor's
 * clock. */
enum { MIN_ROWS_Q8 = 5, MIN_ROWS_Q4 = 8 };

/* MIN_COLUMNS: fewer columns in A and B leave most of the instruction's time unused. MAX_GROUP: of
 * columns, for which there is room to unpack them. LARGE_BYTES: of a matrix that is prefetched. */
enum { LINE = 64, MIN_COLUMNS = 32, PAIR = 2, MAX_GROUP = 512, LARGE_BYTES = 1 << 19 };

/* The tile registers: the sums of two tiles of the matrix, and two parts of a group of A and of
 * each tile, B. The intrinsics need numbers, since they write them into assembly. */
#define SUM_0 0
#define SUM_1 1
#define A_0 2
#define A_1 3
#define B_00 4
#define B_01 5
#define B_10 6
#define B_11 7

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
    for (size_t t = SUM_0; t <= SUM_1; t++) {
        shapes.rows[t] = (uint8_t)d.rows;
        shapes.row_bytes[t] = LINE;
    }
    for (size_t t = A_0; t <= A_1; t++) {
        shapes.rows[t] = (uint8_t)d.rows;
        shapes.row_bytes[t] = (uint16_t)d.columns;
    }
    for (size_t t = B_00; t <= B_11; t++) {
        shapes.rows[t] = (uint8_t)(d.columns / SL_TILE_COLUMNS);
        shapes.row_bytes[t] = LINE;
    }
    fence(&shapes);
    _tile_loadconfig(&shapes);
    fence(&shapes);
}

/* ---- Quantized matrices ---------------------------------------------------------------------- */

/* Convert 16 bf16 numbers to floats. */
INLINE __m512 load_scales(const uint16_t *scales) {
    const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)scales);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Unpack a group of q4 weights to the layout of q8, as signed bytes: the stored ones are w + 8. A
 * line has four columns in the lower bits of its bytes and the next four in the upper bits. */
INLINE void unpack_q4(uint8_t *target, const uint8_t *w, size_t columns) {
    const __m512i lower = _mm512_set1_epi8(0x0f), bias = _mm512_set1_epi8(8);
    for (size_t c = 0; c < columns; c += 2 * SL_TILE_COLUMNS, w += LINE, target += 2 * LINE) {
        const __m512i line = _mm512_loadu_si512(w);
        const __m512i upper = _mm512_and_si512(_mm512_srli_epi32(line, 4), lower);
        _mm512_storeu_si512(target, _mm512_sub_epi8(_mm512_and_si512(line, lower), bias));
        _mm512_storeu_si512(target + LINE, _mm512_sub_epi8(upper, bias));
    }
}

/* sum += a b, where b holds weights: q8 as they are stored, w + 128, or q4 unpacked to w. */
#define ADD_PRODUCT(bits, sum, a, b)                                                               \
    do {                                                                                           \
        if ((bits) == Q8)                                                                          \
            _tile_dpbsud(sum, a, b);                                                               \
        else                                                                                       \
            _tile_dpbssd(sum, a, b);                                                               \
    } while (0)

/* The last sums of the tile registers, which are still to be scaled: those of some rows by up to
 * two tiles. */
typedef struct {
    float *y;             /* [rows][stride], of the first tile */
    const float *x_scale; /* [rows][groups] */
    const int32_t *x_sum; /* [rows][groups] */
    __m512 scales[PAIR];  /* of each tile */
    size_t y_stride, groups, rows, tiles;
    size_t first;  /* of the block's rows; those before are in the block before, too */
    bool is_first; /* group */
} last_sums;

/* y[rows][16] += (dot[t] - bias * x_sum) * scale[t] * x_scale for each tile t, or y = that for the
 * first group. */
INLINE void scale_tiles(int32_t bias, size_t tiles, const last_sums *last,
                        int32_t dot[PAIR][ROWS][ROWS]) {
    const size_t y_stride = last->y_stride, groups = last->groups, rows = last->rows;
    const bool is_first = last->is_first;
    const __m512 scales[PAIR] = {last->scales[0], last->scales[1]};
    const float *x_scale = last->x_scale;
    const int32_t *x_sum = last->x_sum;
    float *y = last->y;
    for (size_t i = last->first; i < rows; i++, y += y_stride, x_scale += groups, x_sum += groups) {
        const __m512i biased = _mm512_set1_epi32(-bias * *x_sum);
        const __m512 repeated = _mm512_set1_ps(*x_scale);
        UNROLL for (size_t t = 0; t < tiles; t++) {
            const __m512 sum = is_first ? _mm512_setzero_ps() : _mm512_loadu_ps(y + t * ROWS);
            __m512i whole = _mm512_loadu_si512(dot[t][i]);
            if (bias) whole = _mm512_add_epi32(whole, biased);
            _mm512_storeu_ps(y + t * ROWS,
                             _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole),
                                             _mm512_mul_ps(scales[t], repeated), sum));
        }
    }
}

INLINE void scale_sums(int32_t bias, const last_sums *last, int32_t dot[PAIR][ROWS][ROWS]) {
    if (last->tiles == 2)
        scale_tiles(bias, 2, last, dot);
    else if (last->tiles == 1)
        scale_tiles(bias, 1, last, dot);
}

/* Store the last sums of tile t and start the next ones, of `count` tiles. Of a group that is
 * longer than two registers, all but the first part is loaded each time. */
#define NEXT_SUMS(t, count, sums, b_0, b_1)                                                        \
    do {                                                                                           \
        if ((t) < last.tiles) _tile_stored(sums, dot[t], LINE);                                    \
        if ((t) < (count)) {                                                                       \
            _tile_zero(sums);                                                                      \
            ADD_PRODUCT(bits, sums, A_0, b_0);                                                     \
            for (size_t c = d.columns; c < x->group_size; c += d.columns) {                        \
                if (is_long) _tile_loadd(A_1, values + c, width);                                  \
                if (is_long) _tile_loadd(b_1, w[t] + c * ROWS, LINE);                              \
                ADD_PRODUCT(bits, sums, A_1, b_1);                                                 \
            }                                                                                      \
        }                                                                                          \
    } while (0)

/* Compute y. For each group g
 *
 *     dot = Σ_c w[t][c] x[i][c]
 *     y[t][i] += dot * scale[t][g] * x_scale[i][g]
 *
 * The weights of two tiles stay in registers while all blocks of rows are multiplied with them. The
 * sums of a block are scaled while the tile instructions of the next one run. Weights are loaded
 * once, so their loads ask to leave the first-level cache to x and y. Those of a matrix that is
 * likely no longer in the second-level cache are prefetched into it, two tiles ahead; with a single
 * block that takes longer than it saves. */
INLINE void matmul_quantized(weight_bits bits, float *y, size_t y_stride, const uint8_t *tiles,
                             size_t tile_count, const sl_quantized *x, size_t n, division d) {
    const size_t tile_bytes = sl_tile_bytes(bits, x->groups, x->group_size);
    const size_t width = x->groups * x->group_size, group_bytes = x->group_size * ROWS * bits / 8;
    const size_t part = d.columns * ROWS;
    const bool is_halved = x->group_size == PAIR * d.columns;
    const bool is_long = x->group_size > PAIR * d.columns;
    const int8_t *values = x->values;
    const uint8_t *w[PAIR] = {tiles, tiles};
    _Alignas(LINE) int32_t dot[PAIR][ROWS][ROWS];
    _Alignas(LINE) uint8_t unpacked[PAIR][MAX_GROUP * ROWS];
    const int32_t bias = bits == Q8 ? 128 : 0; /* of the weights in B */
    const bool is_large = d.blocks > 1 && tile_count * tile_bytes >= LARGE_BYTES;
    const size_t ahead = is_large ? group_bytes : 0;
    last_sums last = {.y_stride = y_stride, .groups = x->groups, .rows = d.rows};
    configure_tiles(d);
    for (size_t tile = 0; tile < tile_count; tile += PAIR)
        for (size_t g = 0; g < x->groups; g++) {
            const size_t count = tile + 1 < tile_count ? 2 : 1;
            __m512 scales[PAIR] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
            for (size_t t = 0; t < count; t++) {
                const sl_tile from = sl_tile_at(tiles + (tile + t) * tile_bytes, x->groups);
                scales[t] = load_scales(from.scales + g * ROWS);
                w[t] = from.weights + g * group_bytes;
                for (size_t i = 0; i < ahead; i += LINE)
                    _mm_prefetch((const char *)w[t] + PAIR * tile_bytes + i, _MM_HINT_T1);
                if (bits == Q4) {
                    unpack_q4(unpacked[t], w[t], x->group_size);
                    w[t] = unpacked[t];
                }
            }
            fence(unpacked);
            _tile_stream_loadd(B_00, w[0], LINE);
            if (is_halved) _tile_stream_loadd(B_01, w[0] + part, LINE);
            if (count == 2) _tile_stream_loadd(B_10, w[1], LINE);
            if (count == 2 && is_halved) _tile_stream_loadd(B_11, w[1] + part, LINE);
            for (size_t block = 0; block < d.blocks; block++) {
                const size_t start = block * d.rows;
                const size_t row = block + 1 == d.blocks ? n - d.rows : start;
                values = x->values + row * width + g * x->group_size;
                _tile_loadd(A_0, values, width);
                if (is_halved) _tile_loadd(A_1, values + d.columns, width);
                NEXT_SUMS(0, count, SUM_0, B_00, B_01);
                NEXT_SUMS(1, count, SUM_1, B_10, B_11);
                fence(unpacked);
                scale_sums(bias, &last, dot);
                last.y = y + start * y_stride + tile * ROWS;
                last.x_scale = x->scales + start * x->groups + g;
                last.x_sum = x->sums + start * x->groups + g;
                last.scales[0] = scales[0], last.scales[1] = scales[1];
                last.tiles = count;
                last.first = start - row;
                last.is_first = g == 0;
            }
        }
    NEXT_SUMS(0, 0, SUM_0, B_00, B_01);
    NEXT_SUMS(1, 0, SUM_1, B_10, B_11);
    scale_sums(bias, &last, dot);
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

/* Return whether tiles are faster than vectors, given enough rows. */
INLINE bool is_suited(division d, size_t group_size) {
    return d.columns >= MIN_COLUMNS && group_size <= MAX_GROUP;
}

static void matmul_q8(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    const division d = divide(4, x->group_size, n);
    if (n < MIN_ROWS_Q8 || !is_suited(d, x->group_size))
        sl_kernels_avx512.matmul_quantized[SL_Q8](y, y_stride, tiles, tile_count, x, n);
    else
        matmul_quantized(Q8, y, y_stride, tiles, tile_count, x, n, d);
}

static void matmul_q4(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    const division d = divide(8, x->group_size, n);
    if (n < MIN_ROWS_Q4 || !is_suited(d, x->group_size))
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
