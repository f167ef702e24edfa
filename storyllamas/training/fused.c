/* The loss of a Llama and its gradients, in bfloat16 with float32 sums, for processors with AVX-512
   BF16. AMX multiplies if the processor has it. fused.py describes the arguments.

   A product takes its right matrix "packed": tiles of 32 rows (k) and 16 columns (n) whose 16
   lines are n0k0 n0k1 n1k0 n1k1 …, the tiles of the same columns one after the other. Every size is
   a multiple of 32. A matrix in memory is row-major.

   T: tokens in a group of sequences, D: dim, H: heads, E: head_dim, F: hidden, V: vocab_size,
   C: context. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef uint16_t bf16;

enum { TILE = 16, BLOCK = 32, TILE_SIZE = 512, GROUP_TOKENS = 2048 };

typedef struct {
    int64_t dim, layers, heads, head_dim, hidden, context, vocab, ignored;
    float norm_eps, dropout;
} shape;

/* ---- Vectors of 16 numbers
 * ---------------------------------------------------------------------------- */

static inline __m512 load16(const bf16 *from) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

static inline void store16(bf16 *to, __m512 x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

static inline __m512 exp16(__m512 x) {
    const __m512 floor = _mm512_set1_ps(-87.0f);
    x = _mm512_max_ps(x, floor);
    __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
    rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), rest);
    __m512 sum = _mm512_set1_ps(1.0f / 720);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 120));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 24));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 6));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

static inline __m512 sigmoid16(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

/* Transpose 16 x 16 numbers of 32 bits. */
static inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* ---- Packing
 * ------------------------------------------------------------------------------------------ */

/* One line of a packed tile from the rows k and k + 1. */
static inline __m512i interleave(const bf16 *row, int64_t stride) {
    __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)row));
    __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(row + stride)));
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

/* Pack matrix [rows, columns]. */
static void pack(bf16 *to, const bf16 *from, int64_t stride, int64_t rows, int64_t columns) {
    for (int64_t k = 0; k < rows; k += 2)
        for (int64_t n = 0; n < columns; n += TILE)
            _mm512_storeu_si512(to + n * rows + k * TILE,
                                interleave(from + k * stride + n, stride));
}

/* Pack the transpose of matrix [rows, columns]. */
static void pack_transpose(bf16 *to, const bf16 *from, int64_t stride, int64_t rows,
                           int64_t columns) {
    __m512i r[16];
    for (int64_t n = 0; n < rows; n += TILE)
        for (int64_t k = 0; k < columns; k += BLOCK, to += TILE_SIZE) {
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + (n + i) * stride + k);
            transpose16(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * BLOCK, r[i]);
        }
}

/* Write the transpose of matrix [rows, columns] as tiles of 16 rows and 32 columns, for the left.
 */
static void tile_transpose(bf16 *to, const bf16 *from, int64_t stride, int64_t rows,
                           int64_t columns) {
    __m512i r[16];
    for (int64_t m = 0; m < columns; m += TILE)
        for (int64_t k = 0; k < rows; k += BLOCK, to += TILE_SIZE) {
            for (int i = 0; i < 16; i++) r[i] = interleave(from + (k + 2 * i) * stride + m, stride);
            transpose16(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * BLOCK, r[i]);
        }
}

/* Pack 32 rows from `first` on of weights [rows, columns], and of their transpose. */
static void pack_weights(bf16 *plain, bf16 *transposed, const float *weights, int64_t first,
                         int64_t rows, int64_t columns) {
    bf16 part[BLOCK * BLOCK];
    for (int64_t k = 0; k < columns; k += BLOCK) {
        for (int i = 0; i < BLOCK; i++) {
            const float *from = weights + (first + i) * columns + k;
            store16(part + i * BLOCK, _mm512_loadu_ps(from));
            store16(part + i * BLOCK + TILE, _mm512_loadu_ps(from + TILE));
        }
        for (int i = 0; i < 2; i++) {
            bf16 *to =
                transposed + ((first / TILE + i) * (columns / BLOCK) + k / BLOCK) * TILE_SIZE;
            pack_transpose(to, part + i * TILE * BLOCK, BLOCK, TILE, BLOCK);
            to = plain + ((k / TILE + i) * (rows / BLOCK) + first / BLOCK) * TILE_SIZE;
            for (int line = 0; line < 16; line++)
                _mm512_storeu_si512(to + line * BLOCK,
                                    interleave(part + 2 * line * BLOCK + i * TILE, BLOCK));
        }
    }
}

/* ---- Products
 * ----------------------------------------------------------------------------------------- */

/* A left matrix: numbers between rows, between tiles below each other, and between tiles side by
 * side. */
typedef struct {
    const bf16 *at;
    int64_t row, down, right;
} left;

static left rows_of(const bf16 *at, int64_t stride) {
    return (left){at, stride, TILE * stride, BLOCK};
}
static left tiles_of(const bf16 *at, int64_t k) {
    return (left){at, BLOCK, k * TILE, TILE_SIZE};
}

/* How a product is stored: as it is, or its transpose added to or set. */
typedef enum { ROUND, SET, ADD, SET_TRANSPOSE, ADD_TRANSPOSE } mode;

typedef struct {
    void *at;
    int64_t stride;
    mode mode;
    /* With ROUND, the product times `times` plus `plus_times` times another matrix of the same
     * stride. */
    const bf16 *plus;
    float plus_times, times;
} target;

static target target_of(void *at, int64_t stride, mode how) {
    return (target){at, stride, how, NULL, 0, 1};
}

/* `multiply` multiplies 32 rows of `a` by 32 columns of the packed `b`. It asks for the columns at
   `next`, which the first rows read from a far cache; NULL: for none. */
#ifdef __AMX_BF16__
static const uint8_t TILES[64] __attribute__((aligned(64))) = {
    1,         [16] = 64, [18] = 64, [20] = 64, [22] = 64, [24] = 64,
    [26] = 64, [28] = 64, [30] = 64, [48] = 16, [49] = 16, [50] = 16,
    [51] = 16, [52] = 16, [53] = 16, [54] = 16, [55] = 16};

static void configure(const uint8_t tiles[64]) {
    __asm__ volatile("ldtilecfg %0" ::"m"(*(const uint8_t (*)[64])tiles));
}

static void save_configuration(uint8_t tiles[64]) {
    __asm__ volatile("sttilecfg %0" : "=m"(*(uint8_t (*)[64])tiles));
}

