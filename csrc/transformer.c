/* transformer.c: the Llama 3 architecture (Llama Team 2024, arXiv:2407.21783).
 *
 * Read sl_transformer at the end first: it lists the steps of a forward pass. Each step is a
 * parallel loop: over the tiles of a matrix, over sequences and heads in attention, over tokens in
 * the rest. To have fewer loops, a step that works on tokens also prepares the input of the matrix
 * that comes next: it applies RMSNorm and quantizes. */

#include "transformer.h"

#include <string.h>

/* A forward pass and where it is. */
typedef struct {
    sl_session *s;
    sl_thread_pool *pool; /* NULL: one thread */
    const sl_segment *segments;
    size_t segment_count;
    size_t n;                /* tokens; after the last layer, those that need logits */
    size_t layer;            /* the current layer */
    const float *norm;       /* the weights of RMSNorm in the current step; NULL: none */
    const sl_matrix *matrix; /* the matrix that the current step prepares or multiplies */
    float *result;           /* [n][padded rows] of the current product */
} pass;

/* ---- Steps on tokens ------------------------------------------------------------------------- */

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

/* Quantize token i's input[columns] if the next matrix is quantized. */
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

/* input = RMSNorm(x) (Zhang & Sennrich 2019, arXiv:1910.07467) */
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

/* x = the rows of the embedding */
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

/* x = x + output */
static void add_residual(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const size_t dim = p->s->model->info.dim, stride = sl_padded_rows(dim);
    for (size_t i = first; i < end; i++) {
        float *x = p->s->x + i * dim;
        for (size_t d = 0; d < dim; d++) x[d] += p->s->output[i * stride + d];
        if (p->norm) normalize(p, i);
    }
}

/* input = SiLU(gate) * up, the SwiGLU activation (Shazeer 2020, arXiv:2002.05202) */
static void swiglu_tokens(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const size_t hidden = p->s->model->info.hidden, stride = sl_padded_rows(2 * hidden);
    for (size_t i = first; i < end; i++) {
        const float *gate = p->s->gate_up + i * stride, *up = gate + hidden;
        p->s->model->kernels->swiglu(p->s->input + i * hidden, gate, up, hidden);
        quantize(p, i);
    }
}

/* Run a step on all tokens that prepares the input of `next`: with RMSNorm unless norm is NULL. */
static void for_tokens(pass *p, sl_task step, const float *norm, const sl_matrix *next) {
    p->norm = norm;
    p->matrix = next;
    sl_parallel_for(p->pool, p->n, 1, step, p);
}

/* ---- Products and attention ------------------------------------------------------------------ */

static void multiply_tiles(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const sl_matrix *matrix = p->matrix;
    sl_quantized q = {0};
    if (sl_is_quantized(matrix->type)) q = quantized_input(p->s, matrix);
    sl_multiply_tiles(p->s->model->kernels, matrix, first, end - first, p->s->input, &q, p->n,
                      p->result + first * SL_TILE_ROWS, sl_padded_rows(matrix->rows));
}

/* result = input times the transposed matrix, for all tokens */
static void multiply(pass *p, const sl_matrix *matrix, float *result) {
    enum { GRAIN = 4 }; /* tiles that the kernels process together */
    p->matrix = matrix;
    p->result = result;
    sl_parallel_for(p->pool, sl_padded_rows(matrix->rows) / SL_TILE_ROWS, GRAIN, multiply_tiles, p);
}

/* Return whether a layer's part of the key-value cache has left the processor's caches when its
 * turn comes again. In between, the pass reads all weights and the caches of all its sequences. */
static bool is_cache_evicted(const pass *p) {
    enum { EVICTING_BYTES = 24 << 20 };
    const sl_model *model = p->s->model;
    const uint64_t cache = (uint64_t)sl_keys_bytes(model) + sl_values_bytes(model);
    return model->info.file_bytes + p->segment_count * cache >= EVICTING_BYTES;
}

/* An item of this loop is a key-value head of a segment. */
static void attend_heads(void *context, size_t first, size_t end, size_t thread) {
    const pass *p = context;
    const sl_session *s = p->s;
    const sl_info *info = &s->model->info;
    const size_t stride = sl_padded_rows(s->model->layers[p->layer].qkv.rows);
    const size_t width = (size_t)info->heads * info->head_dim, heads = info->kv_heads;
    size_t start = 0, token = 0; /* the first item and the first token of segment r */
    for (size_t r = 0; r < p->segment_count; start += heads, token += p->segments[r++].count) {
        const sl_kv_cache *cache = &p->segments[r].sequence->cache;
        const size_t from = first > start ? first - start : 0;
        const size_t to = end < start + heads ? end - start : heads;
        if (end <= start || from >= to) continue;
        if (is_cache_evicted(p)) sl_prefetch_cache(s->model, cache, p->layer, from, to);
        for (size_t h = from; h < to; h++)
            sl_attend(s->model, cache, p->layer, h, p->segments[r].count, s->rotary,
                      s->qkv + token * stride, stride, s->input + token * width,
                      &s->attention[thread]);
    }
}

/* ---- The pass -------------------------------------------------------------------------------- */

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
    pass pass_ = {.s = s, .pool = pool, .segments = segments, .segment_count = count};
    pass *p = &pass_;
    const sl_model *model = s->model;
    const sl_layer *layers = model->layers;
    for (size_t r = 0; r < count; r++) p->n += segments[r].count;

    /* Embedding. RMSNorm before the first layer's attention. */
    for_tokens(p, embed_tokens, layers[0].attention_norm, &layers[0].qkv);

    for (p->layer = 0; p->layer < model->info.layers; p->layer++) {
        const sl_layer *layer = &layers[p->layer];
        const bool is_last = p->layer + 1 == model->info.layers;

        /* Queries, keys and values of all heads. */
        multiply(p, &layer->qkv, s->qkv);

        /* Rotary position embedding, key-value cache, grouped-query attention. */
        sl_parallel_for(p->pool, count * model->info.kv_heads, 1, attend_heads, p);

        /* Output projection. */
        for_tokens(p, quantize_tokens, NULL, &layer->output);
        multiply(p, &layer->output, s->output);

        /* Residual connection. RMSNorm before the feed-forward network. */
        for_tokens(p, add_residual, layer->feed_forward_norm, &layer->gate_up);

        /* Feed-forward network: SwiGLU, then down to the width of the residual stream. */
        multiply(p, &layer->gate_up, s->gate_up);
        for_tokens(p, swiglu_tokens, NULL, &layer->down);
        multiply(p, &layer->down, s->output);

        /* Residual connection. RMSNorm before the next layer's attention. */
        if (is_last)
            for_tokens(p, add_residual, NULL, NULL);
        else
            for_tokens(p, add_residual, layer[1].attention_norm, &layer[1].qkv);
    }
    for (size_t r = 0; r < count; r++) segments[r].sequence->cache.position += segments[r].count;

    /* Final RMSNorm and classifier, only for the tokens that need logits. */
    p->n = gather_last(p);
    if (p->n == 0) return;
    for_tokens(p, normalize_tokens, model->norm, &model->classifier);
    multiply(p, &model->classifier, s->logits);
}
