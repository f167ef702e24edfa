/* avx512.c: kernels for x86-64 processors with AVX-512 and its 8-bit dot product, VNNI.
 *
 * The 16 rows of a tile are the 16 lanes of a register, so no sum ever crosses lanes. A block is a
 * few tiles times a few rows of x. The reductions of the intrinsics add halves, as kernels.h asks.
 */

#include "sets.h"

#ifdef SL_X86

#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,"           \
                                                   "avx512vnni"))),                                \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#endif

#include "blocks.h"
#include "exponential.h"

/* BLOCK_MAX: largest number of tiles times rows in a block of two chains. WIDE_TILES, WIDE_ROWS:
 * those of a block of one chain, whose sums are 24 of the 32 registers. */
enum { BLOCK_MAX = 8, ROW_TILES = 4, WIDE_TILES = 3, WIDE_ROWS = 8 };

typedef __m512 vector;

enum { LANES = ROWS, AVERAGE_REGISTERS = 4 };

/* Prefetch a cache line, to the first-level cache or only to the second. */
INLINE void prefetch(const uint8_t *at, bool is_first) {
    if (is_first)
        _mm_prefetch((const char *)at, _MM_HINT_T0);
    else
        _mm_prefetch((const char *)at, _MM_HINT_T1);
}

/* ---- Matrices of f32, f16 and i8 ------------------------------------------------------------- */

INLINE __m512 load_f16(const uint16_t *x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)x));
}

INLINE __m512 load_i8(const int8_t *x) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)x)));
}

/* Load 16 numbers from index i on. */
INLINE __m512 load_row(weight_bits bits, const void *w, size_t i) {
    if (bits == F32) return _mm512_loadu_ps((const float *)w + i);
    return bits == F16 ? load_f16((const uint16_t *)w + i) : load_i8((const int8_t *)w + i);
}

/* Compute a block of some tiles t and n rows i of x: sum[t][i] = Σ_c w[t][c] x[i][c]. A single row
 * of f16 or i8 weights is multiplied with several tiles, whose sums do not wait for each other. */
INLINE void block_float(weight_bits bits, float *y, size_t y_stride, const void *w,
                        size_t tile_stride, size_t column_stride, size_t tiles, size_t columns,
                        const float *x, size_t x_stride, size_t n) {
    __m512 sum[BLOCK_MAX][CHAINS];
    UNROLL for (size_t a = 0; a < tiles * n; a++) sum[a][0] = sum[a][1] = _mm512_setzero_ps();
    size_t c = 0;
    for (; c + CHAINS <= columns; c += CHAINS)
        UNROLL for (size_t t = 0; t < tiles; t++)
            UNROLL for (size_t chain = 0; chain < CHAINS; chain++) {
            const __m512 weights = load_row(bits, w, t * tile_stride + (c + chain) * column_stride);
            UNROLL for (size_t i = 0; i < n; i++) sum[t * n + i][chain] = _mm512_fmadd_ps(
                weights, _mm512_set1_ps(x[i * x_stride + c + chain]), sum[t * n + i][chain]);
        }
    if (c < columns)
        UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t i = 0; i < n; i++)
            sum[t * n + i][0] =
                _mm512_fmadd_ps(load_row(bits, w, t * tile_stride + c * column_stride),
                                _mm512_set1_ps(x[i * x_stride + c]), sum[t * n + i][0]);
    UNROLL for (size_t t = 0; t < tiles; t++) UNROLL for (size_t i = 0; i < n; i++)
        _mm512_storeu_ps(y + i * y_stride + t * ROWS,
                         _mm512_add_ps(sum[t * n + i][0], sum[t * n + i][1]));
}

/* Multiply in blocks of one tile and 8 rows. The rows that are left are one block, which loads each
 * weight once for all of them. */
static NOINLINE void matmul_narrow_f32(float *y, size_t y_stride, const float *tiles,
                                       size_t tile_stride, size_t column_stride, size_t tile_count,
                                       size_t columns, const float *x, size_t x_stride, size_t n) {
#define BLOCK(rows)                                                                                \
    block_float(F32, y + i * y_stride + tile * ROWS, y_stride, tiles + tile * tile_stride,         \
                tile_stride, column_stride, 1, columns, x + i * x_stride, x_stride, rows)
    for (size_t tile = 0; tile < tile_count; tile++) {
        size_t i = 0;
        for (; i + 8 <= n; i += 8) BLOCK(8);
        const size_t left = n - i;
        if (left == 1) BLOCK(1);
        if (left == 2) BLOCK(2);
        if (left == 3) BLOCK(3);
        if (left == 4) BLOCK(4);
        if (left == 5) BLOCK(5);
        if (left == 6) BLOCK(6);
        if (left == 7) BLOCK(7);
    }
#undef BLOCK
}

