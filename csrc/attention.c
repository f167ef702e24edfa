/* attention.c: the key-value cache, rotary position embedding, and attention.
 *
 * A query head q attends to the keys K and values V of its key-value head at all positions up to
 * its own (Vaswani et al. 2017, arXiv:1706.03762):
 *
 *     attention(q) = softmax(K q / sqrt(head_dim)) V
 *
 * heads / kv_heads query heads share a key-value head (Ainslie et al. 2023, arXiv:2305.13245).
 *
 * The cache of a key-value head is two matrices in the kernels' tiles. Keys have a row for each
 * position: K times a query gives the scores. Values are transposed, with a column for each
 * position: they are multiplied by the softmax of the scores. The heads of a layer are neighbours
 * in memory, so that the filled part of the cache is contiguous at any context:
 *
 *   keys    [layers][tiles of 16 positions][kv_heads] { scales, key[head_dim][16] }
 *   values  [layers][positions][kv_heads][head_dim in whole tiles]
 *
 * Elements are f32, f16 or 8-bit integers; products and sums are f32 in all cases. A tile of 8-bit
 * integers begins with its scales, f32 [2][16]: those of its positions' keys, then those of their
 * values. With k = scale * integer the scales stay outside of the products:
 *
 *     score of a position = (Σ_d integer[d] q[d]) * key scale
 *     output[d] = Σ_positions integer[d] * (probability * value scale) */

#include "attention.h"

#include <math.h>
#include <string.h>

#include "sizes.h"

/* ---- The cache ------------------------------------------------------------------------------- */

enum { KEY_SCALES, VALUE_SCALES, SCALE_KINDS }; /* the order of the scales in a tile of keys */

uint32_t sl_cache_type(const sl_model *model, uint32_t option) {
    /* With fewer numbers for each scale, 8 bits cost a prompt up to a tenth of its speed. */
    enum { LARGE_HEAD = 64 };
    if (option != SL_CACHE_AUTO) return option;
    if (!sl_is_quantized(model->info.weight_type)) return SL_CACHE_F32;
    return model->info.head_dim < LARGE_HEAD ? SL_CACHE_F16 : SL_CACHE_Q8;
}

static size_t element_bytes(uint32_t type) {
    return type == SL_CACHE_Q8 ? 1 : type == SL_CACHE_F16 ? sizeof(uint16_t) : sizeof(float);
}

/* Return the bytes of the scales in a head's tile of keys. */
static size_t scale_bytes(uint32_t type) {
    return type == SL_CACHE_Q8 ? SCALE_KINDS * SL_TILE_ROWS * sizeof(float) : 0;
}

/* Return the bytes of a head's tile of keys. */
static size_t key_tile_bytes(const sl_info *info, uint32_t type) {
    return scale_bytes(type) + info->head_dim * SL_TILE_ROWS * element_bytes(type);
}

/* Return the bytes from one tile of a head's keys to the next. */
static size_t key_stride(const sl_info *info, uint32_t type) {
    return info->kv_heads * key_tile_bytes(info, type);
}

/* Return the bytes of a head's values at one position. */
static size_t value_bytes(const sl_info *info, uint32_t type) {
    return sl_padded_rows(info->head_dim) * element_bytes(type);
}

/* Return the bytes from one position's values to the next. */
static size_t value_stride(const sl_info *info, uint32_t type) {
    return info->kv_heads * value_bytes(info, type);
}

/* Return the bytes of a layer's keys, and of its values. */
static size_t layer_keys(const sl_info *info, const sl_kv_cache *cache) {
    return sl_size_multiply(sl_padded_rows(cache->context) / SL_TILE_ROWS,
                            key_stride(info, cache->type));
}

static size_t layer_values(const sl_info *info, const sl_kv_cache *cache) {
    return sl_size_multiply(cache->context, value_stride(info, cache->type));
}

size_t sl_keys_bytes(const sl_model *model, const sl_kv_cache *cache) {
    return sl_size_multiply(model->info.layers, layer_keys(&model->info, cache));
}

size_t sl_values_bytes(const sl_model *model, const sl_kv_cache *cache) {
    return sl_size_multiply(model->info.layers, layer_values(&model->info, cache));
}

