/* avx512_quantized.h: the products of quantized matrices. avx512.c includes it, and defines
 * `prefetch`. */

#ifndef STORYLLAMAS_AVX512_QUANTIZED_H
#define STORYLLAMAS_AVX512_QUANTIZED_H

enum { QUANTIZED_MAX = 12 }; /* largest number of tiles times rows in a block */

/* Convert 16 bf16 numbers to floats. */
INLINE __m512 load_scales(const uint16_t *scales) {
    const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)scales);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Return the same four activations in every lane. */
INLINE __m512i repeat_four(const int8_t *values) {
    int32_t four;
    memcpy(&four, values, sizeof four);
    return _mm512_set1_epi32(four);
}

/* Add the products of 64 bytes of weights, four columns of 16 rows, with four activations. */
INLINE __m512i add_dot(__m512i sum, __m512i weights, const int8_t *x) {
    sum = _mm512_dpbusd_epi32(sum, weights, repeat_four(x));
    KEEP_IN_REGISTER(sum);
    return sum;
}

/* Add dot products to dot[tiles * n]: those of a group of q8 weights, in tiles that are tile_bytes
 * apart, with x[n][x_stride]. Each addition to a single sum would wait for the last one, so it is
 * computed as four sums; the order of integer additions does not matter.
 *
 * Blocks of several tiles are bound by arithmetic. For every four columns they prefetch the line at
 * `next`, then move `ahead` bytes on: one line at a time, since many at once would delay the loads
 * of weights. */
INLINE void dot_q8(__m512i dot[], const uint8_t *w, size_t tile_bytes, size_t tiles,
                   size_t group_size, const int8_t *x, size_t x_stride, size_t n,
                   const uint8_t *next, size_t ahead) {
    enum { SUMS = 4 };
    size_t c = 0;
    if (tiles * n == 1) {
        __m512i sum[SUMS] = {dot[0]};
        UNROLL for (size_t k = 1; k < SUMS; k++) sum[k] = _mm512_setzero_si512();
        for (; c + 4 * SUMS <= group_size; c += 4 * SUMS)
            UNROLL for (size_t k = 0; k < SUMS; k++) sum[k] =
                add_dot(sum[k], _mm512_loadu_si512(w + (c + 4 * k) * ROWS), x + c + 4 * k);
        dot[0] =
            _mm512_add_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_add_epi32(sum[2], sum[3]));
    }
    for (; c < group_size; c += 4, next += ahead) {
        if (tiles > 1) prefetch(next, false);
        UNROLL for (size_t t = 0; t < tiles; t++) {
            const __m512i weights = _mm512_loadu_si512(w + t * tile_bytes + c * ROWS);
            UNROLL for (size_t i = 0; i < n; i++) dot[t * n + i] =
                add_dot(dot[t * n + i], weights, x + i * x_stride + c);
        }
    }
}

/* The same for q4 weights. The upper four bits of a byte are multiplied in place, as 16 times their
 * value, and their sum is divided by 16 at the end. With several rows of x it prefetches a line for
 * every eight columns. With a single row the speed is that of loading weights, so each line
 * prefetches the same line of the next tiles, to the first-level cache if they fit in it. */
INLINE void dot_q4(__m512i dot[], const uint8_t *w, size_t tile_bytes, size_t tiles,
                   size_t group_size, const int8_t *x, size_t x_stride, size_t n,
                   const uint8_t *next, size_t ahead, bool next_fits_l1) {
    const __m512i lower = _mm512_set1_epi8(0x0f);
    __m512i upper[QUANTIZED_MAX];
    UNROLL for (size_t a = 0; a < tiles * n; a++) upper[a] = _mm512_setzero_si512();
    for (size_t c = 0; c < group_size; c += 8, next += ahead) {
        if (n > 1) prefetch(next, false);
        UNROLL for (size_t t = 0; t < tiles; t++) {
            const uint8_t *at = w + t * tile_bytes + c * ROWS / 2;
            const __m512i both = _mm512_loadu_si512(at);
            if (n == 1) prefetch(at + tiles * tile_bytes, next_fits_l1);
            const __m512i low = _mm512_and_si512(both, lower);
            const __m512i high = _mm512_andnot_si512(lower, both);
            UNROLL for (size_t i = 0; i < n; i++) {
                dot[t * n + i] = add_dot(dot[t * n + i], low, x + i * x_stride + c);
                upper[t * n + i] = add_dot(upper[t * n + i], high, x + i * x_stride + c + 4);
            }
        }
    }
    UNROLL for (size_t a = 0; a < tiles * n; a++) dot[a] =
        _mm512_add_epi32(dot[a], _mm512_srai_epi32(upper[a], 4));
}