/* Compute a block of f32 weights as block_float does, of several tiles, so that each x is loaded
 * once for all of them. Their sums leave no register for a second chain: the even columns come
 * first, then the odd ones. For each column prefetch the line at `next`, then move `ahead` bytes
 * on: one line at a time, since many at once would delay the loads of weights. */
INLINE void block_wide_f32(float *y, size_t y_stride, const float *w, size_t tile_stride,
                           size_t column_stride, size_t columns, const float *x, size_t x_stride,
                           const uint8_t *next, size_t ahead) {
    for (size_t chain = 0; chain < CHAINS; chain++) {
        __m512 sum[WIDE_ROWS][WIDE_TILES];
        UNROLL for (size_t i = 0; i < WIDE_ROWS; i++) UNROLL for (size_t t = 0; t < WIDE_TILES; t++)
            sum[i][t] = _mm512_setzero_ps();
        for (size_t c = chain; c < columns; c += CHAINS, next += ahead) {
            prefetch(next, false);
            __m512 weights[WIDE_TILES];
            UNROLL for (size_t t = 0; t < WIDE_TILES; t++) weights[t] =
                _mm512_loadu_ps(w + t * tile_stride + c * column_stride);
            UNROLL for (size_t i = 0; i < WIDE_ROWS; i++) {
                const __m512 repeated = _mm512_set1_ps(x[i * x_stride + c]);
                UNROLL for (size_t t = 0; t < WIDE_TILES; t++) sum[i][t] =
                    _mm512_fmadd_ps(weights[t], repeated, sum[i][t]);
            }
        }
        UNROLL for (size_t i = 0; i < WIDE_ROWS; i++)
            UNROLL for (size_t t = 0; t < WIDE_TILES; t++) {
            float *at = y + i * y_stride + t * ROWS;
            if (chain) sum[i][t] = _mm512_add_ps(_mm512_loadu_ps(at), sum[i][t]);
            _mm512_storeu_ps(at, sum[i][t]);
        }
    }
}

/* If the tiles are contiguous in memory, each wide block also prefetches its part of the next
 * tiles. */
static void matmul_f32(float *y, size_t y_stride, const float *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n) {
    const size_t wide_tiles = n < 2 * WIDE_ROWS ? 0 : tile_count / WIDE_TILES * WIDE_TILES;
    const size_t wide_rows = n / WIDE_ROWS * WIDE_ROWS;
    for (size_t tile = 0; tile < wide_tiles; tile += WIDE_TILES) {
        float *out = y + tile * ROWS;
        const float *w = tiles + tile * tile_stride;
        const bool has_next = tile + WIDE_TILES < wide_tiles && column_stride == ROWS;
        const size_t ahead = has_next ? WIDE_TILES * ROWS * sizeof *w * WIDE_ROWS / wide_rows : 0;
        const float *next = has_next ? w + WIDE_TILES * tile_stride : w;
        for (size_t i = 0; i < wide_rows; i += WIDE_ROWS)
            block_wide_f32(out + i * y_stride, y_stride, w, tile_stride, column_stride, columns,
                           x + i * x_stride, x_stride,
                           (const uint8_t *)next + i / WIDE_ROWS * columns * ahead, ahead);
        matmul_narrow_f32(out + wide_rows * y_stride, y_stride, w, tile_stride, column_stride,
                          WIDE_TILES, columns, x + wide_rows * x_stride, x_stride, n - wide_rows);
    }
    matmul_narrow_f32(y + wide_tiles * ROWS, y_stride, tiles + wide_tiles * tile_stride,
                      tile_stride, column_stride, tile_count - wide_tiles, columns, x, x_stride, n);
}

static void matmul_f16(float *y, size_t y_stride, const uint16_t *tiles, size_t tile_stride,
                       size_t column_stride, size_t tile_count, size_t columns, const float *x,
                       size_t x_stride, size_t n) {
#define BLOCK(tile, tile_n, i, i_n)                                                                \
    block_float(F16, y + (i) * y_stride + (tile) * ROWS, y_stride, tiles + (tile) * tile_stride,   \
                tile_stride, column_stride, tile_n, columns, x + (i) * x_stride, x_stride, i_n)
    FOR_BLOCKS(BLOCK, tile_count, n, BLOCK_MAX)
#undef BLOCK
}