/* Return the start of a key-value head's keys, and of its values. */
static uint8_t *keys_of(const sl_model *model, const sl_kv_cache *cache, size_t layer,
                        size_t head) {
    const sl_info *info = &model->info;
    return cache->keys + layer * layer_keys(info, cache) + head * key_tile_bytes(info, cache->type);
}

static uint8_t *values_of(const sl_model *model, const sl_kv_cache *cache, size_t layer,
                          size_t head) {
    const sl_info *info = &model->info;
    return cache->values + layer * layer_values(info, cache) +
           head * value_bytes(info, cache->type);
}

/* Read a byte of each cache line of rows[count][bytes]; rows are `stride` bytes apart. */
static void load_lines(const uint8_t *rows, size_t count, size_t stride, size_t bytes) {
    enum { LINE = 64 };
    for (size_t row = 0; row < count; row++)
        for (size_t i = 0; i < bytes; i += LINE)
            (void)*(const volatile uint8_t *)(rows + row * stride + i);
}

void sl_prefetch_cache(const sl_model *model, const sl_kv_cache *cache, size_t layer, size_t first,
                       size_t end) {
    const sl_info *info = &model->info;
    const uint32_t type = cache->type;
    const size_t heads = end - first, positions = cache->position;
    load_lines(keys_of(model, cache, layer, first), sl_padded_rows(positions + 1) / SL_TILE_ROWS,
               key_stride(info, type), heads * key_tile_bytes(info, type));
    load_lines(values_of(model, cache, layer, first), positions, value_stride(info, type),
               heads * value_bytes(info, type));
}

/* Return scales[16] of a tile of 8-bit keys. */
static float *tile_scales(uint8_t *tile, size_t kind) {
    return (float *)(void *)tile + kind * SL_TILE_ROWS;
}

/* Quantize x[head_dim] to integers[head_dim in whole tiles], with zeros behind. Returns the scale:
 * the largest magnitude over 127. */
static float quantize_head(const sl_model *model, int8_t *integers, const float *x) {
    const size_t head_dim = model->info.head_dim;
    float scale;
    int32_t sum;
    const sl_quantized q = {integers, &scale, &sum, 1, sl_padded_rows(head_dim)};
    model->kernels->quantize(&q, 0, x, head_dim);
    return scale;
}

/* Store a key in column `lane` of a tile, and a value in its row. */
static void store_f32(size_t head_dim, float *tile, size_t lane, float *row, const float *key,
                      const float *value) {
    for (size_t d = 0; d < head_dim; d++) {
        tile[d * SL_TILE_ROWS + lane] = key[d];
        row[d] = value[d];
    }
}

static void store_f16(const sl_model *model, const sl_attention_scratch *scratch, uint16_t *tile,
                      size_t lane, uint16_t *row, const float *key, const float *value) {
    const size_t head_dim = model->info.head_dim;
    model->kernels->to_f16(scratch->rounded, key, head_dim);
    for (size_t d = 0; d < head_dim; d++) tile[d * SL_TILE_ROWS + lane] = scratch->rounded[d];
    model->kernels->to_f16(row, value, head_dim);
}

static void store_q8(const sl_model *model, const sl_attention_scratch *scratch, uint8_t *tile,
                     size_t lane, int8_t *row, const float *key, const float *value) {
    int8_t *integers = (int8_t *)tile + scale_bytes(SL_CACHE_Q8);
    tile_scales(tile, KEY_SCALES)[lane] = quantize_head(model, scratch->quantized, key);
    for (size_t d = 0; d < model->info.head_dim; d++)
        integers[d * SL_TILE_ROWS + lane] = scratch->quantized[d];
    tile_scales(tile, VALUE_SCALES)[lane] = quantize_head(model, row, value);
}

/* Store the key and the value of a position in the cache of a head. */
static void store(const sl_model *model, uint32_t type, uint8_t *keys, uint8_t *values,
                  size_t position, const float *key, const float *value,
                  const sl_attention_scratch *scratch) {
    const sl_info *info = &model->info;
    const size_t lane = position % SL_TILE_ROWS;
    uint8_t *tile = keys + position / SL_TILE_ROWS * key_stride(info, type);
    void *row = values + position * value_stride(info, type);
    if (type == SL_CACHE_Q8)
        store_q8(model, scratch, tile, lane, row, key, value);
    else if (type == SL_CACHE_F16)
        store_f16(model, scratch, (uint16_t *)(void *)tile, lane, row, key, value);
    else
        store_f32(info->head_dim, (float *)(void *)tile, lane, row, key, value);
}