/* Compute a block of some tiles t and rows i = row … row + n - 1 of q. The stored weights are w +
 * bias, so for each group g
 *
 *     dot = Σ_c (w[t][c] + bias) x[i][c] - bias Σ_c x[i][c]
 *     sum[t][i] += dot * scale[t][g] * x_scale[i][g] */
INLINE void block_quantized(weight_bits bits, float *y, size_t y_stride, const uint8_t *start,
                            size_t tile_bytes, size_t tiles, const sl_quantized *q, size_t row,
                            size_t n, const uint8_t *next, size_t ahead, bool next_fits_l1) {
    const size_t width = q->groups * q->group_size, group_bytes = q->group_size * ROWS * bits / 8;
    const int32_t bias = bits == Q8 ? 128 : 8; /* of the stored weights */
    const size_t group_ahead = q->group_size * bits / 32 * ahead;
    __m512 sum[QUANTIZED_MAX];
    UNROLL for (size_t a = 0; a < tiles * n; a++) sum[a] = _mm512_setzero_ps();
    for (size_t g = 0; g < q->groups; g++, next += group_ahead) {
        const int8_t *x = q->values + row * width + g * q->group_size;
        const size_t first = row * q->groups + g; /* of scales and sums */
        const uint8_t *w = sl_tile_at(start, q->groups).weights + g * group_bytes;
        __m512i dot[QUANTIZED_MAX];
        UNROLL for (size_t a = 0; a < tiles * n; a++) dot[a] =
            _mm512_set1_epi32(-bias * q->sums[first + a % n * q->groups]);
        if (bits == Q8)
            dot_q8(dot, w, tile_bytes, tiles, q->group_size, x, width, n, next, ahead);
        else
            dot_q4(dot, w, tile_bytes, tiles, q->group_size, x, width, n, next, ahead,
                   next_fits_l1);
        UNROLL for (size_t t = 0; t < tiles; t++) {
            const sl_tile tile = sl_tile_at(start + t * tile_bytes, q->groups);
            const __m512 scales = load_scales(tile.scales + g * ROWS);
            UNROLL for (size_t i = 0; i < n; i++) {
                const __m512 x_scale = _mm512_set1_ps(q->scales[first + i * q->groups]);
                sum[t * n + i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t * n + i]),
                                                 _mm512_mul_ps(scales, x_scale), sum[t * n + i]);
            }
        }
    }
    UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t i = 0; i < n; i++)
        _mm512_storeu_ps(y + i * y_stride + t * ROWS, sum[t * n + i]);
}

/* Multiply a single row of x. */
INLINE void multiply_row(weight_bits bits, size_t block_tiles, bool next_fits_l1, float *y,
                         const uint8_t *tiles, size_t tile_bytes, size_t tile_count,
                         const sl_quantized *x) {
    size_t tile = 0;
    for (; tile + block_tiles <= tile_count; tile += block_tiles, tiles += block_tiles * tile_bytes)
        block_quantized(bits, y + tile * ROWS, 0, tiles, tile_bytes, block_tiles, x, 0, 1, tiles, 0,
                        next_fits_l1);
    for (; tile < tile_count; tile++, tiles += tile_bytes)
        block_quantized(bits, y + tile * ROWS, 0, tiles, tile_bytes, 1, x, 0, 1, tiles, 0,
                        next_fits_l1);
}

/* A block of several rows is a function of its own, so that it has all registers. */
typedef void block_function(float *y, size_t y_stride, const uint8_t *start, size_t tile_bytes,
                            const sl_quantized *q, size_t row, const uint8_t *next, size_t ahead);

#define DEFINE_BLOCK(name, bits, tiles, rows)                                                      \
    static NOINLINE void name(float *y, size_t y_stride, const uint8_t *start, size_t tile_bytes,  \
                              const sl_quantized *q, size_t row, const uint8_t *next,              \
                              size_t ahead) {                                                      \
        block_quantized(bits, y, y_stride, start, tile_bytes, tiles, q, row, rows, next, ahead,    \
                        false);                                                                    \
    }