static void matmul_i8(float *y, size_t y_stride, const int8_t *tiles, size_t tile_stride,
                      size_t column_stride, size_t tile_count, size_t columns, const float *x,
                      size_t x_stride, size_t n){
#define BLOCK(tile, tile_n, i, i_n)                                                                \
    block_float(Q8, y + (i) * y_stride + (tile) * ROWS, y_stride, tiles + (tile) * tile_stride,    \
                tile_stride, column_stride, tile_n, columns, x + (i) * x_stride, x_stride, i_n)
    FOR_BLOCKS(BLOCK, tile_count, n, BLOCK_MAX)
#undef BLOCK
}

/* ---- Averages of values ---------------------------------------------------------------------- */

INLINE vector zeros(void) {
    return _mm512_setzero_ps();
}

INLINE vector multiply_add(vector sum, vector w, float x) {
    return _mm512_fmadd_ps(w, _mm512_set1_ps(x), sum);
}

INLINE void store_f32(float *y, vector x) {
    _mm512_storeu_ps(y, x);
}

#include "average.h"

#include "avx512_quantized.h"

/* ---- Lanes ----------------------------------------------------------------------------------- */

/* Return a mask of the lanes for x[i] to x[n - 1], at most 16. */
INLINE __mmask16 lanes(size_t i, size_t n) {
    return (__mmask16)(n - i >= ROWS ? 0xffffu : (1u << (n - i)) - 1);
}

/* ---- Quantization of activations ------------------------------------------------------------- */

/* Return the largest |x|, or NaN if there is one. Positive floats have the same order as their bits
 * compared as integers. */
INLINE float largest_magnitude(const float *x, size_t n) {
    __m512i max = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += ROWS) {
        const __m512 magnitude = _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(i, n), x + i));
        max = _mm512_max_epi32(max, _mm512_castps_si512(magnitude));
    }
    const int32_t bits = _mm512_reduce_max_epi32(max);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    return largest;
}

/* values = round(x * inverse); returns the sum of values */
INLINE int32_t quantize_group(int8_t *values, size_t group_size, const float *x, size_t width,
                              float inverse) {
    __m512i sum = _mm512_setzero_si512();
    for (size_t c = 0; c < group_size; c += ROWS) {
        const __mmask16 mask = c < width ? lanes(c, width) : 0;
        const __m512 scaled =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + c), _mm512_set1_ps(inverse));
        const __m512i rounded = _mm512_cvtps_epi32(scaled);
        _mm512_mask_cvtepi32_storeu_epi8(values + c, lanes(c, group_size), rounded);
        sum = _mm512_add_epi32(sum, rounded);
    }
    return _mm512_reduce_add_epi32(sum);
}

#include "quantize.h"

/* ---- Conversion to f16 ----------------------------------------------------------------------- */

/* y = x rounded to f16 */
static void to_f16(uint16_t *y, const float *x, size_t n) {
    const __m512 max = _mm512_set1_ps(SL_F16_MAX), min = _mm512_set1_ps(-SL_F16_MAX);
    for (size_t i = 0; i < n; i += ROWS) {
        const __mmask16 mask = lanes(i, n);
        const __m512 part = _mm512_maskz_loadu_ps(mask, x + i);
        const __m512 saturated = _mm512_min_ps(max, _mm512_max_ps(min, part));
        const __m256i rounded = _mm512_cvtps_ph(saturated, _MM_FROUND_TO_NEAREST_INT);
        _mm256_mask_storeu_epi16(y + i, mask, rounded);
    }
}

/* ---- RMSNorm, rotary position embedding, SwiGLU ---------------------------------------------- */

/* y = x / sqrt(mean(x²) + eps) * weight */
static void rmsnorm(float *y, const float *x, const float *weight, size_t n, float eps) {
    __m512 squares = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += ROWS) {
        const __m512 part = _mm512_maskz_loadu_ps(lanes(i, n), x + i);
        squares = _mm512_fmadd_ps(part, part, squares);
    }
    const float scale = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)n + eps);
    for (size_t i = 0; i < n; i += ROWS) {
        const __mmask16 mask = lanes(i, n);
        const __m512 part =
            _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_set1_ps(scale));
        _mm512_mask_storeu_ps(y + i, mask,
                              _mm512_mul_ps(part, _mm512_maskz_loadu_ps(mask, weight + i)));
    }
}

