/* attention.c: the key-value cache and attention over it.
 *
 * The cache of a key-value head is two matrices in the kernels' tiles: keys, a row for each
 * position, so that scores are keys times a query; and transposed values, a column for each
 * position, so that the result is values times the softmax of the scores. They are f32 beside f32
 * weights and f16, half the traffic, beside quantized ones; all that is multiplied with them and
 * added up is f32. */

#include <math.h>
#include <string.h>

#include "internal.h"

bool sl_cache_is_compact(const sl_model *model) {
    return model->info.weight_type != SL_F32;
}

/* Elements of one head's keys and of its values, rows padded. */
static size_t key_elements(const sl_info *info) {
    return sl_padded_rows(info->context) * info->head_dim;
}

static size_t value_stride(const sl_info *info) {
    return (size_t)info->context * SL_TILE_ROWS;
}

static size_t value_elements(const sl_info *info) {
    return sl_padded_rows(info->head_dim) / SL_TILE_ROWS * value_stride(info);
}

static size_t cache_bytes(const sl_model *model, size_t head_elements) {
    const size_t heads = (size_t)model->info.layers * model->info.kv_heads;
    return heads * head_elements * (sl_cache_is_compact(model) ? sizeof(uint16_t) : sizeof(float));
}

size_t sl_keys_bytes(const sl_model *model) {
    return cache_bytes(model, key_elements(&model->info));
}

size_t sl_values_bytes(const sl_model *model) {
    return cache_bytes(model, value_elements(&model->info));
}

/* Where a matrix in tiles has an element. */
static size_t at(size_t row, size_t column, size_t tile_stride) {
    return row / SL_TILE_ROWS * tile_stride + column * SL_TILE_ROWS + row % SL_TILE_ROWS;
}

static void remember_f32(const sl_info *info, float *keys, float *values, size_t position,
                         const float *key, const float *value) {
    const size_t head_dim = info->head_dim;
    for (size_t d = 0; d < head_dim; d++) {
        keys[at(position, d, SL_TILE_ROWS * head_dim)] = key[d];
        values[at(d, position, value_stride(info))] = value[d];
    }
}

static void remember_f16(const sl_model *model, const sl_attention *scratch, uint16_t *keys,
                         uint16_t *values, size_t position, const float *key, const float *value) {
    const size_t head_dim = model->info.head_dim;
    uint16_t *rounded_key = scratch->rounded, *rounded_value = scratch->rounded + head_dim;
    model->kernels->to_f16(rounded_key, key, head_dim);
    model->kernels->to_f16(rounded_value, value, head_dim);
    for (size_t d = 0; d < head_dim; d++) {
        keys[at(position, d, SL_TILE_ROWS * head_dim)] = rounded_key[d];
        values[at(d, position, value_stride(&model->info))] = rounded_value[d];
    }
}

/* y[n][rows in whole tiles] = x[n][columns] times the transposed matrix in the cache. */
static void multiply(const sl_model *model, float *y, size_t y_stride, const void *tiles,
                     size_t tile_stride, size_t rows, size_t columns, const float *x,
                     size_t x_stride, size_t n) {
    const size_t tile_count = sl_padded_rows(rows) / SL_TILE_ROWS;
    if (sl_cache_is_compact(model))
        model->kernels->matmul_f16(y, y_stride, tiles, tile_stride, tile_count, columns, x,
                                   x_stride, n);
    else
        model->kernels->matmul_f32(y, y_stride, tiles, tile_stride, tile_count, columns, x,
                                   x_stride, n);
}

/* ---- Attention ------------------------------------------------------------------------------- */

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
    multiply(model, scratch->scores, scores_stride, keys, SL_TILE_ROWS * head_dim, positions,
             head_dim, queries, stride, n);
    for (size_t i = 0; i < n; i++)
        sums[i] =
            exponentials(model, scratch->scores + i * scores_stride, position + i + 1, positions);
    multiply(model, scratch->output, output_stride, values, value_stride(info), head_dim, positions,
             scratch->scores, scores_stride, n);
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
    const size_t first_head = kv_head * sharing, head = layer * info->kv_heads + kv_head;
    const size_t element = sl_cache_is_compact(model) ? sizeof(uint16_t) : sizeof(float);
    void *keys = run->story->keys + head * key_elements(info) * element;
    void *values = run->story->values + head * value_elements(info) * element;
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