DEFINE_BLOCK(block_q8_1x2, Q8, 1, 2)
DEFINE_BLOCK(block_q8_1x3, Q8, 1, 3)
DEFINE_BLOCK(block_q8_4x2, Q8, 4, 2)
DEFINE_BLOCK(block_q8_4x3, Q8, 4, 3)
DEFINE_BLOCK(block_q4_1x2, Q4, 1, 2)
DEFINE_BLOCK(block_q4_1x3, Q4, 1, 3)
DEFINE_BLOCK(block_q4_1x4, Q4, 1, 4)
DEFINE_BLOCK(block_q4_2x2, Q4, 2, 2)
DEFINE_BLOCK(block_q4_2x3, Q4, 2, 3)
DEFINE_BLOCK(block_q4_2x4, Q4, 2, 4)
DEFINE_BLOCK(block_q4_4x2, Q4, 4, 2)

/* Blocks of some tiles, and of a single one, for 2, 3 and 4 rows of x. */
typedef struct {
    size_t tiles, rows; /* of the largest block */
    block_function *blocks[3], *single[3];
} division;

/* Return the rows of the next block if `left` are left: as many as a block has, but 2 and 2 rather
 * than 3 and 1, and 3 and 2 rather than 4 and 1. */
INLINE size_t next_rows(size_t left, size_t block_rows) {
    if (left == block_rows + 1) return block_rows / 2 + 1;
    return left < block_rows ? left : block_rows;
}

/* Compute y in blocks of some tiles, which share loads of activations, and some rows, which share
 * loads of weights. Each block prefetches its part of the next tiles, or most of it if n is
 * small. */
static void multiply_rows(weight_bits bits, const division *by, float *y, size_t y_stride,
                          const uint8_t *tiles, size_t tile_bytes, size_t tile_count,
                          const sl_quantized *x, size_t n) {
    const size_t steps = x->groups * x->group_size * bits / 32; /* of a block, each with a line */
    const size_t row_bytes = by->tiles * tile_bytes / n;        /* to prefetch for each row */
    for (size_t tile = 0, count; tile < tile_count; tile += count, tiles += count * tile_bytes) {
        const bool is_whole = tile + by->tiles <= tile_count;
        const bool has_next = tile + 2 * by->tiles <= tile_count;
        block_function *const *blocks = is_whole ? by->blocks : by->single;
        count = is_whole ? by->tiles : 1;
        const uint8_t *next = has_next ? tiles + count * tile_bytes : tiles;
        const size_t bytes = has_next ? row_bytes : 0, ahead = has_next ? row_bytes / steps + 1 : 0;
        for (size_t i = 0, rows; i < n; i += rows, next += rows * bytes) {
            rows = next_rows(n - i, by->rows);
            blocks[rows - 2](y + i * y_stride + tile * ROWS, y_stride, tiles, tile_bytes, x, i,
                             next, rows * ahead);
        }
    }
}

static void matmul_q8(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    static const division by = {4, 3, {block_q8_4x2, block_q8_4x3}, {block_q8_1x2, block_q8_1x3}};
    const size_t tile_bytes = sl_tile_bytes(8, x->groups, x->group_size);
    if (n == 1) /* memory decides the speed, and is fastest if it is read in order */
        multiply_row(Q8, 1, false, y, tiles, tile_bytes, tile_count, x);
    else
        multiply_rows(Q8, &by, y, y_stride, tiles, tile_bytes, tile_count, x, n);
}

/* One or two rows need four tiles, whose sums do not wait for each other. More rows share the work
 * of separating the two weights of a byte. */
static void matmul_q4(float *y, size_t y_stride, const uint8_t *tiles, size_t tile_count,
                      const sl_quantized *x, size_t n) {
    enum { HALF_OF_L1_BYTES = 1 << 14 };
    static const division two_rows = {4, 2, {block_q4_4x2}, {block_q4_1x2}};
    static const division by = {2,
                                4,
                                {block_q4_2x2, block_q4_2x3, block_q4_2x4},
                                {block_q4_1x2, block_q4_1x3, block_q4_1x4}};
    const size_t tile_bytes = sl_tile_bytes(4, x->groups, x->group_size);
    if (n > 1)
        multiply_rows(Q4, n == 2 ? &two_rows : &by, y, y_stride, tiles, tile_bytes, tile_count, x,
                      n);
    else if (4 * tile_bytes < HALF_OF_L1_BYTES)
        multiply_row(Q4, 4, true, y, tiles, tile_bytes, tile_count, x);
    else
        multiply_row(Q4, 4, false, y, tiles, tile_bytes, tile_count, x);
}

#endif