/* (even, odd) = (even * cosine - odd * sine, odd * cosine + even * sine): each lane times the
 * cosine, minus or plus its neighbour times the sine. */
static void rotate(float *x, size_t heads, size_t head_dim, const float *table) {
    for (size_t h = 0; h < heads; h++, x += head_dim)
        for (size_t i = 0; i < head_dim; i += ROWS) {
            const __mmask16 mask = lanes(i, head_dim);
            const __m512 pairs = _mm512_maskz_loadu_ps(mask, x + i);
            const __m512 angles = _mm512_maskz_loadu_ps(mask, table + i);
            const __m512 swapped = _mm512_permute_ps(pairs, 0xb1);
            const __m512 cosine = _mm512_moveldup_ps(angles), sine = _mm512_movehdup_ps(angles);
            _mm512_mask_storeu_ps(x + i, mask,
                                  _mm512_fmaddsub_ps(pairs, cosine, _mm512_mul_ps(swapped, sine)));
        }
}

/* Return exp(x) for x up to EXP_MAX, see exponential.h; NaN stays NaN. */
INLINE __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(EXP_MIN), x);
    const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)), 0);
    __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(LN_2_UPPER), x);
    r = _mm512_fnmadd_ps(k, _mm512_set1_ps(LN_2_LOWER), r);
    __m512 p = _mm512_set1_ps(EXP_P4);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_P0));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
    return _mm512_scalef_ps(_mm512_add_ps(p, _mm512_set1_ps(1.0f)), k);
}

/* y = gate / (1 + exp(-gate)) * up */
static void swiglu(float *y, const float *gate, const float *up, size_t n) {
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    for (size_t i = 0; i < n; i += ROWS) {
        const __mmask16 mask = lanes(i, n);
        const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
        /* -gate is limited to 88, as exp needs. Above that, silu is within 1e-36 of 0 anyway. */
        const __m512 negative = _mm512_min_ps(_mm512_set1_ps(EXP_MAX), _mm512_xor_ps(g, sign));
        const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, exponential(negative)));
        _mm512_mask_storeu_ps(y + i, mask,
                              _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(mask, up + i)));
    }
}

/* ---- Softmax and sampling -------------------------------------------------------------------- */

static size_t argmax(const float *x, size_t n) {
    __m512 max = _mm512_set1_ps(-INFINITY);
    for (size_t i = 0; i < n; i += ROWS)
        max = _mm512_max_ps(max, _mm512_mask_loadu_ps(max, lanes(i, n), x + i));
    const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(max));
    for (size_t i = 0; i < n; i += ROWS) {
        const __mmask16 mask = lanes(i, n);
        const __mmask16 equal =
            _mm512_mask_cmp_ps_mask(mask, _mm512_maskz_loadu_ps(mask, x + i), largest, _CMP_EQ_OQ);
        if (equal) return i + (size_t)__builtin_ctz(equal);
    }
    return 0;
}

/* y = exp((x - shift) * scale); the sum of y is the denominator of softmax */
static float exponentials(float *y, const float *x, size_t n, float shift, float scale) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += ROWS) {
        const __mmask16 mask = lanes(i, n);
        const __m512 distance =
            _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_set1_ps(shift));
        const __m512 e = exponential(_mm512_mul_ps(distance, _mm512_set1_ps(scale)));
        _mm512_mask_storeu_ps(y + i, mask, e);
        sum = _mm512_mask_add_ps(sum, mask, sum, e);
    }
    return _mm512_reduce_add_ps(sum);
}

static size_t select(int32_t *indices, const float *weights, size_t n, float floor) {
    size_t count = 0;
    __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (size_t i = 0; i < n; i += ROWS) {
        const __mmask16 mask = lanes(i, n);
        const __mmask16 chosen = _mm512_mask_cmp_ps_mask(
            mask, _mm512_maskz_loadu_ps(mask, weights + i), _mm512_set1_ps(floor), _CMP_GE_OQ);
        /* Compress in the register: compressing stores are slow on some processors. Without a
         * branch for vectors of which none is chosen, since it would often be mispredicted. */
        _mm512_storeu_si512(indices + count, _mm512_maskz_compress_epi32(chosen, index));
        count += (size_t)__builtin_popcount(chosen);
        index = _mm512_add_epi32(index, _mm512_set1_epi32(ROWS));
    }
    return count;
}

SL_KERNEL_SET(avx512, SL_AVERAGES, [SL_Q8] = matmul_q8, [SL_Q4] = matmul_q4);

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