static inline void multiply(left a, const bf16 *b, int64_t b_stride, int64_t k_tiles, float out[],
                            const bf16 *next) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < k_tiles; k++) {
        _tile_loadd(4, a.at + k * a.right, a.row * 2);
        _tile_loadd(6, b + k * TILE_SIZE, 64);
        _tile_loadd(7, b + b_stride + k * TILE_SIZE, 64);
        _tile_loadd(5, a.at + a.down + k * a.right, a.row * 2);
        if (next)
            for (int i = 0; i < 16; i++) {
                const bf16 *line = next + k * TILE_SIZE + i * BLOCK;
                _mm_prefetch((const char *)line, _MM_HINT_T1);
                _mm_prefetch((const char *)(line + b_stride), _MM_HINT_T1);
            }
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 128);
    _tile_stored(1, out + 16, 128);
    _tile_stored(2, out + 512, 128);
    _tile_stored(3, out + 528, 128);
}
#else
static const uint8_t TILES[64];
static void configure(const uint8_t tiles[64]) {
    (void)tiles;
}
static void save_configuration(uint8_t tiles[64]) {
    (void)tiles;
}

static inline void multiply(left a, const bf16 *b, int64_t b_stride, int64_t k_tiles, float out[],
                            const bf16 *next) {
    (void)next;
    for (int m = 0; m < BLOCK; m += 8) {
        const bf16 *first = a.at + m / TILE * a.down + m % TILE * a.row;
        __m512 sums[8][2];
        for (int i = 0; i < 8; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
        for (int64_t k = 0; k < k_tiles; k++)
            for (int line = 0; line < 16; line++) {
                const bf16 *from = b + k * TILE_SIZE + line * BLOCK;
                __m512bh b0 = (__m512bh)_mm512_loadu_si512(from);
                __m512bh b1 = (__m512bh)_mm512_loadu_si512(from + b_stride);
                for (int i = 0; i < 8; i++) {
                    int32_t pair;
                    memcpy(&pair, first + k * a.right + i * a.row + 2 * line, 4);
                    __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                    sums[i][0] = _mm512_dpbf16_ps(sums[i][0], both, b0);
                    sums[i][1] = _mm512_dpbf16_ps(sums[i][1], both, b1);
                }
            }
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 2; j++)
                _mm512_storeu_ps(out + (m + i) * BLOCK + j * TILE, sums[i][j]);
    }
}
#endif

/* Transpose a block. */
static void turn(float block[]) {
    float turned[BLOCK * BLOCK];
    for (int i = 0; i < BLOCK; i += TILE)
        for (int j = 0; j < BLOCK; j += TILE) {
            __m512i r[16];
            for (int k = 0; k < 16; k++) r[k] = _mm512_loadu_si512(block + (i + k) * BLOCK + j);
            transpose16(r);
            for (int k = 0; k < 16; k++) _mm512_storeu_si512(turned + (j + k) * BLOCK + i, r[k]);
        }
    memcpy(block, turned, sizeof turned);
}

/* Ask for the lines that `put` will write, which are often in a far cache. */
static inline void expect(target to, int64_t m, int64_t n) {
    if (to.mode == ROUND) {
        const bf16 *at = (const bf16 *)to.at + m * to.stride + n;
        for (int i = 0; i < BLOCK; i++) __builtin_prefetch(at + i * to.stride, 1);
        return;
    }
    int turned = to.mode == SET_TRANSPOSE || to.mode == ADD_TRANSPOSE;
    const float *at = (const float *)to.at + (turned ? n * to.stride + m : m * to.stride + n);
    for (int i = 0; i < BLOCK; i++) {
        __builtin_prefetch(at + i * to.stride, 1);
        __builtin_prefetch(at + i * to.stride + TILE, 1);
    }
}