/* ---- Rotary position embedding --------------------------------------------------------------- */

/* Return the angle per position of pair (i, i + 1): rope_theta^(-i / head_dim) (Su et al. 2021,
 * arXiv:2104.09864), scaled for a long context. Llama 3.1 divides the frequency by rope_factor if
 * the pair turns less than low_freq_factor times over the original context, leaves it if it turns
 * more than high_freq_factor times, and interpolates in between. */
static double rotary_frequency(const sl_info *info, size_t i) {
    const double frequency = pow(info->rope_theta, -(double)i / info->head_dim);
    if (info->rope_scaling == SL_ROPE_NONE) return frequency;
    const double scaled = frequency / info->rope_factor;
    if (info->rope_scaling == SL_ROPE_LINEAR) return scaled;
    const double pi = 3.14159265358979323846;
    const double low = info->rope_low_freq_factor, high = info->rope_high_freq_factor;
    const double turns = info->rope_original_context * frequency / (2 * pi);
    const double unscaled_share = fmin(fmax((turns - low) / (high - low), 0), 1);
    return (1 - unscaled_share) * scaled + unscaled_share * frequency;
}

void sl_fill_rotary(const sl_info *info, float *table, size_t first, size_t end) {
    for (size_t i = 0; i < info->head_dim; i += 2) {
        const double frequency = rotary_frequency(info, i);
        for (size_t t = first; t < end; t++) {
            float *pair = table + t * info->head_dim + i;
            pair[0] = (float)cos((double)t * frequency);
            pair[1] = (float)sin((double)t * frequency);
        }
    }
}

/* ---- Attention ------------------------------------------------------------------------------- */

/* y[n][rows in whole tiles] = x[n][columns] times the transposed matrix in the cache, without the
 * scales of 8-bit integers. Strides count elements. */
static void multiply_cached(const sl_model *model, uint32_t type, float *y, size_t y_stride,
                            const void *tiles, size_t tile_stride, size_t column_stride,
                            size_t rows, size_t columns, const float *x, size_t x_stride,
                            size_t n) {
    const size_t tile_count = sl_padded_rows(rows) / SL_TILE_ROWS;
    if (type == SL_CACHE_Q8)
        model->kernels->matmul_i8(y, y_stride, tiles, tile_stride, column_stride, tile_count,
                                  columns, x, x_stride, n);
    else if (type == SL_CACHE_F16)
        model->kernels->matmul_f16(y, y_stride, tiles, tile_stride, column_stride, tile_count,
                                   columns, x, x_stride, n);
    else
        model->kernels->matmul_f32(y, y_stride, tiles, tile_stride, column_stride, tile_count,
                                   columns, x, x_stride, n);
}
/* Replace scores[positions] by the numerators of softmax(scores / sqrt(head_dim)), and set the
 * scores up to `end` to zero. Returns the denominator. */
static float softmax(const sl_model *model, float *scores, size_t positions, size_t end) {
    const float largest = scores[model->kernels->argmax(scores, positions)];
    memset(scores + positions, 0, (end - positions) * sizeof *scores);
    return model->kernels->exponentials(scores, scores, positions, largest,
                                        1.0f / sqrtf((float)model->info.head_dim));
}

/* Multiply x[positions in whole tiles] by the positions' scales, of keys or of values. */
static void apply_scales(const sl_info *info, float *x, uint8_t *keys, size_t positions,
                         size_t kind) {
    const size_t stride = key_stride(info, SL_CACHE_Q8);
    for (size_t i = 0; i < positions; i += SL_TILE_ROWS, keys += stride) {
        const float *scales = tile_scales(keys, kind);
        for (size_t lane = 0; lane < SL_TILE_ROWS; lane++) x[i + lane] *= scales[lane];
    }
}

