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
 *   keys    [layers][tiles of 16 positions][kv_heads][head_dim][16]
 *   values  [layers][positions][kv_heads][head_dim in whole tiles]
 *
 * The cache is f32 if the weights are f32. If they are quantized it is f16, which halves the memory
 * traffic; products and sums are f32 in both cases. */

#include "attention.h"

#include <math.h>
#include <string.h>

#include "sizes.h"

/* ---- The cache ------------------------------------------------------------------------------- */

bool sl_cache_is_f16(const sl_model *model) {
    return sl_is_quantized(model->info.weight_type);
}

/* Return the elements from one tile of keys to the next. */
static size_t key_stride(const sl_info *info) {
    return (size_t)info->kv_heads * info->head_dim * SL_TILE_ROWS;
}

/* Return the elements from one position's values to the next. */
static size_t value_stride(const sl_info *info) {
    return (size_t)info->kv_heads * sl_padded_rows(info->head_dim);
}

/* Return the elements of a layer's keys, and of its values. */
static size_t layer_keys(const sl_info *info) {
    return sl_size_multiply(sl_padded_rows(info->context) / SL_TILE_ROWS, key_stride(info));
}

static size_t layer_values(const sl_info *info) {
    return sl_size_multiply(info->context, value_stride(info));
}

static size_t element_bytes(const sl_model *model) {
    return sl_cache_is_f16(model) ? sizeof(uint16_t) : sizeof(float);
}

size_t sl_keys_bytes(const sl_model *model) {
    const size_t layer = sl_size_multiply(layer_keys(&model->info), element_bytes(model));
    return sl_size_multiply(model->info.layers, layer);
}

size_t sl_values_bytes(const sl_model *model) {
    const size_t layer = sl_size_multiply(layer_values(&model->info), element_bytes(model));
    return sl_size_multiply(model->info.layers, layer);
}

/* Return the start of a key-value head's matrix of keys, and of values. */
static uint8_t *keys_of(const sl_model *model, const sl_kv_cache *cache, size_t layer,
                        size_t head) {
    const sl_info *info = &model->info;
    const size_t first = layer * layer_keys(info) + head * info->head_dim * SL_TILE_ROWS;
    return cache->keys + first * element_bytes(model);
}

static uint8_t *values_of(const sl_model *model, const sl_kv_cache *cache, size_t layer,
                          size_t head) {
    const sl_info *info = &model->info;
    const size_t first = layer * layer_values(info) + head * sl_padded_rows(info->head_dim);
    return cache->values + first * element_bytes(model);
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
    const size_t heads = end - first, element = element_bytes(model), positions = cache->position;
    load_lines(keys_of(model, cache, layer, first), sl_padded_rows(positions + 1) / SL_TILE_ROWS,
               key_stride(info) * element, heads * info->head_dim * SL_TILE_ROWS * element);
    load_lines(values_of(model, cache, layer, first), positions, value_stride(info) * element,
               heads * sl_padded_rows(info->head_dim) * element);
}

/* Return the index of element d of a position in the matrix of keys, and of values. */
static size_t key_index(const sl_info *info, size_t position, size_t d) {
    return position / SL_TILE_ROWS * key_stride(info) + d * SL_TILE_ROWS + position % SL_TILE_ROWS;
}

static size_t value_at(const sl_info *info, size_t position, size_t d) {
    return position * value_stride(info) + d;
}

static void store_f32(const sl_info *info, float *keys, float *values, size_t position,
                      const float *key, const float *value) {
    for (size_t d = 0; d < info->head_dim; d++) {
        keys[key_index(info, position, d)] = key[d];
        values[value_at(info, position, d)] = value[d];
    }
}