static inline void put(target to, int64_t m, int64_t n, float out[]) {
    if (to.mode == ROUND) {
        bf16 *at = (bf16 *)to.at + m * to.stride + n;
        if (to.plus)
            for (int i = 0; i < BLOCK; i++)
                for (int j = 0; j < BLOCK; j += TILE) {
                    __m512 x = _mm512_mul_ps(load16(to.plus + (m + i) * to.stride + n + j),
                                             _mm512_set1_ps(to.plus_times));
                    x = _mm512_fmadd_ps(_mm512_loadu_ps(out + i * BLOCK + j),
                                        _mm512_set1_ps(to.times), x);
                    _mm512_storeu_ps(out + i * BLOCK + j, x);
                }
        for (int i = 0; i < BLOCK; i++)
            _mm512_storeu_si512(at + i * to.stride, (__m512i)_mm512_cvtne2ps_pbh(
                                                        _mm512_loadu_ps(out + i * BLOCK + TILE),
                                                        _mm512_loadu_ps(out + i * BLOCK)));
        return;
    }
    float *at = (float *)to.at + m * to.stride + n;
    if (to.mode == SET_TRANSPOSE || to.mode == ADD_TRANSPOSE) {
        at = (float *)to.at + n * to.stride + m;
        turn(out);
    }
    int adds = to.mode == ADD || to.mode == ADD_TRANSPOSE;
    for (int i = 0; i < BLOCK; i++)
        for (int j = 0; j < BLOCK; j += TILE) {
            __m512 x = _mm512_loadu_ps(out + i * BLOCK + j);
            if (adds) x = _mm512_add_ps(x, _mm512_loadu_ps(at + i * to.stride + j));
            _mm512_storeu_ps(at + i * to.stride + j, x);
        }
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Multiply a [rows, k] by the packed b [k, columns]; b_k: all its rows, of which the first k are
   used. 32 rows of `a` stay in the L1 cache, and some columns of `b` in the L2 cache. */
static void product(target to, left a, const bf16 *b, int64_t rows, int64_t k, int64_t columns,
                    int64_t b_k) {
    enum { DEPTH = 512, CACHED = 1 << 18 };
    float out[BLOCK * BLOCK] __attribute__((aligned(64)));
    for (int64_t from = 0; from < k; from += DEPTH) {
        int64_t depth = to.mode == ROUND ? k : smaller(DEPTH, k - from);
        int64_t width = larger(BLOCK, CACHED / depth / BLOCK * BLOCK);
        for (int64_t first = 0; first < columns; first += width)
            for (int64_t m = 0; m < rows; m += BLOCK)
                for (int64_t n = first; n < smaller(columns, first + width); n += BLOCK) {
                    left part = a;
                    part.at += m / TILE * a.down + from / BLOCK * a.right;
                    const bf16 *columns_of_b = b + n * b_k + from * TILE;
                    const bf16 *next =
                        m == 0 && n + 2 * BLOCK < columns ? columns_of_b + 2 * BLOCK * b_k : NULL;
                    expect(to, m, n);
                    multiply(part, columns_of_b, b_k * TILE, depth / BLOCK, out, next);
                    put(to, m, n, out);
                }
        if (depth == k) break;
        to.mode = to.mode == SET_TRANSPOSE || to.mode == ADD_TRANSPOSE ? ADD_TRANSPOSE : ADD;
    }
}

/* Multiply a [rows, k] by the packed b [k, rows] where the result is symmetric: half of it is
 * computed. */
static void symmetric_product(target to, left a, const bf16 *b, int64_t rows, int64_t k) {
    float out[BLOCK * BLOCK] __attribute__((aligned(64)));
    for (int64_t m = 0; m < rows; m += BLOCK)
        for (int64_t n = m; n < rows; n += BLOCK) {
            left part = a;
            part.at += m / TILE * a.down;
            multiply(part, b + n * k, k * TILE, k / BLOCK, out, NULL);
            put(to, m, n, out);
            if (n == m) continue;
            turn(out);
            target mirrored = to;
            mirrored.plus = NULL;
            put(mirrored, n, m, out);
        }
}

/* ---- Memory
 * ------------------------------------------------------------------------------------------- */

typedef struct {
    bf16 *plain, *transposed; /* a weight, packed for the way back and for the way forward */
} packed;

typedef struct {
    float *input, *middle;   /* residual stream before each norm [T, D] */
    float *scale1, *scale2;  /* 1 / root mean square [T] */
    float *log_sums;         /* of each query's exponentials [T, H] */
    bf16 *normed1, *normed2; /* [T, D] */
    bf16 *qkv;               /* turned by their positions [T, 3, H, E] */
    bf16 *mixed;             /* [T, H, E] */
    bf16 *gate_up, *active;  /* [T, 2, F], [T, F] */
    packed qkv_w, output_w, gate_up_w, down_w;
} layer;

typedef struct {
    char *next; /* NULL while bytes are counted */
    size_t bytes;
} arena;

static void *take(arena *from, int64_t bytes) {
    void *at = from->next ? from->next + from->bytes : NULL;
    from->bytes += ((size_t)bytes + 4095) / 4096 * 4096 + 256;
    return at;
}

static packed take_packed(arena *from, int64_t size) {
    packed both;
    both.plain = take(from, 2 * size);
    both.transposed = take(from, 2 * size);
    return both;
}

enum { MAX_LAYERS = 64, MAX_THREADS = 256 };
enum { PANEL = 128 }; /* columns of a weight's gradient that a task computes */

typedef struct {
    shape s;
    int64_t tokens, chunk, width; /* of a group, of a task, H * E */
    uint32_t seed;
    const float *const *weights;
    float *const *gradients;
    const float *rotary;
    int adds; /* whether gradients are added to */
    layer layers[MAX_LAYERS];
    packed embedding;
    float *x, *scale; /* the last residual stream and its norm */
    bf16 *normed;
    float *dx;        /* gradient of the residual stream */
    bf16 *dx_rounded; /* the same, of a branch */
    bf16 *logits;     /* then their gradient [T, V] */
    bf16 *dqkv, *dmixed, *dgate_up;
    bf16 *turned; /* left matrix of a weight's gradient */
    float *losses;
    float *norm_sums;         /* gradients of a norm's weights, by task [T / chunk, D] */
    float *wide[MAX_THREADS]; /* scratch of a thread */
    bf16 *narrow[MAX_THREADS];
} work;

static void lay_out(work *w, arena *from, int threads) {
    shape s = w->s;
    int64_t t = w->tokens, d = s.dim, f = s.hidden, e = s.head_dim, c = s.context;
    for (int64_t i = 0; i < s.layers; i++) {
        layer *l = &w->layers[i];
        l->input = take(from, 4 * t * d);
        l->middle = take(from, 4 * t * d);
        l->scale1 = take(from, 4 * t);
        l->scale2 = take(from, 4 * t);
        l->log_sums = take(from, 4 * t * s.heads);
        l->normed1 = take(from, 2 * t * d);
        l->normed2 = take(from, 2 * t * d);
        l->qkv = take(from, 2 * t * 3 * w->width);
        l->mixed = take(from, 2 * t * w->width);
        l->gate_up = take(from, 2 * t * 2 * f);
        l->active = take(from, 2 * t * f);
        l->qkv_w = take_packed(from, 3 * w->width * d);
        l->output_w = take_packed(from, w->width * d);
        l->gate_up_w = take_packed(from, 2 * f * d);
        l->down_w = take_packed(from, f * d);
    }
    w->embedding = take_packed(from, s.vocab * d);
    w->x = take(from, 4 * t * d);
    w->scale = take(from, 4 * t);
    w->normed = take(from, 2 * t * d);
    w->dx = take(from, 4 * t * d);
    w->dx_rounded = take(from, 2 * t * d);
    w->logits = take(from, 2 * t * s.vocab);
    w->dqkv = take(from, 2 * t * 3 * w->width);
    w->dmixed = take(from, 2 * t * w->width);
    w->dgate_up = take(from, 2 * t * 2 * f);
    w->turned = take(from, 2 * t * larger(d, w->width));
    w->losses = take(from, 4 * t);
    w->norm_sums = take(from, 4 * (t / w->chunk + 1) * d);
    for (int i = 0; i < threads; i++) {
        w->wide[i] = take(from, 4 * larger(larger(w->chunk * d, s.vocab), BLOCK * c * 2 + c * e));
        int64_t attention = 2 * c * c + 8 * c * e + 2 * BLOCK * c;
        w->narrow[i] =
            take(from, 2 * larger(larger(w->chunk * larger(d, f), PANEL * t), attention));
    }
}

/* ---- Rows
 * --------------------------------------------------------------------------------------------- */

/* Return 0 or 1 / (1 - dropout) for 16 numbers, the same again for the same arguments. */
static inline __m512 mask16(const work *w, int64_t site, int64_t index) {
    uint32_t key = (w->seed + (uint32_t)site * 0x9e3779b9u) * 0x85ebca6bu;
    __m512i x =
        _mm512_add_epi32(_mm512_set1_epi32((int)(uint32_t)index),
                         _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    x = _mm512_xor_si512(_mm512_mullo_epi32(x, _mm512_set1_epi32((int)0x9e3779b1u)),
                         _mm512_set1_epi32((int)key));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int)0x85ebca6bu));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 13));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int)0xc2b2ae35u));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    uint32_t limit = (uint32_t)(w->s.dropout * 4294967040.0f);
    __mmask16 kept = _mm512_cmpge_epu32_mask(x, _mm512_set1_epi32((int)limit));
    return _mm512_maskz_mov_ps(kept, _mm512_set1_ps(1.0f / (1.0f - w->s.dropout)));
}