/* scores[n][positions in whole tiles] = K q */
static void score_positions(const sl_model *model, uint32_t type, uint8_t *keys, size_t positions,
                            const float *queries, size_t query_stride, float *scores,
                            size_t scores_stride, size_t n) {
    const sl_info *info = &model->info;
    multiply_cached(model, type, scores, scores_stride, keys + scale_bytes(type),
                    key_stride(info, type) / element_bytes(type), SL_TILE_ROWS, positions,
                    info->head_dim, queries, query_stride, n);
    if (type == SL_CACHE_Q8)
        for (size_t i = 0; i < n; i++)
            apply_scales(info, scores + i * scores_stride, keys, positions, KEY_SCALES);
}

/* output[n][head_dim in whole tiles] = shares[n][positions] V. The call overwrites the shares. */
static void average_values(const sl_model *model, uint32_t type, uint8_t *keys,
                           const uint8_t *values, size_t positions, float *shares,
                           size_t shares_stride, float *output, size_t output_stride, size_t n) {
    const sl_info *info = &model->info;
    if (type == SL_CACHE_Q8)
        for (size_t i = 0; i < n; i++)
            apply_scales(info, shares + i * shares_stride, keys, positions, VALUE_SCALES);
    multiply_cached(model, type, output, output_stride, values, SL_TILE_ROWS,
                    value_stride(info, type) / element_bytes(type), info->head_dim, positions,
                    shares, shares_stride, n);
}

/* output[n][heads * head_dim] = rows[n][head_dim in whole tiles] / sums[n], rows that are
 * output_stride apart in the output. */
static void divide_by_sums(const sl_info *info, float *output, size_t output_stride,
                           const float *rows, const float *sums, size_t n) {
    const size_t head_dim = info->head_dim, row_stride = sl_padded_rows(head_dim);
    for (size_t i = 0; i < n; i++) {
        const float inverse = 1 / sums[i];
        for (size_t d = 0; d < head_dim; d++)
            output[i * output_stride + d] = rows[i * row_stride + d] * inverse;
    }
}

/* Compute attention for one query head and tokens first … first + n - 1 after the cache's position;
 * n is at most SL_MAX_QUERIES. queries[n][stride] and `output` start at token `first`. */
static void attend_queries(const sl_model *model, const sl_kv_cache *cache, uint8_t *keys,
                           const uint8_t *values, size_t first, size_t n, const float *queries,
                           size_t stride, float *output, const sl_attention_scratch *scratch) {
    const sl_info *info = &model->info;
    const size_t head_dim = info->head_dim, output_stride = sl_padded_rows(head_dim);
    const size_t scores_stride = sl_padded_rows(cache->context);
    const size_t position = cache->position + first, positions = position + n;
    float sums[SL_MAX_QUERIES];
    /* scores = K q, for all positions. */
    score_positions(model, cache->type, keys, positions, queries, stride, scratch->scores,
                    scores_stride, n);
    /* Softmax. It is causal: token i attends to its own position and those before. */
    for (size_t i = 0; i < n; i++)
        sums[i] = softmax(model, scratch->scores + i * scores_stride, position + i + 1, positions);
    /* output = softmax(scores) V. */
    average_values(model, cache->type, keys, values, positions, scratch->scores, scores_stride,
                   scratch->output, output_stride, n);
    divide_by_sums(info, output, info->heads * head_dim, scratch->output, sums, n);
}

/* Rotate the key of a token, and its queries that share the key. Store the key and the value in the
 * cache. qkv holds all of the token's queries, keys and values. */
static void rotate_and_store(const sl_model *model, uint32_t type, uint8_t *keys, uint8_t *values,
                             size_t kv_head, size_t position, const float *rotary, float *qkv,
                             const sl_attention_scratch *scratch) {
    const sl_info *info = &model->info;
    const size_t head_dim = info->head_dim, sharing = info->heads / info->kv_heads;
    const float *angles = rotary + position * head_dim;
    float *queries = qkv + kv_head * sharing * head_dim;
    float *key = qkv + (info->heads + kv_head) * head_dim;
    const float *value = key + info->kv_heads * head_dim;
    model->kernels->rotate(queries, sharing, head_dim, angles);
    model->kernels->rotate(key, 1, head_dim, angles);
    store(model, type, keys, values, position, key, value, scratch);
}

/* Return the kernel that averages values of this type, or NULL. A large head that has its keys for
 * itself fills enough registers without it. */