static void store_f16(const sl_model *model, const sl_attention_scratch *scratch, uint16_t *keys,
                      uint16_t *values, size_t position, const float *key, const float *value) {
    const sl_info *info = &model->info;
    model->kernels->to_f16(scratch->rounded, key, info->head_dim);
    for (size_t d = 0; d < info->head_dim; d++)
        keys[key_index(info, position, d)] = scratch->rounded[d];
    model->kernels->to_f16(values + value_at(info, position, 0), value, info->head_dim);
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

/* y[n][rows in whole tiles] = x[n][columns] times the transposed matrix in the cache. */
static void multiply_cached(const sl_model *model, float *y, size_t y_stride, const void *tiles,
                            size_t tile_stride, size_t column_stride, size_t rows, size_t columns,
                            const float *x, size_t x_stride, size_t n) {
    const size_t tile_count = sl_padded_rows(rows) / SL_TILE_ROWS;
    if (sl_cache_is_f16(model))
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

/* Compute attention for one query head and tokens first … first + n - 1 after the cache's position;
 * n is at most SL_MAX_QUERIES. queries[n][stride] and `output` start at token `first`. */
static void attend_queries(const sl_model *model, const sl_kv_cache *cache, const void *keys,
                           const void *values, size_t first, size_t n, const float *queries,
                           size_t stride, float *output, const sl_attention_scratch *scratch) {
    const sl_info *info = &model->info;
    const size_t head_dim = info->head_dim, output_stride = sl_padded_rows(head_dim);
    const size_t scores_stride = sl_padded_rows(info->context);
    const size_t position = cache->position + first, positions = position + n;
    float sums[SL_MAX_QUERIES];
    /* scores = K q, for all positions. */
    multiply_cached(model, scratch->scores, scores_stride, keys, key_stride(info), SL_TILE_ROWS,
                    positions, head_dim, queries, stride, n);
    /* Softmax. It is causal: token i attends to its own position and those before. */
    for (size_t i = 0; i < n; i++)
        sums[i] = softmax(model, scratch->scores + i * scores_stride, position + i + 1, positions);
    /* output = softmax(scores) V. */
    multiply_cached(model, scratch->output, output_stride, values, SL_TILE_ROWS, value_stride(info),
                    head_dim, positions, scratch->scores, scores_stride, n);
    for (size_t i = 0; i < n; i++) {
        const float *row = scratch->output + i * output_stride;
        float *out = output + i * info->heads * head_dim;
        const float inverse = 1 / sums[i];
        for (size_t d = 0; d < head_dim; d++) out[d] = row[d] * inverse;
    }
}

/* Rotate the key of a token, and its queries that share the key. Store the key and the value in the
 * cache. qkv holds all of the token's queries, keys and values. */
static void rotate_and_store(const sl_model *model, void *keys, void *values, size_t kv_head,
                             size_t position, const float *rotary, float *qkv,
                             const sl_attention_scratch *scratch) {
    const sl_info *info = &model->info;
    const size_t head_dim = info->head_dim, sharing = info->heads / info->kv_heads;
    const float *angles = rotary + position * head_dim;
    float *queries = qkv + kv_head * sharing * head_dim;
    float *key = qkv + (info->heads + kv_head) * head_dim;
    const float *value = key + info->kv_heads * head_dim;
    model->kernels->rotate(queries, sharing, head_dim, angles);
    model->kernels->rotate(key, 1, head_dim, angles);
    if (sl_cache_is_f16(model))
        store_f16(model, scratch, keys, values, position, key, value);
    else
        store_f32(info, keys, values, position, key, value);
}

void sl_attend(const sl_model *model, const sl_kv_cache *cache, size_t layer, size_t kv_head,
               size_t count, const float *rotary, float *qkv, size_t qkv_stride, float *output,
               const sl_attention_scratch *scratch) {
    const sl_info *info = &model->info;
    const size_t head_dim = info->head_dim, sharing = info->heads / info->kv_heads;
    const size_t first_head = kv_head * sharing;
    void *keys = keys_of(model, cache, layer, kv_head);
    void *values = values_of(model, cache, layer, kv_head);
    for (size_t i = 0; i < count; i++)
        rotate_and_store(model, keys, values, kv_head, cache->position + i, rotary,
                         qkv + i * qkv_stride, scratch);
    for (size_t h = first_head; h < first_head + sharing; h++)
        for (size_t i = 0; i < count; i += SL_MAX_QUERIES) {
            const size_t left = count - i, n = left < SL_MAX_QUERIES ? left : SL_MAX_QUERIES;
            attend_queries(model, cache, keys, values, i, n, qkv + i * qkv_stride + h * head_dim,
                           qkv_stride, output + (i * info->heads + h) * head_dim, scratch);
        }
}