static void normalize(const work *w, bf16 *to, float *scale, const float *x, const float *weight) {
    int64_t d = w->s.dim;
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    *scale = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)d + w->s.norm_eps);
    __m512 factor = _mm512_set1_ps(*scale);
    for (int64_t i = 0; i < d; i += 16)
        store16(to + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor),
                                      _mm512_loadu_ps(weight + i)));
}

/* Add to dx the gradient of x, from that of the normalized row; add to `sums` that of the weights.
 */
static void normalize_back(const work *w, float *dx, float *sums, const float *dy, const float *x,
                           float scale, const float *weight) {
    int64_t d = w->s.dim;
    __m512 factor = _mm512_set1_ps(scale), dot = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += 16) {
        __m512 g = _mm512_loadu_ps(dy + i), v = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor);
        _mm512_storeu_ps(sums + i, _mm512_fmadd_ps(g, v, _mm512_loadu_ps(sums + i)));
        dot = _mm512_fmadd_ps(_mm512_mul_ps(g, _mm512_loadu_ps(weight + i)), v, dot);
    }
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / (float)d);
    for (int64_t i = 0; i < d; i += 16) {
        __m512 g = _mm512_mul_ps(_mm512_loadu_ps(dy + i), _mm512_loadu_ps(weight + i));
        __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor);
        g = _mm512_fnmadd_ps(v, mean, g);
        _mm512_storeu_ps(dx + i, _mm512_fmadd_ps(g, factor, _mm512_loadu_ps(dx + i)));
    }
}

/* Add a branch, with dropout, to a row of the residual stream. */
static void add_branch(const work *w, float *to, const float *x, const float *branch, int64_t site,
                       int64_t row) {
    for (int64_t i = 0; i < w->s.dim; i += 16) {
        __m512 v = _mm512_loadu_ps(branch + i);
        if (w->s.dropout > 0) v = _mm512_mul_ps(v, mask16(w, site, row * w->s.dim + i));
        _mm512_storeu_ps(to + i, _mm512_add_ps(_mm512_loadu_ps(x + i), v));
    }
}

/* Round the gradient of a branch. */
static void branch_back(const work *w, bf16 *to, const float *dx, int64_t site, int64_t row) {
    for (int64_t i = 0; i < w->s.dim; i += 16) {
        __m512 v = _mm512_loadu_ps(dx + i);
        if (w->s.dropout > 0) v = _mm512_mul_ps(v, mask16(w, site, row * w->s.dim + i));
        store16(to + i, v);
    }
}

static void swiglu(bf16 *to, const bf16 *gate_up, int64_t hidden) {
    for (int64_t i = 0; i < hidden; i += 16) {
        __m512 gate = load16(gate_up + i), up = load16(gate_up + hidden + i);
        store16(to + i, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid16(gate)), up));
    }
}

static void swiglu_back(bf16 *to, const bf16 *dy, const bf16 *gate_up, int64_t hidden) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t i = 0; i < hidden; i += 16) {
        __m512 gate = load16(gate_up + i), up = load16(gate_up + hidden + i), g = load16(dy + i);
        __m512 s = sigmoid16(gate), silu = _mm512_mul_ps(gate, s);
        __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one));
        store16(to + i, _mm512_mul_ps(_mm512_mul_ps(g, up), slope));
        store16(to + hidden + i, _mm512_mul_ps(g, silu));
    }
}

/* Turn pairs of a head by the angles of a position; sign -1: back. */
static inline __m512 rotate16(__m512 x, const float *table, __m512 sign) {
    __m512 angles = _mm512_loadu_ps(table); /* cos sin cos sin … */
    __m512 cosines = _mm512_moveldup_ps(angles), sines = _mm512_movehdup_ps(angles);
    __m512 swapped = _mm512_permute_ps(x, 0xb1);
    return _mm512_fmadd_ps(_mm512_mul_ps(swapped, sines), sign, _mm512_mul_ps(x, cosines));
}

static const float FORWARD[16] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
static const float BACK[16] = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};

/* ---- Attention of one head
 * ---------------------------------------------------------------------------- */

/* Scores of 32 queries from `first` on become exp(score - limit), and 0 behind the query. */
static inline __m512 visible(__m512 x, int64_t key, int64_t query) {
    int64_t seen = query - key + 1;
    if (seen >= 16) return x;
    return _mm512_maskz_mov_ps((__mmask16)(seen <= 0 ? 0 : (1u << seen) - 1), x);
}

static void attend(const work *w, layer *l, int64_t sequence, int64_t head, float *wide,
                   bf16 *narrow) {
    int64_t c = w->s.context, e = w->s.head_dim, stride = 3 * w->width;
    bf16 *q = l->qkv + sequence * c * stride + head * e, *k = q + w->width, *v = k + w->width;
    bf16 *keys = narrow, *values = keys + c * e, *weights = values + c * e;
    float *scores = wide;
    __m512 sign = _mm512_loadu_ps(FORWARD);
    for (int64_t t = 0; t < c; t++)
        for (int64_t i = 0; i < e; i += 16) {
            store16(q + t * stride + i,
                    rotate16(load16(q + t * stride + i), w->rotary + t * e + i, sign));
            store16(k + t * stride + i,
                    rotate16(load16(k + t * stride + i), w->rotary + t * e + i, sign));
        }
    pack_transpose(keys, k, stride, c, e);
    pack(values, v, stride, c, e);
    __m512 factor = _mm512_set1_ps(1.0f / sqrtf((float)e));
    for (int64_t first = 0; first < c; first += BLOCK) {
        int64_t seen = first + BLOCK;
        product(target_of(scores, c, SET), rows_of(q + first * stride, stride), keys, BLOCK, e,
                seen, e);
        for (int64_t i = 0; i < BLOCK; i++) {
            float *row = scores + i * c;
            int64_t query = first + i, end = query / 16 * 16 + 16;
            __m512 most = _mm512_set1_ps(-INFINITY);
            for (int64_t t = 0; t < end; t += 16) {
                __m512 x = _mm512_mul_ps(_mm512_loadu_ps(row + t), factor);
                int64_t left_over = query - t + 1;
                __mmask16 kept = left_over >= 16 ? 0xffff : (__mmask16)((1u << left_over) - 1);
                x = _mm512_mask_mov_ps(_mm512_set1_ps(-1e30f), kept, x);
                _mm512_storeu_ps(row + t, x);
                most = _mm512_max_ps(most, x);
            }
            float limit = _mm512_reduce_max_ps(most);
            __m512 total = _mm512_setzero_ps();
            for (int64_t t = 0; t < end; t += 16) {
                __m512 x = exp16(_mm512_sub_ps(_mm512_loadu_ps(row + t), _mm512_set1_ps(limit)));
                x = visible(x, t, query);
                total = _mm512_add_ps(total, x);
                _mm512_storeu_ps(row + t, x);
            }
            float sum = _mm512_reduce_add_ps(total);
            l->log_sums[(sequence * w->s.heads + head) * c + query] = limit + logf(sum);
            __m512 part = _mm512_set1_ps(1.0f / sum);
            for (int64_t t = 0; t < end; t += 16)
                store16(weights + i * c + t, _mm512_mul_ps(_mm512_loadu_ps(row + t), part));
            for (int64_t t = end; t < seen; t += 16)
                store16(weights + i * c + t, _mm512_setzero_ps());
        }
        bf16 *to = l->mixed + (sequence * c + first) * w->width + head * e;
        product(target_of(to, w->width, ROUND), rows_of(weights, c), values, BLOCK, seen, e, c);
    }
}

