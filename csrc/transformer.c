/* transformer.c: the Llama 3 architecture (Llama Team 2024, arXiv:2407.21783), a chunk of tokens of
 * one sequence at a time. */

#include <string.h>

#include "internal.h"

static int q8_weight(const sl_tile *tile, size_t lane, size_t column) {
    const size_t block = column / SL_TILE_COLUMNS, j = column % SL_TILE_COLUMNS;
    return tile->weights[(block * SL_TILE_ROWS + lane) * SL_TILE_COLUMNS + j] - 128;
}

static int q4_weight(const sl_tile *tile, size_t lane, size_t column) {
    const size_t half = column / SL_TILE_COLUMNS, j = column % SL_TILE_COLUMNS;
    const uint8_t byte = tile->weights[(half / 2 * SL_TILE_ROWS + lane) * SL_TILE_COLUMNS + j];
    return (half % 2 ? byte >> 4 : byte & 15) - 8;
}

/* Write row `row` of a matrix to x[columns]. */
static void read_row(const sl_matrix *matrix, size_t row, float *x) {
    const size_t tile = row / SL_TILE_ROWS, lane = row % SL_TILE_ROWS, columns = matrix->columns;
    if (matrix->type == SL_F32) {
        const float *w = (const float *)matrix->tiles + tile * SL_TILE_ROWS * columns + lane;
        for (size_t c = 0; c < columns; c++) x[c] = w[c * SL_TILE_ROWS];
        return;
    }
    const size_t group_size = matrix->group_size, groups = sl_groups(matrix);
    const bool is_q4 = matrix->type == SL_Q4;
    const size_t tile_bytes =
        is_q4 ? sl_q4_tile_bytes(groups, group_size) : sl_q8_tile_bytes(groups, group_size);
    const sl_tile t = sl_tile_at((const uint8_t *)matrix->tiles + tile * tile_bytes, groups);
    for (size_t c = 0; c < columns; c++) {
        const float scale = sl_from_bf16(t.scales[c / group_size * SL_TILE_ROWS + lane]);
        x[c] = scale * (float)(is_q4 ? q4_weight(&t, lane, c) : q8_weight(&t, lane, c));
    }
}

/* y[n][padded rows] = x[n][columns] times the transposed matrix. */
static void multiply(sl_session *s, const sl_matrix *matrix, float *y, const float *x, size_t n) {
    const sl_kernels *kernels = s->model->kernels;
    const size_t rows = sl_padded_rows(matrix->rows), columns = matrix->columns;
    const size_t tile_count = rows / SL_TILE_ROWS;
    if (matrix->type == SL_F32) {
        kernels->matmul_f32(y, rows, matrix->tiles, tile_count, columns, x, columns, n);
        return;
    }
    const sl_quantized q = {
        .values = s->quantized_values,
        .scales = s->quantized_scales,
        .sums = s->quantized_sums,
        .groups = sl_groups(matrix),
        .group_size = matrix->group_size,
    };
    for (size_t i = 0; i < n; i++) kernels->quantize(&q, i, x + i * columns, columns);
    if (matrix->type == SL_Q8)
        kernels->matmul_q8(y, rows, matrix->tiles, tile_count, &q, n);
    else
        kernels->matmul_q4(y, rows, matrix->tiles, tile_count, &q, n);
}

/* input[n][dim] = RMSNorm(x[n][dim]) (Zhang & Sennrich 2019, arXiv:1910.07467). */
static void normalize(sl_session *s, const float *x, const float *weight, size_t n) {
    const sl_info *info = &s->model->info;
    for (size_t i = 0; i < n; i++)
        s->model->kernels->rmsnorm(s->input + i * info->dim, x + i * info->dim, weight, info->dim,
                                   info->norm_eps);
}

/* x += output, whose rows are padded. */
static void add_output(sl_session *s, size_t n) {
    const size_t dim = s->model->info.dim, stride = sl_padded_rows(dim);
    for (size_t i = 0; i < n; i++)
        for (size_t d = 0; d < dim; d++) s->x[i * dim + d] += s->output[i * stride + d];
}

