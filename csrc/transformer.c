/* transformer.c: the Llama 3 architecture (Llama Team 2024, arXiv:2407.21783).
 *
 * x is the residual stream of a token, and W a matrix of the weight file:
 *
 *     x = embedding[id]
 *     for each layer:
 *         q, k, v = W_qkv · RMSNorm(x)
 *         x = x + W_output · attention(rotary(q), rotary(k), v)
 *         gate, up = W_gate_up · RMSNorm(x)
 *         x = x + W_down · (SiLU(gate) * up)
 *     logits = W_classifier · RMSNorm(x)
 *
 * sl_transformer at the end of the file has the same steps; read it first. Each step is a parallel
 * loop: over the tiles of a matrix, over sequences and heads in attention, over tokens in the rest.
 * To have fewer loops, a loop over tokens also prepares the input of the next matrix: it applies
 * RMSNorm, then quantizes. */

#include "transformer.h"

#include <string.h>

/* A forward pass and its current step. */
typedef struct {
    sl_session *s;
    sl_thread_pool *pool; /* NULL: one thread */
    const sl_segment *segments;
    size_t segment_count;
    size_t n;                /* tokens; after the last layer, those that need logits */
    size_t layer;            /* index of the layer */
    const float *norm;       /* weights of the RMSNorm that the step applies; NULL: none */
    const sl_matrix *matrix; /* the matrix that the step multiplies, or whose input it prepares */
    float *result;           /* [n][padded rows] of the step's product */
} pass;

/* ---- Loops over tokens ----------------------------------------------------------------------- */

/* Return the buffers for the quantized input of a matrix. */
static sl_quantized quantized_input(const sl_session *s, const sl_matrix *matrix) {
    return (sl_quantized){
        .values = s->quantized_values,
        .scales = s->quantized_scales,
        .sums = s->quantized_sums,
        .groups = sl_groups(matrix),
        .group_size = matrix->group_size,
    };
}

/* Quantize token i's input[columns] if p->matrix is quantized. */
static void quantize(const pass *p, size_t i) {
    const sl_session *s = p->s;
    if (!sl_is_quantized(p->matrix->type)) return;
    const sl_quantized q = quantized_input(s, p->matrix);
    s->model->kernels->quantize(&q, i, s->input + i * p->matrix->columns, p->matrix->columns);
}

static void quantize_tokens(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    for (size_t i = first; i < end; i++) quantize(context, i);
}

/* input = RMSNorm(x) for token i (Zhang & Sennrich 2019, arXiv:1910.07467) */
static void normalize(const pass *p, size_t i) {
    const sl_session *s = p->s;
    const sl_info *info = &s->model->info;
    s->model->kernels->rmsnorm(s->input + i * info->dim, s->x + i * info->dim, p->norm, info->dim,
                               info->norm_eps);
    quantize(p, i);
}

static void normalize_tokens(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    for (size_t i = first; i < end; i++) normalize(context, i);
}

/* x = embedding[ids], input = RMSNorm(x) */
static void embed_tokens(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const sl_model *model = p->s->model;
    size_t i = 0;
    for (size_t r = 0; r < p->segment_count; r++)
        for (size_t t = 0; t < p->segments[r].count; t++, i++) {
            if (i < first || i >= end) continue;
            sl_read_row(&model->embedding, (size_t)p->segments[r].ids[t],
                        p->s->x + i * model->info.dim);
            normalize(p, i);
        }
}

/* x = x + output, input = RMSNorm(x) */
static void add_residual(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const size_t dim = p->s->model->info.dim, stride = sl_product_stride(dim);
    for (size_t i = first; i < end; i++) {
        float *x = p->s->x + i * dim;
        for (size_t d = 0; d < dim; d++) x[d] += p->s->output[i * stride + d];
        if (p->norm) normalize(p, i);
    }
}

/* input = SiLU(gate) * up: the SwiGLU activation (Shazeer 2020, arXiv:2002.05202) */
static void swiglu_tokens(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const size_t hidden = p->s->model->info.hidden, stride = sl_product_stride(2 * hidden);
    for (size_t i = first; i < end; i++) {
        const float *gate = p->s->gate_up + i * stride, *up = gate + hidden;
        p->s->model->kernels->swiglu(p->s->input + i * hidden, gate, up, hidden);
        quantize(p, i);
    }
}

/* Run a step on all tokens. It prepares the input of the matrix `next`: it applies RMSNorm unless
 * norm is NULL, then quantizes unless next is NULL or f32. */
static void for_tokens(pass *p, sl_task step, const float *norm, const sl_matrix *next) {
    p->norm = norm;
    p->matrix = next;
    sl_parallel_for(p->pool, p->n, 1, step, p);
}

/* ---- Products of matrices -------------------------------------------------------------------- */

static void multiply_tiles(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const sl_matrix *matrix = p->matrix;
    sl_quantized q = {0};
    if (sl_is_quantized(matrix->type)) q = quantized_input(p->s, matrix);
    sl_multiply_tiles(p->s->model->kernels, matrix, first, end - first, p->s->input, &q, p->n,
                      p->result + first * SL_TILE_ROWS, sl_product_stride(matrix->rows));
}