/* Turn gradients [32, E] back, round and store them. */
static void turn_back(const work *w, bf16 *to, int64_t stride, const float *from, int64_t first,
                      int turns) {
    int64_t e = w->s.head_dim;
    __m512 sign = _mm512_loadu_ps(BACK);
    for (int64_t t = 0; t < BLOCK; t++)
        for (int64_t i = 0; i < e; i += 16) {
            __m512 x = _mm512_loadu_ps(from + t * e + i);
            if (turns) x = rotate16(x, w->rotary + (first + t) * e + i, sign);
            store16(to + (first + t) * stride + i, x);
        }
}

static void attend_back(const work *w, layer *l, int64_t sequence, int64_t head, float *wide,
                        bf16 *narrow) {
    int64_t c = w->s.context, e = w->s.head_dim, stride = 3 * w->width;
    int64_t start = sequence * c * stride + head * e, out = sequence * c * w->width + head * e;
    const bf16 *q = l->qkv + start, *k = q + w->width, *v = k + w->width;
    const bf16 *mixed = l->mixed + out, *dmixed = w->dmixed + out;
    bf16 *dq = w->dqkv + start, *dk = dq + w->width, *dv = dk + w->width;
    bf16 *keys = narrow, *keys_back = keys + c * e, *values = keys_back + c * e,
         *queries = values + c * e;
    bf16 *outputs = queries + c * e, *panel = outputs + c * e;
    bf16 *weights = panel + BLOCK * c, *dscores = weights + c * c;
    float *scores = wide, *dweights = scores + BLOCK * c, *part = dweights + BLOCK * c;
    pack_transpose(keys, k, stride, c, e);
    pack_transpose(values, v, stride, c, e);
    pack(keys_back, k, stride, c, e);
    float scale = 1.0f / sqrtf((float)e);
    __m512 factor = _mm512_set1_ps(scale);
    for (int64_t first = 0; first < c; first += BLOCK) {
        int64_t seen = first + BLOCK;
        product(target_of(scores, c, SET), rows_of(q + first * stride, stride), keys, BLOCK, e,
                seen, e);
        product(target_of(dweights, c, SET), rows_of(dmixed + first * w->width, w->width), values,
                BLOCK, e, seen, e);
        for (int64_t i = 0; i < BLOCK; i++) {
            int64_t query = first + i;
            __m512 dot = _mm512_setzero_ps();
            for (int64_t j = 0; j < e; j += 16)
                dot = _mm512_fmadd_ps(load16(mixed + query * w->width + j),
                                      load16(dmixed + query * w->width + j), dot);
            __m512 delta = _mm512_set1_ps(_mm512_reduce_add_ps(dot));
            __m512 limit = _mm512_set1_ps(l->log_sums[(sequence * w->s.heads + head) * c + query]);
            for (int64_t t = 0; t < seen; t += 16) {
                __m512 x = _mm512_loadu_ps(scores + i * c + t);
                __m512 p = visible(exp16(_mm512_fmsub_ps(x, factor, limit)), t, query);
                __m512 g = _mm512_sub_ps(_mm512_loadu_ps(dweights + i * c + t), delta);
                store16(weights + query * c + t, p);
                store16(dscores + query * c + t, _mm512_mul_ps(_mm512_mul_ps(p, g), factor));
            }
        }
        product(target_of(part, e, SET), rows_of(dscores + first * c, c), keys_back, BLOCK, seen, e,
                c);
        turn_back(w, dq, stride, part, first, 1);
    }
    tile_transpose(queries, q, stride, c, e);
    tile_transpose(outputs, dmixed, w->width, c, e);
    for (int64_t key = 0; key < c; key += BLOCK) {
        int64_t rest = c - key;
        left a = tiles_of(outputs, c);
        a.at += key / BLOCK * TILE_SIZE;
        pack(panel, weights + key * c + key, c, rest, BLOCK);
        product(target_of(part, e, SET_TRANSPOSE), a, panel, e, rest, BLOCK, rest);
        turn_back(w, dv, stride, part, key, 0);
        a.at = queries + key / BLOCK * TILE_SIZE;
        pack(panel, dscores + key * c + key, c, rest, BLOCK);
        product(target_of(part, e, SET_TRANSPOSE), a, panel, e, rest, BLOCK, rest);
        turn_back(w, dk, stride, part, key, 1);
    }
}

/* ---- Passes; every thread calls them, and `omp for` shares out the tasks
 * ------------------------------- */

#ifdef _OPENMP
int omp_get_thread_num(void);
#else
static int omp_get_thread_num(void) {
    return 0;
}
#endif

static void pack_all(packed to, const float *weights, int64_t rows, int64_t columns) {
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < rows; i += BLOCK)
        pack_weights(to.plain, to.transposed, weights, i, rows, columns);
}

/* Gradient of weights [rows, columns]: dy [T, rows] transposed, times x [T, columns]. */
static void weight_gradient(work *w, float *to, const bf16 *dy, int64_t rows, const bf16 *x,
                            int64_t columns) {
    int64_t t = w->tokens;
    /* The narrower one becomes the left matrix, since turning it costs more. */
    int turn_dy = rows <= columns;
    const bf16 *narrow = turn_dy ? dy : x, *broad = turn_dy ? x : dy;
    int64_t m = turn_dy ? rows : columns, n = turn_dy ? columns : rows;
    mode how = turn_dy ? (w->adds ? ADD : SET) : (w->adds ? ADD_TRANSPOSE : SET_TRANSPOSE);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < m; i += BLOCK)
        tile_transpose(w->turned + i * t, narrow + i, m, t, BLOCK);
    int64_t width = n < PANEL * 8 ? PANEL / 2 : PANEL;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < n; i += width) {
        bf16 *panel = w->narrow[omp_get_thread_num()];
        int64_t wide = smaller(width, n - i);
        pack(panel, broad + i, n, t, wide);
        float *at = to + (turn_dy ? i : i * columns);
        product(target_of(at, columns, how), tiles_of(w->turned, t), panel, m, t, wide, t);
    }
}