static sl_average *average_of(const sl_model *model, uint32_t type) {
    const sl_info *info = &model->info;
    if (info->heads == info->kv_heads && info->head_dim > SL_TILE_ROWS) return NULL;
    if (type == SL_CACHE_Q8) return model->kernels->average_i8;
    return type == SL_CACHE_F16 ? model->kernels->average_f16 : model->kernels->average_f32;
}

/* Compute attention for one token and key-value heads first … end - 1, whose queries are at most
 * scratch->queries. Queries that share a head read its keys together, and the values of all heads
 * are averaged together. */
static void attend_token(const sl_model *model, const sl_kv_cache *cache, size_t layer,
                         size_t first, size_t end, sl_average *average, const float *rotary,
                         float *qkv, float *output, const sl_attention_scratch *scratch) {
    const sl_info *info = &model->info;
    const uint32_t type = cache->type;
    const size_t head_dim = info->head_dim, sharing = info->heads / info->kv_heads;
    const size_t positions = cache->position + 1, stride = sl_padded_rows(cache->context);
    const size_t offset = first * sharing * head_dim;
    float *scores = scratch->scores, sums[SL_MAX_QUERIES], *sum = sums;
    for (size_t head = first; head < end; head++, scores += sharing * stride) {
        uint8_t *keys = keys_of(model, cache, layer, head);
        rotate_and_store(model, type, keys, values_of(model, cache, layer, head), head,
                         cache->position, rotary, qkv, scratch);
        score_positions(model, type, keys, positions, qkv + head * sharing * head_dim, head_dim,
                        scores, stride, sharing);
        for (size_t i = 0; i < sharing; i++, sum++) {
            float *row = scores + i * stride;
            *sum = softmax(model, row, positions, positions);
            if (type == SL_CACHE_Q8) apply_scales(info, row, keys, positions, VALUE_SCALES);
        }
    }
    const sl_values values = {
        .values = values_of(model, cache, layer, first),
        .stride = value_stride(info, type) / element_bytes(type),
        .positions = positions,
        .heads = end - first,
        .sharing = sharing,
        .head_dim = head_dim,
        .shares = scratch->scores,
        .shares_stride = stride,
    };
    average(scratch->output, &values);
    divide_by_sums(info, output + offset, head_dim, scratch->output, sums, (end - first) * sharing);
}

/* Compute attention for one key-value head and the `count` tokens that follow those in the cache.
 */
static void attend_head(const sl_model *model, const sl_kv_cache *cache, size_t layer,
                        size_t kv_head, size_t count, const float *rotary, float *qkv,
                        size_t qkv_stride, float *output, const sl_attention_scratch *scratch) {
    const sl_info *info = &model->info;
    const size_t head_dim = info->head_dim, sharing = info->heads / info->kv_heads;
    const size_t first_head = kv_head * sharing;
    uint8_t *keys = keys_of(model, cache, layer, kv_head);
    uint8_t *values = values_of(model, cache, layer, kv_head);
    for (size_t i = 0; i < count; i++)
        rotate_and_store(model, cache->type, keys, values, kv_head, cache->position + i, rotary,
                         qkv + i * qkv_stride, scratch);
    for (size_t h = first_head; h < first_head + sharing; h++)
        for (size_t i = 0; i < count; i += SL_MAX_QUERIES) {
            const size_t left = count - i, n = left < SL_MAX_QUERIES ? left : SL_MAX_QUERIES;
            attend_queries(model, cache, keys, values, i, n, qkv + i * qkv_stride + h * head_dim,
                           qkv_stride, output + (i * info->heads + h) * head_dim, scratch);
        }
}

void sl_attend(const sl_model *model, const sl_kv_cache *cache, size_t layer, size_t first,
               size_t end, size_t count, const float *rotary, float *qkv, size_t qkv_stride,
               float *output, const sl_attention_scratch *scratch) {
    sl_average *const average = average_of(model, cache->type);
    const size_t sharing = model->info.heads / model->info.kv_heads;
    if (count > 1 || !average || sharing > scratch->queries) {
        for (size_t head = first; head < end; head++)
            attend_head(model, cache, layer, head, count, rotary, qkv, qkv_stride, output, scratch);
        return;
    }
    const size_t together = scratch->queries / sharing;
    for (size_t head = first; head < end; head += together) {
        const size_t left = end - head, n = left < together ? left : together;
        attend_token(model, cache, layer, head, head + n, average, rotary, qkv, output, scratch);
    }
}