/* The cache of one key or value head: its first key in f32 tiles, its first value. */
static float *cached_keys(const sl_session *s, size_t layer, size_t head) {
    const sl_info *info = &s->model->info;
    const size_t head_floats = sl_padded_rows(info->context) * info->head_dim;
    return s->keys + (layer * info->kv_heads + head) * head_floats;
}

static float *cached_values(const sl_session *s, size_t layer, size_t head) {
    const sl_info *info = &s->model->info;
    const size_t head_floats = (size_t)info->context * info->head_dim;
    return s->values + (layer * info->kv_heads + head) * head_floats;
}

/* Turn the queries and keys of one token and put its keys and values into the cache. */
static void remember(sl_session *s, size_t layer, size_t position, float *qkv) {
    const sl_info *info = &s->model->info;
    const size_t head_dim = info->head_dim;
    float *key = qkv + info->heads * head_dim;
    const float *value = key + info->kv_heads * head_dim;
    const float *table = s->model->rotary + position * head_dim;
    s->model->kernels->rotate(qkv, info->heads + info->kv_heads, head_dim, table);
    const size_t tile = position / SL_TILE_ROWS, lane = position % SL_TILE_ROWS;
    for (size_t h = 0; h < info->kv_heads; h++, key += head_dim, value += head_dim) {
        float *keys = cached_keys(s, layer, h) + tile * SL_TILE_ROWS * head_dim + lane;
        for (size_t d = 0; d < head_dim; d++) keys[d * SL_TILE_ROWS] = key[d];
        memcpy(cached_values(s, layer, h) + position * head_dim, value, head_dim * sizeof *value);
    }
}

/* Causal grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245). */
static void attend(sl_session *s, size_t layer, size_t n) {
    const sl_info *info = &s->model->info;
    const size_t head_dim = info->head_dim, sharing = info->heads / info->kv_heads;
    const size_t width = info->heads * head_dim;
    const size_t stride = sl_padded_rows(s->model->layers[layer].qkv.rows);
    for (size_t i = 0; i < n; i++) remember(s, layer, s->position + i, s->qkv + i * stride);
    for (size_t h = 0; h < info->heads; h++) {
        const float *keys = cached_keys(s, layer, h / sharing);
        const float *values = cached_values(s, layer, h / sharing);
        for (size_t i = 0; i < n; i++)
            s->model->kernels->attention(s->input + i * width + h * head_dim,
                                         s->qkv + i * stride + h * head_dim, keys, values,
                                         s->position + i + 1, head_dim, s->scores);
    }
}

/* SwiGLU (Shazeer 2020, arXiv:2002.05202). */
static void gate(sl_session *s, size_t n) {
    const size_t hidden = s->model->info.hidden, stride = sl_padded_rows(2 * hidden);
    for (size_t i = 0; i < n; i++) {
        const float *row = s->gate_up + i * stride;
        s->model->kernels->swiglu(s->input + i * hidden, row, row + hidden, hidden);
    }
}

void sl_forward(sl_session *s, const int32_t *ids, size_t n, size_t wanted) {
    const sl_model *model = s->model;
    const size_t dim = model->info.dim;
    for (size_t i = 0; i < n; i++) read_row(&model->embedding, (size_t)ids[i], s->x + i * dim);
    for (size_t l = 0; l < model->info.layers; l++) {
        const sl_layer *layer = &model->layers[l];
        normalize(s, s->x, layer->attention_norm, n);
        multiply(s, &layer->qkv, s->qkv, s->input, n);
        attend(s, l, n);
        multiply(s, &layer->output, s->output, s->input, n);
        add_output(s, n);
        normalize(s, s->x, layer->feed_forward_norm, n);
        multiply(s, &layer->gate_up, s->gate_up, s->input, n);
        gate(s, n);
        multiply(s, &layer->down, s->output, s->input, n);
        add_output(s, n);
    }
    s->position += n;
    normalize(s, s->x + (n - wanted) * dim, model->norm, wanted);
    multiply(s, &model->classifier, s->logits, s->input, wanted);
}

size_t sl_logits_stride(const sl_model *model) {
    return sl_padded_rows(model->info.vocab_size);
}