/* Add up the gradients of a norm's weights, task by task. */
static void finish_norm(work *w, float *to) {
#pragma omp single
    {
        if (!w->adds) memset(to, 0, sizeof(float) * (size_t)w->s.dim);
        for (int64_t i = 0; i * w->chunk < w->tokens; i++)
            for (int64_t j = 0; j < w->s.dim; j++) to[j] += w->norm_sums[i * w->s.dim + j];
    }
}

/* Weights are the embedding, six of each layer, and the last norm. */
enum { NORM1, QKV, OUTPUT, NORM2, GATE_UP, DOWN, PER_LAYER };

static void layer_forward(work *w, int64_t number, const float *const *weights, float *to) {
    layer *l = &w->layers[number];
    shape s = w->s;
    int64_t d = s.dim, width = w->width;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        for (int64_t i = first; i < first + rows; i++)
            normalize(w, l->normed1 + i * d, l->scale1 + i, l->input + i * d, weights[NORM1]);
        product(target_of(l->qkv + first * 3 * width, 3 * width, ROUND),
                rows_of(l->normed1 + first * d, d), l->qkv_w.transposed, rows, d, 3 * width, d);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < w->tokens / s.context * s.heads; i++) {
        int me = omp_get_thread_num();
        attend(w, l, i / s.heads, i % s.heads, w->wide[me], w->narrow[me]);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        float *branch = w->wide[omp_get_thread_num()];
        product(target_of(branch, d, SET), rows_of(l->mixed + first * width, width),
                l->output_w.transposed, rows, width, d, width);
        for (int64_t i = first; i < first + rows; i++) {
            add_branch(w, l->middle + i * d, l->input + i * d, branch + (i - first) * d,
                       2 * number + 1, i);
            normalize(w, l->normed2 + i * d, l->scale2 + i, l->middle + i * d, weights[NORM2]);
        }
        product(target_of(l->gate_up + first * 2 * s.hidden, 2 * s.hidden, ROUND),
                rows_of(l->normed2 + first * d, d), l->gate_up_w.transposed, rows, d, 2 * s.hidden,
                d);
        for (int64_t i = first; i < first + rows; i++)
            swiglu(l->active + i * s.hidden, l->gate_up + i * 2 * s.hidden, s.hidden);
        product(target_of(branch, d, SET), rows_of(l->active + first * s.hidden, s.hidden),
                l->down_w.transposed, rows, s.hidden, d, s.hidden);
        for (int64_t i = first; i < first + rows; i++)
            add_branch(w, to + i * d, l->middle + i * d, branch + (i - first) * d, 2 * number + 2,
                       i);
    }
}

static void layer_back(work *w, int64_t number, const float *const *weights,
                       float *const *gradients) {
    layer *l = &w->layers[number];
    shape s = w->s;
    int64_t d = s.dim, f = s.hidden, width = w->width;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        float *wide = w->wide[omp_get_thread_num()];
        bf16 *dactive = w->narrow[omp_get_thread_num()];
        float *sums = w->norm_sums + first / w->chunk * d;
        memset(sums, 0, sizeof(float) * (size_t)d);
        for (int64_t i = first; i < first + rows; i++)
            branch_back(w, w->dx_rounded + i * d, w->dx + i * d, 2 * number + 2, i);
        product(target_of(dactive, f, ROUND), rows_of(w->dx_rounded + first * d, d),
                l->down_w.plain, rows, d, f, d);
        for (int64_t i = first; i < first + rows; i++)
            swiglu_back(w->dgate_up + i * 2 * f, dactive + (i - first) * f, l->gate_up + i * 2 * f,
                        f);
        product(target_of(wide, d, SET), rows_of(w->dgate_up + first * 2 * f, 2 * f),
                l->gate_up_w.plain, rows, 2 * f, d, 2 * f);
        for (int64_t i = first; i < first + rows; i++)
            normalize_back(w, w->dx + i * d, sums, wide + (i - first) * d, l->middle + i * d,
                           l->scale2[i], weights[NORM2]);
    }
    weight_gradient(w, gradients[DOWN], w->dx_rounded, d, l->active, f);
    weight_gradient(w, gradients[GATE_UP], w->dgate_up, 2 * f, l->normed2, d);
    finish_norm(w, gradients[NORM2]);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        for (int64_t i = first; i < first + rows; i++)
            branch_back(w, w->dx_rounded + i * d, w->dx + i * d, 2 * number + 1, i);
        product(target_of(w->dmixed + first * width, width, ROUND),
                rows_of(w->dx_rounded + first * d, d), l->output_w.plain, rows, d, width, d);
    }
    weight_gradient(w, gradients[OUTPUT], w->dx_rounded, d, l->mixed, width);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < w->tokens / s.context * s.heads; i++) {
        int me = omp_get_thread_num();
        attend_back(w, l, i / s.heads, i % s.heads, w->wide[me], w->narrow[me]);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        float *wide = w->wide[omp_get_thread_num()], *sums = w->norm_sums + first / w->chunk * d;
        memset(sums, 0, sizeof(float) * (size_t)d);
        product(target_of(wide, d, SET), rows_of(w->dqkv + first * 3 * width, 3 * width),
                l->qkv_w.plain, rows, 3 * width, d, 3 * width);
        for (int64_t i = first; i < first + rows; i++)
            normalize_back(w, w->dx + i * d, sums, wide + (i - first) * d, l->input + i * d,
                           l->scale1[i], weights[NORM1]);
    }
    weight_gradient(w, gradients[QKV], w->dqkv, 3 * width, l->normed1, d);
    finish_norm(w, gradients[NORM1]);
}

/* Return the loss of a row of logits, 0 if the target is ignored; unless `share` is 0, turn the
   logits into their gradient. `powers` is scratch. */
