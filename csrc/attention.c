/* attention.c: the key-value cache and attention over it.
 *
 * To a query head, the cache of its key-value head is two matrices in the kernels' tiles: keys, a
 * row for each position, so that scores are keys times a query; and transposed values, a column for
 * each position, so that the result is values times the softmax of the scores. In memory the heads
 * of a layer stand side by side, so that what has been used of it is dense, whatever the context:
 *
 *   keys    [layers][tiles of 16 positions][kv_heads][head_dim][16]
 *   values  [layers][positions][kv_heads][head_dim in whole tiles]
 *
 * They are f32 beside f32 weights and f16, half the traffic, beside quantized ones; all that is
 * multiplied with them and added up is f32. */

#include <math.h>
#include <string.h>

#include "internal.h"

bool sl_cache_is_compact(const sl_model *model) {
    return model->info.weight_type != SL_F32;
}

/* Elements from one tile of positions to the next, and from one position's values to the next. */
static size_t key_stride(const sl_info *info) {
    return (size_t)info->kv_heads * info->head_dim * SL_TILE_ROWS;
}

static size_t value_stride(const sl_info *info) {
    return (size_t)info->kv_heads * sl_padded_rows(info->head_dim);
}

/* Elements of a layer's keys, and of its values. */
static size_t layer_keys(const sl_info *info) {
    return sl_padded_rows(info->context) / SL_TILE_ROWS * key_stride(info);
}

static size_t layer_values(const sl_info *info) {
    return info->context * value_stride(info);
}

static size_t element_bytes(const sl_model *model) {
    return sl_cache_is_compact(model) ? sizeof(uint16_t) : sizeof(float);
}

size_t sl_keys_bytes(const sl_model *model) {
    return model->info.layers * layer_keys(&model->info) * element_bytes(model);
}

size_t sl_values_bytes(const sl_model *model) {
    return model->info.layers * layer_values(&model->info) * element_bytes(model);
}

/* Where the matrices of a key-value head start. */
static uint8_t *keys_of(const sl_model *model, const sl_story *story, size_t layer, size_t head) {
    const sl_info *info = &model->info;
    const size_t first = layer * layer_keys(info) + head * info->head_dim * SL_TILE_ROWS;
    return story->keys + first * element_bytes(model);
}

static uint8_t *values_of(const sl_model *model, const sl_story *story, size_t layer, size_t head) {
    const sl_info *info = &model->info;
    const size_t first = layer * layer_values(info) + head * sl_padded_rows(info->head_dim);
    return story->values + first * element_bytes(model);
}

/* Load something of each line of rows[count][bytes], which are `stride` bytes apart. */
static void load_lines(const uint8_t *rows, size_t count, size_t stride, size_t bytes) {
    enum { LINE = 64 };
    for (size_t row = 0; row < count; row++)
        for (size_t i = 0; i < bytes; i += LINE)
            (void)*(const volatile uint8_t *)(rows + row * stride + i);
}

void sl_bring_near(const sl_model *model, const sl_story *story, size_t layer, size_t first,
                   size_t end) {
    const sl_info *info = &model->info;
    const size_t heads = end - first, element = element_bytes(model), positions = story->position;
    load_lines(keys_of(model, story, layer, first), sl_padded_rows(positions + 1) / SL_TILE_ROWS,
               key_stride(info) * element, heads * info->head_dim * SL_TILE_ROWS * element);
    load_lines(values_of(model, story, layer, first), positions, value_stride(info) * element,
               heads * sl_padded_rows(info->head_dim) * element);
}

/* Where in them an element is. */
static size_t key_at(const sl_info *info, size_t position, size_t d) {
    return position / SL_TILE_ROWS * key_stride(info) + d * SL_TILE_ROWS + position % SL_TILE_ROWS;
}

static size_t value_at(const sl_info *info, size_t position, size_t d) {
    return position * value_stride(info) + d;
}

static void remember_f32(const sl_info *info, float *keys, float *values, size_t position,
                         const float *key, const float *value) {
    for (size_t d = 0; d < info->head_dim; d++) {
        keys[key_at(info, position, d)] = key[d];
        values[value_at(info, position, d)] = value[d];
    }
}

static void remember_f16(const sl_model *model, const sl_attention *scratch, uint16_t *keys,
                         uint16_t *values, size_t position, const float *key, const float *value) {
    const sl_info *info = &model->info;
    model->kernels->to_f16(scratch->rounded, key, info->head_dim);
    for (size_t d = 0; d < info->head_dim; d++)
        keys[key_at(info, position, d)] = scratch->rounded[d];
    model->kernels->to_f16(values + value_at(info, position, 0), value, info->head_dim);
}

