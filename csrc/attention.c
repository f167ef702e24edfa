/* attention.c: the key-value cache and attention over it.
 *
 * The cache of a key-value head is two matrices in the kernels' tiles: keys, a row for each
 * position, so that scores are keys times a query; and transposed values, a column for each
 * position, so that the result is values times the softmax of the scores. They are f32 beside f32
 * weights and bf16, half the traffic, beside quantized ones. */

#include <math.h>
#include <string.h>

#include "internal.h"

bool sl_cache_is_compact(const sl_model *model) {
    return model->info.weight_type != SL_F32;
}

/* Elements of one head's keys and of its values. Values have their rows padded, and the columns, so
 * that pairs of bf16 are whole. */
static size_t key_elements(const sl_info *info) {
    return sl_padded_rows(info->context) * info->head_dim;
}

static size_t value_stride(const sl_info *info) {
    return sl_padded_rows(info->context) * SL_TILE_ROWS;
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

/* Where a matrix in tiles of `columns` neighbouring columns has an element. */
static size_t at(size_t row, size_t column, size_t tile_stride, size_t columns) {
    return row / SL_TILE_ROWS * tile_stride + column / columns * columns * SL_TILE_ROWS +
           row % SL_TILE_ROWS * columns + column % columns;
}

/* ---- f32 ------------------------------------------------------------------------------------- */

static void remember_f32(const sl_info *info, float *keys, float *values, size_t position,
                         const float *key, const float *value) {
    const size_t head_dim = info->head_dim;
    for (size_t d = 0; d < head_dim; d++) {
        keys[at(position, d, SL_TILE_ROWS * head_dim, 1)] = key[d];
        values[at(d, position, value_stride(info), 1)] = value[d];
    }
}

static void scores_f32(const sl_model *model, const sl_attention *scratch, const float *keys,
                       size_t positions, const float *queries, size_t stride, size_t n) {
    const size_t head_dim = model->info.head_dim, padded = sl_padded_rows(positions);
    model->kernels->matmul_f32(scratch->scores, sl_padded_rows(model->info.context), keys,
                               SL_TILE_ROWS * head_dim, padded / SL_TILE_ROWS, head_dim, queries,
                               stride, n);
}

static void mix_f32(const sl_model *model, const sl_attention *scratch, const float *values,
                    size_t positions, size_t n) {
    const size_t padded = sl_padded_rows(model->info.head_dim);
    model->kernels->matmul_f32(scratch->output, padded, values, value_stride(&model->info),
                               padded / SL_TILE_ROWS, positions, scratch->scores,
                               sl_padded_rows(model->info.context), n);
}

/* ---- bf16 ------------------------------------------------------------------------------------ */

static void remember_bf16(const sl_model *model, const sl_attention *scratch, uint16_t *keys,
                          uint16_t *values, size_t position, const float *key, const float *value) {
    const size_t head_dim = model->info.head_dim, stride = value_stride(&model->info);
    uint16_t *rounded = scratch->key;
    model->kernels->to_bf16(rounded, key, head_dim);
    for (size_t d = 0; d < head_dim; d += 2) /* pairs of columns stay together */
        memcpy(keys + at(position, d, SL_TILE_ROWS * head_dim, 2), rounded + d, 2 * sizeof *keys);
    model->kernels->to_bf16(rounded, value, head_dim);
    for (size_t d = 0; d < head_dim; d++) {
        /* The other one of a pair is multiplied, by 0, until it is there. */
        const uint16_t pair[2] = {rounded[d], 0};
        const size_t count = position % 2 ? 1 : 2;
        memcpy(values + at(d, position, stride, 2), pair, count * sizeof *values);
    }
}

static void scores_bf16(const sl_model *model, const sl_attention *scratch, const uint16_t *keys,
                        size_t positions, const float *queries, size_t stride, size_t n) {
    const size_t head_dim = model->info.head_dim, padded = sl_padded_rows(positions);
    for (size_t i = 0; i < n; i++)
        model->kernels->to_bf16(scratch->queries + i * head_dim, queries + i * stride, head_dim);
    model->kernels->matmul_bf16(scratch->scores, sl_padded_rows(model->info.context), keys,
                                SL_TILE_ROWS * head_dim, padded / SL_TILE_ROWS, head_dim,
                                scratch->queries, head_dim, n);
}

static void mix_bf16(const sl_model *model, const sl_attention *scratch, const uint16_t *values,
                     size_t positions, size_t n) {
    const size_t padded = sl_padded_rows(model->info.head_dim);
    const size_t stride = sl_padded_rows(model->info.context);
    for (size_t i = 0; i < n; i++)
        model->kernels->to_bf16(scratch->shares + i * stride, scratch->scores + i * stride,
                                positions);
    model->kernels->matmul_bf16(scratch->output, padded, values, value_stride(&model->info),
                                padded / SL_TILE_ROWS, positions, scratch->shares, stride, n);
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
    const size_t position = run->story->position + first;
    const size_t most = (position + n + 1) / 2 * 2;
    const bool is_compact = sl_cache_is_compact(model);
    float sums[SL_QUERIES];
    if (is_compact)
        scores_bf16(model, scratch, keys, position + n, queries, stride, n);
    else
        scores_f32(model, scratch, keys, position + n, queries, stride, n);
    for (size_t i = 0; i < n; i++)
        sums[i] = exponentials(model, scratch->scores + i * sl_padded_rows(info->context),
                               position + i + 1, most);
    if (is_compact)
        mix_bf16(model, scratch, values, most, n);
    else
        mix_f32(model, scratch, values, position + n, n);
    for (size_t i = 0; i < n; i++) {
        const float *row = scratch->output + i * sl_padded_rows(info->head_dim);
        float *out = output + i * info->heads * info->head_dim;
        const float inverse = 1 / sums[i];
        for (size_t d = 0; d < info->head_dim; d++) out[d] = row[d] * inverse;
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
            remember_bf16(model, scratch, keys, values, position, key, value);
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