static float cross_entropy(bf16 *logits, float *powers, int64_t vocab, int64_t wanted,
                           int64_t ignored, float share) {
    if (wanted == ignored) {
        memset(logits, 0, sizeof(bf16) * (size_t)vocab);
        return 0.0f;
    }
    __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (int64_t i = 0; i < vocab; i += 16) most = _mm512_max_ps(most, load16(logits + i));
    float limit = _mm512_reduce_max_ps(most);
    __m512 shift = _mm512_set1_ps(limit);
    for (int64_t i = 0; i < vocab; i += 16) {
        __m512 x = exp16(_mm512_sub_ps(load16(logits + i), shift));
        total = _mm512_add_ps(total, x);
        _mm512_storeu_ps(powers + i, x);
    }
    float sum = _mm512_reduce_add_ps(total), log_sum = limit + logf(sum);
    uint32_t bits = (uint32_t)logits[wanted] << 16;
    float logit;
    memcpy(&logit, &bits, 4);
    if (share <= 0.0f) return log_sum - logit;
    powers[wanted] -= sum;
    __m512 factor = _mm512_set1_ps(share / sum);
    for (int64_t i = 0; i < vocab; i += 16)
        store16(logits + i, _mm512_mul_ps(_mm512_loadu_ps(powers + i), factor));
    return log_sum - logit;
}

static void group(work *w, const int64_t *tokens, const int64_t *targets, int64_t stride,
                  float share) {
    shape s = w->s;
    int64_t d = s.dim, c = s.context, last = 1 + s.layers * PER_LAYER;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < w->tokens; i++) {
        const float *from = w->weights[0] + tokens[i / c * stride + i % c] * d;
        float *to = w->layers[0].input + i * d;
        for (int64_t j = 0; j < d; j += 16) {
            __m512 x = _mm512_loadu_ps(from + j);
            if (s.dropout > 0) x = _mm512_mul_ps(x, mask16(w, 0, i * d + j));
            _mm512_storeu_ps(to + j, x);
        }
    }
    for (int64_t i = 0; i < s.layers; i++)
        layer_forward(w, i, w->weights + 1 + i * PER_LAYER,
                      i + 1 < s.layers ? w->layers[i + 1].input : w->x);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        float *wide = w->wide[omp_get_thread_num()], *sums = w->norm_sums + first / w->chunk * d;
        memset(sums, 0, sizeof(float) * (size_t)d);
        for (int64_t i = first; i < first + rows; i++)
            normalize(w, w->normed + i * d, w->scale + i, w->x + i * d, w->weights[last]);
        bf16 *logits = w->logits + first * s.vocab;
        product(target_of(logits, s.vocab, ROUND), rows_of(w->normed + first * d, d),
                w->embedding.transposed, rows, d, s.vocab, d);
        for (int64_t i = first; i < first + rows; i++)
            w->losses[i] = cross_entropy(w->logits + i * s.vocab, wide, s.vocab,
                                         targets[i / c * stride + i % c], s.ignored, share);
        if (!w->gradients) continue;
        product(target_of(wide, d, SET), rows_of(logits, s.vocab), w->embedding.plain, rows,
                s.vocab, d, s.vocab);
        memset(w->dx + first * d, 0, sizeof(float) * (size_t)(rows * d));
        for (int64_t i = first; i < first + rows; i++)
            normalize_back(w, w->dx + i * d, sums, wide + (i - first) * d, w->x + i * d,
                           w->scale[i], w->weights[last]);
    }
    if (!w->gradients) return;
    finish_norm(w, w->gradients[last]);
    weight_gradient(w, w->gradients[0], w->logits, s.vocab, w->normed, d);
    for (int64_t i = s.layers - 1; i >= 0; i--)
        layer_back(w, i, w->weights + 1 + i * PER_LAYER, w->gradients + 1 + i * PER_LAYER);
#pragma omp single
    for (int64_t i = 0; i < w->tokens; i++) {
        float *to = w->gradients[0] + tokens[i / c * stride + i % c] * d;
        for (int64_t j = 0; j < d; j += 16) {
            __m512 x = _mm512_loadu_ps(w->dx + i * d + j);
            if (s.dropout > 0) x = _mm512_mul_ps(x, mask16(w, 0, i * d + j));
            _mm512_storeu_ps(to + j, _mm512_add_ps(_mm512_loadu_ps(to + j), x));
        }
    }
}

/* ---- The interface
 * ------------------------------------------------------------------------------------- */

static void set_up(work *w, const shape *s, int64_t sequences) {
    memset(w, 0, sizeof *w);
    w->s = *s;
    w->width = s->heads * s->head_dim;
    w->tokens = smaller(sequences, larger(1, GROUP_TOKENS / s->context)) * s->context;
    w->chunk = smaller(w->tokens, s->dim <= 256 ? 128 : 256);
}

/* Return the bytes of memory that `fused_loss` needs; 0: this processor cannot run it. */
int64_t fused_bytes(const shape *s, int64_t sequences, int64_t threads) {
    work w;
    arena memory = {NULL, 4096};
#ifdef __AMX_BF16__
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return 0;
#endif
    if (s->layers > MAX_LAYERS || threads > MAX_THREADS) return 0;
    set_up(&w, s, sequences);
    lay_out(&w, &memory, (int)threads);
    return (int64_t)memory.bytes;
}

/* Return the mean loss of the targets that are not ignored; set its gradients, unless they are
 * NULL. */
double fused_loss(const shape *s, int64_t sequences, int64_t threads, const int64_t *tokens,
                  const int64_t *targets, int64_t stride, const float *rotary,
                  const float *const *weights, float *const *gradients, char *memory,
                  uint32_t seed) {
    work w;
    arena from = {memory, 0};
    set_up(&w, s, sequences);
    w.weights = weights;
    w.gradients = gradients;
    w.rotary = rotary;
    w.seed = seed;
    lay_out(&w, &from, (int)threads);
    int64_t count = 0, step = w.tokens / s->context;
    for (int64_t i = 0; i < sequences; i++)
        for (int64_t j = 0; j < s->context; j++) count += targets[i * stride + j] != s->ignored;
    float share = gradients ? 1.0f / (float)larger(count, 1) : 0.0f;
    double loss = 0;
#pragma omp parallel num_threads((int)threads)
    {
        uint8_t before[64] __attribute__((aligned(64)));
        save_configuration(before);
        configure(TILES);
        for (int64_t i = 0; i < s->layers; i++) {
            const float *const *of = weights + 1 + i * PER_LAYER;
            pack_all(w.layers[i].qkv_w, of[QKV], 3 * w.width, s->dim);
            pack_all(w.layers[i].output_w, of[OUTPUT], s->dim, w.width);
            pack_all(w.layers[i].gate_up_w, of[GATE_UP], 2 * s->hidden, s->dim);
            pack_all(w.layers[i].down_w, of[DOWN], s->dim, s->hidden);
        }
        pack_all(w.embedding, weights[0], s->vocab, s->dim);
        for (int64_t i = 0; i < sequences; i += step) {
#pragma omp single
            {
                w.tokens = smaller(step, sequences - i) * s->context;
                w.adds = i > 0;
                w.seed = seed + (uint32_t)i * 0x27d4eb2fu;
            }
            group(&w, tokens + i * stride, targets + i * stride, stride, share);
#pragma omp single
            for (int64_t j = 0; j < w.tokens; j++) loss += w.losses[j];
        }
        configure(before);
    }
    return count ? loss / (double)count : NAN;
}