/* ---- Attention ------------------------------------------------------------------------------- */

/* y[n][rows in whole tiles] = x[n][columns] times the transposed matrix in the cache. */
static void multiply(const sl_model *model, float *y, size_t y_stride, const void *tiles,
                     size_t tile_stride, size_t column_stride, size_t rows, size_t columns,
                     const float *x, size_t x_stride, size_t n) {
    const size_t tile_count = sl_padded_rows(rows) / SL_TILE_ROWS;
    if (sl_cache_is_compact(model))
        model->kernels->matmul_f16(y, y_stride, tiles, tile_stride, column_stride, tile_count,
                                   columns, x, x_stride, n);
    else
        model->kernels->matmul_f32(y, y_stride, tiles, tile_stride, column_stride, tile_count,
                                   columns, x, x_stride, n);
}

/* Leave exp(scores - largest) of the first `positions` and zeros up to `most`; returns the sum. */
static float exponentials(const sl_model *model, float *scores, size_t positions, size_t most) {
    const float largest = scores[model->kernels->argmax(scores, positions)];
    memset(scores + positions, 0, (most - positions) * sizeof *scores);
    return model->kernels->exponentials(scores, scores, positions, largest,
                                        1.0f / sqrtf((float)model->info.head_dim));
}

/* The tokens first … first + n - 1 of a run, n at most SL_QUERIES, with one query head. */
static void answer(const sl_model *model, const sl_run *run, const void *keys, const void *values,
                   size_t first, size_t n, const float *queries, size_t stride, float *output,
                   const sl_attention *scratch) {
    const sl_info *info = &model->info;
    const size_t head_dim = info->head_dim, output_stride = sl_padded_rows(head_dim);
    const size_t scores_stride = sl_padded_rows(info->context);
    const size_t position = run->story->position + first, positions = position + n;
    float sums[SL_QUERIES];
    multiply(model, scratch->scores, scores_stride, keys, key_stride(info), SL_TILE_ROWS, positions,
             head_dim, queries, stride, n);
    for (size_t i = 0; i < n; i++)
        sums[i] =
            exponentials(model, scratch->scores + i * scores_stride, position + i + 1, positions);
    multiply(model, scratch->output, output_stride, values, SL_TILE_ROWS, value_stride(info),
             head_dim, positions, scratch->scores, scores_stride, n);
    for (size_t i = 0; i < n; i++) {
        const float *row = scratch->output + i * output_stride;
        float *out = output + i * info->heads * head_dim;
        const float inverse = 1 / sums[i];
        for (size_t d = 0; d < head_dim; d++) out[d] = row[d] * inverse;
    }
}

void sl_attend(const sl_model *model, const sl_run *run, size_t layer, size_t kv_head, float *qkv,
               size_t qkv_stride, float *output, const sl_attention *scratch) {
    const sl_info *info = &model->info;
    const size_t head_dim = info->head_dim, sharing = info->heads / info->kv_heads;
    const size_t first_head = kv_head * sharing;
    void *keys = keys_of(model, run->story, layer, kv_head);
    void *values = values_of(model, run->story, layer, kv_head);
    for (size_t i = 0; i < run->count; i++) {
        const size_t position = run->story->position + i;
        const float *table = model->rotary + position * head_dim;
        float *queries = qkv + i * qkv_stride + first_head * head_dim;
        float *key = qkv + i * qkv_stride + (info->heads + kv_head) * head_dim;
        const float *value = key + info->kv_heads * head_dim;
        model->kernels->rotate(queries, sharing, head_dim, table);
        model->kernels->rotate(key, 1, head_dim, table);
        if (sl_cache_is_compact(model))
            remember_f16(model, scratch, keys, values, position, key, value);
        else
            remember_f32(info, keys, values, position, key, value);
    }
    for (size_t h = first_head; h < first_head + sharing; h++)
        for (size_t i = 0; i < run->count; i += SL_QUERIES) {
            const size_t left = run->count - i, n = left < SL_QUERIES ? left : SL_QUERIES;
            answer(model, run, keys, values, i, n, qkv + i * qkv_stride + h * head_dim, qkv_stride,
                   output + (i * info->heads + h) * head_dim, scratch);
        }
}