/* result[n][rows] = input[n][columns] times the transposed matrix, for all tokens */
static void multiply(pass *p, const sl_matrix *matrix, float *result) {
    enum { GRAIN = 4 }; /* tiles that the kernels process together */
    p->matrix = matrix;
    p->result = result;
    sl_parallel_for(p->pool, sl_padded_rows(matrix->rows) / SL_TILE_ROWS, GRAIN, multiply_tiles, p);
}

/* ---- Attention ------------------------------------------------------------------------------- */

/* Return whether a layer's keys and values have left the processor's caches by the next pass. Until
 * then, a pass reads all weights and the key-value caches of all its sequences. */
static bool is_cache_evicted(const pass *p) {
    enum { EVICTING_BYTES = 24 << 20 };
    const sl_model *model = p->s->model;
    const sl_kv_cache *cache = &p->s->sequences[0].cache;
    const uint64_t bytes = (uint64_t)sl_keys_bytes(model, cache) + sl_values_bytes(model, cache);
    return model->info.file_bytes + p->segment_count * bytes >= EVICTING_BYTES;
}

/* Compute attention for key-value heads first … end - 1 of a segment. Its first token is number
 * `token` of the pass. */
static void attend_segment(const pass *p, const sl_segment *segment, size_t token, size_t first,
                           size_t end, const sl_attention_scratch *scratch) {
    const sl_session *s = p->s;
    const sl_info *info = &s->model->info;
    const sl_kv_cache *cache = &segment->sequence->cache;
    const size_t qkv_stride = sl_product_stride(s->model->layers[p->layer].qkv.rows);
    float *qkv = s->qkv + token * qkv_stride;
    float *output = s->input + token * info->heads * info->head_dim;
    if (is_cache_evicted(p)) sl_prefetch_cache(s->model, cache, p->layer, first, end);
    sl_attend(s->model, cache, p->layer, first, end, segment->count, s->rotary, qkv, qkv_stride,
              output, scratch);
}

/* Process items first … end - 1 of the loop over segments and key-value heads: item
 * r * kv_heads + h is head h of segment r. */
static void attend_heads(void *context, size_t first, size_t end, size_t thread) {
    const pass *p = context;
    const size_t heads = p->s->model->info.kv_heads;
    size_t start = 0, token = 0; /* the first item and the first token of segment r */
    for (size_t r = 0; r < p->segment_count; r++) {
        const size_t from = first > start ? first - start : 0;
        const size_t to = end < start + heads ? end - start : heads;
        if (start < end && from < to)
            attend_segment(p, &p->segments[r], token, from, to, &p->s->attention[thread]);
        start += heads;
        token += p->segments[r].count;
    }
}

/* ---- The forward pass ------------------------------------------------------------------------ */

/* Move the tokens that need logits to the front of x. Returns how many there are. */
static size_t gather_last(const pass *p) {
    const size_t dim = p->s->model->info.dim;
    size_t gathered = 0, end = 0;
    for (size_t r = 0; r < p->segment_count; r++) {
        end += p->segments[r].count;
        for (size_t i = end - p->segments[r].logit_count; i < end; i++, gathered++)
            memmove(p->s->x + gathered * dim, p->s->x + i * dim, dim * sizeof(float));
    }
    return gathered;
}

void sl_transformer(sl_session *s, sl_thread_pool *pool, const sl_segment *segments, size_t count) {
    pass p = {.s = s, .pool = pool, .segments = segments, .segment_count = count};
    const sl_model *model = s->model;
    const sl_layer *layers = model->layers;
    for (size_t r = 0; r < count; r++) p.n += segments[r].count;

    /* Token embedding. RMSNorm before the first layer's attention. */
    for_tokens(&p, embed_tokens, layers[0].attention_norm, &layers[0].qkv);

    for (p.layer = 0; p.layer < model->info.layers; p.layer++) {
        const sl_layer *layer = &layers[p.layer];
        const bool is_last = p.layer + 1 == model->info.layers;

        /* Attention 1: queries, keys and values of all heads. */
        multiply(&p, &layer->qkv, s->qkv);

        /* Attention 2: rotary position embedding, key-value cache, grouped-query attention. */
        sl_parallel_for(p.pool, count * model->info.kv_heads, 1, attend_heads, &p);

        /* Attention 3: output projection. */
        for_tokens(&p, quantize_tokens, NULL, &layer->output);
        multiply(&p, &layer->output, s->output);

        /* Residual connection. RMSNorm before the feed-forward network. */
        for_tokens(&p, add_residual, layer->feed_forward_norm, &layer->gate_up);

        /* Feed-forward 1: gate and up projections. */
        multiply(&p, &layer->gate_up, s->gate_up);

        /* Feed-forward 2: SwiGLU. */
        for_tokens(&p, swiglu_tokens, NULL, &layer->down);

        /* Feed-forward 3: down projection. */
        multiply(&p, &layer->down, s->output);

        /* Residual connection. RMSNorm before the next layer's attention. */
        if (is_last)
            for_tokens(&p, add_residual, NULL, NULL);
        else
            for_tokens(&p, add_residual, layer[1].attention_norm, &layer[1].qkv);
    }
    for (size_t r = 0; r < count; r++) segments[r].sequence->cache.position += segments[r].count;

    /* Final RMSNorm and classifier, only for the tokens that need logits. */
    p.n = gather_last(&p);
    if (p.n == 0) return;
    for_tokens(&p, normalize_tokens, model->norm, &model->classifier);
    multiply(&p, &model->classifier, s->logits);
}