/* ---- Muon
 * ---------------------------------------------------------------------------------------------- */

/* Write the transpose of matrix [rows, columns]. */
static void transpose(bf16 *to, const bf16 *from, int64_t rows, int64_t columns) {
    __m512i r[16];
    for (int64_t m = 0; m < columns; m += TILE)
        for (int64_t k = 0; k < rows; k += BLOCK) {
            for (int i = 0; i < 16; i++)
                r[i] = interleave(from + (k + 2 * i) * columns + m, columns);
            transpose16(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (m + i) * rows + k, r[i]);
        }
}

typedef struct {
    float momentum, beta2, decay,
        rate; /* decay: what weights are multiplied by; rate: of the update */
    float linear, cubic, quintic;
    int64_t steps;
} muon;

/* Update the momentum; write Nesterov's lookahead, divided by its norm. */
static void look_ahead(bf16 *to, float *mean, const float *gradient, int64_t size, float momentum) {
    __m512 keep = _mm512_set1_ps(momentum), squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) {
        __m512 g = _mm512_loadu_ps(gradient + i), m = _mm512_loadu_ps(mean + i);
        m = _mm512_fmadd_ps(keep, _mm512_sub_ps(m, g), g);
        _mm512_storeu_ps(mean + i, m);
        m = _mm512_fmadd_ps(keep, _mm512_sub_ps(m, g), g);
        squares = _mm512_fmadd_ps(m, m, squares);
    }
    float norm = sqrtf(_mm512_reduce_add_ps(squares));
    __m512 factor = _mm512_set1_ps(1.0f / (norm > 1e-7f ? norm : 1e-7f));
    for (int64_t i = 0; i < size; i += 16) {
        __m512 g = _mm512_loadu_ps(gradient + i), m = _mm512_loadu_ps(mean + i);
        m = _mm512_fmadd_ps(keep, _mm512_sub_ps(m, g), g);
        store16(to + i, _mm512_mul_ps(m, factor));
    }
}

/* Orthogonalize x [rows, columns], rows <= columns, in place; scratch: 2 * size + 3 * rows^2
 * numbers. */
static void orthogonalize(const muon *o, bf16 *x, int64_t rows, int64_t columns, bf16 *scratch) {
    int64_t size = rows * columns;
    bf16 *packed_x = scratch, *next = packed_x + size;
    bf16 *gram = next + size, *packed_gram = gram + rows * rows,
         *polynomial = packed_gram + rows * rows;
    bf16 *now = x;
    for (int64_t step = 0; step < o->steps; step++) {
        pack_transpose(packed_x, now, columns, rows, columns);
        symmetric_product(target_of(gram, rows, ROUND), rows_of(now, columns), packed_x, rows,
                          columns);
        pack(packed_gram, gram, rows, rows, rows);
        symmetric_product((target){polynomial, rows, ROUND, gram, o->cubic, o->quintic},
                          rows_of(gram, rows), packed_gram, rows, rows);
        pack(packed_x, now, columns, rows, columns);
        product((target){next, columns, ROUND, now, o->linear, 1.0f}, rows_of(polynomial, rows),
                packed_x, rows, rows, columns, rows);
        bf16 *before = now;
        now = next;
        next = before;
    }
    if (now != x) memcpy(x, now, sizeof(bf16) * (size_t)size);
}

/* Change weights [rows, columns] by an update whose rows are divided by their mean size over time.
 */
static void apply(const muon *o, float *weights, const bf16 *update, float *row_squares,
                  int64_t rows, int64_t columns) {
    double before = 0, after = 0;
    for (int64_t i = 0; row_squares && i < rows; i++) {
        __m512 total = _mm512_setzero_ps();
        for (int64_t j = 0; j < columns; j += 16) {
            __m512 u = load16(update + i * columns + j);
            total = _mm512_fmadd_ps(u, u, total);
        }
        float sum = _mm512_reduce_add_ps(total);
        row_squares[i] += (sum / (float)columns - row_squares[i]) * (1.0f - o->beta2);
        float size = sqrtf(row_squares[i]) + 1e-8f;
        before += sum;
        after += sum / size / size;
    }
    double all = row_squares ? sqrt(before) / fmax(sqrt(after), 1e-7) : 1.0;
    __m512 decay = _mm512_set1_ps(o->decay);
    for (int64_t i = 0; i < rows; i++) {
        float size = row_squares ? sqrtf(row_squares[i]) + 1e-8f : 1.0f;
        __m512 rate = _mm512_set1_ps(o->rate * (float)all / size);
        for (int64_t j = 0; j < columns; j += 16) {
            __m512 w = _mm512_mul_ps(_mm512_loadu_ps(weights + i * columns + j), decay);
            w = _mm512_fnmadd_ps(load16(update + i * columns + j), rate, w);
            _mm512_storeu_ps(weights + i * columns + j, w);
        }
    }
}

/* Return the numbers of scratch that a thread of `fused_muon` needs. */
int64_t fused_muon_scratch(int64_t rows, int64_t columns) {
    int64_t side = smaller(rows, columns);
    return 4 * rows * columns + 3 * side * side;
}

/* Update matrices of one shape, each by one thread; row_squares: NULL for none. */
void fused_muon(const muon *o, int64_t threads, int64_t count, int64_t rows, int64_t columns,
                float *const *weights, float *const *means, const float *const *gradients,
                float *const *row_squares, bf16 *scratch) {
    int64_t size = rows * columns, each = fused_muon_scratch(rows, columns);
    int tall = rows > columns;
#pragma omp parallel num_threads((int)threads)
    {
        uint8_t before[64] __attribute__((aligned(64)));
        save_configuration(before);
        configure(TILES);
        bf16 *x = scratch + omp_get_thread_num() * each, *turned = x + size, *rest = turned + size;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i++) {
            look_ahead(x, means[i], gradients[i], size, o->momentum);
            if (tall) transpose(turned, x, rows, columns);
            orthogonalize(o, tall ? turned : x, smaller(rows, columns), larger(rows, columns),
                          rest);
            if (tall) transpose(x, turned, columns, rows);
            apply(o, weights[i], x, row_squares ? row_squares[i] : NULL, rows, columns);
        }
        configure(before);
    }
}
