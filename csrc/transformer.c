/* transformer.c: the Llama 3 architecture (Llama Team 2024, arXiv:2407.21783), some tokens of some
 * stories at a time.
 *
 * A pass is a row of steps. The threads share out each step: the multiplications by tiles of the
 * matrix, attention by story and head, and the rest by tokens. */

#include <string.h>

#include "internal.h"

/* Where a pass is. */
typedef struct {
    sl_session *s;
    sl_team *team; /* NULL: this pass is done alone */
    const sl_run *runs;
    size_t run_count;
    size_t n; /* tokens; of the last steps, wanted ones */
    size_t layer;
    const float *norm;       /* the RMSNorm at hand */
    const sl_matrix *matrix; /* the matrix at hand, or whose input is being prepared */
    float *result;           /* [n][padded rows] */
} pass;

/* ---- Tokens ---------------------------------------------------------------------------------- */

static bool is_quantized(const sl_matrix *matrix) {
    return matrix->type != SL_F32;
}

/* The quantized input of a matrix. */
static sl_quantized quantized(const sl_session *s, const sl_matrix *matrix) {
    return (sl_quantized){
        .values = s->quantized_values,
        .scales = s->quantized_scales,
        .sums = s->quantized_sums,
        .groups = sl_groups(matrix),
        .group_size = matrix->group_size,
    };
}

/* Make token i's input[columns] ready for the matrix at hand. */
static void prepare(const pass *p, size_t i) {
    const sl_session *s = p->s;
    if (!is_quantized(p->matrix)) return;
    const sl_quantized q = quantized(s, p->matrix);
    s->model->kernels->quantize(&q, i, s->input + i * p->matrix->columns, p->matrix->columns);
}

static void prepare_tokens(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    for (size_t i = first; i < end; i++) prepare(context, i);
}

/* RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467). */
static void normalize(const pass *p, size_t i, const float *x) {
    const sl_info *info = &p->s->model->info;
    p->s->model->kernels->rmsnorm(p->s->input + i * info->dim, x, p->norm, info->dim,
                                  info->norm_eps);
    prepare(p, i);
}

/* The input of the first layer. */
static void embed_tokens(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const size_t dim = p->s->model->info.dim;
    size_t i = 0;
    for (size_t r = 0; r < p->run_count; r++)
        for (size_t t = 0; t < p->runs[r].count; t++, i++) {
            if (i < first || i >= end) continue;
            float *x = p->s->x + i * dim;
            sl_read_row(&p->s->model->embedding, (size_t)p->runs[r].ids[t], x);
            normalize(p, i, x);
        }
}

/* Add a layer's output to the residual stream, and normalize it for what comes next. */
static void add_tokens(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const size_t dim = p->s->model->info.dim, stride = sl_padded_rows(dim);
    for (size_t i = first; i < end; i++) {
        float *x = p->s->x + i * dim;
        for (size_t d = 0; d < dim; d++) x[d] += p->s->output[i * stride + d];
        if (p->norm) normalize(p, i, x);
    }
}

/* SwiGLU (Shazeer 2020, arXiv:2002.05202). */
static void gate_tokens(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const size_t hidden = p->s->model->info.hidden, stride = sl_padded_rows(2 * hidden);
    for (size_t i = first; i < end; i++) {
        const float *row = p->s->gate_up + i * stride;
        p->s->model->kernels->swiglu(p->s->input + i * hidden, row, row + hidden, hidden);
        prepare(p, i);
    }
}

/* Do a step for all tokens, whose result is the input of `matrix`. */
static void for_tokens(pass *p, sl_task step, const float *norm, const sl_matrix *matrix) {
    p->norm = norm;
    p->matrix = matrix;
    sl_share(p->team, p->n, 1, step, p);
}

/* ---- Matrices and attention ------------------------------------------------------------------ */

static void multiply_tiles(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    const sl_matrix *matrix = p->matrix;
    const sl_kernels *kernels = p->s->model->kernels;
    const size_t stride = sl_padded_rows(matrix->rows), columns = matrix->columns;
    float *y = p->result + first * SL_TILE_ROWS;
    const uint8_t *tiles = (const uint8_t *)matrix->tiles + first * sl_tile_bytes(matrix);
    const size_t count = end - first;
    if (!is_quantized(matrix)) {
        kernels->matmul_f32(y, stride, (const float *)(const void *)tiles, SL_TILE_ROWS * columns,
                            SL_TILE_ROWS, count, columns, p->s->input, columns, p->n);
        return;
    }
    const sl_quantized q = quantized(p->s, matrix);
    if (matrix->type == SL_Q8)
        kernels->matmul_q8(y, stride, tiles, count, &q, p->n);
    else
        kernels->matmul_q4(y, stride, tiles, count, &q, p->n);
}

/* result = the transposed matrix at hand times its input. */
static void multiply(pass *p, float *result) {
    enum { GRAIN = 4 }; /* tiles that kernels take together */
    p->result = result;
    const size_t tiles = sl_padded_rows(p->matrix->rows) / SL_TILE_ROWS;
    sl_share(p->team, tiles, GRAIN, multiply_tiles, p);
}

/* Whether between two turns of a layer so much is read, all weights and the stories' key-value
 * caches with the room that they have, that the layer's has left the processor's nearer caches. */
static bool is_cache_far(const pass *p) {
    enum { FAR = 24 << 20 };
    const sl_model *model = p->s->model;
    const size_t caches = p->run_count * (sl_keys_bytes(model) + sl_values_bytes(model));
    return model->info.file_bytes + caches >= FAR;
}

static void attend_heads(void *context, size_t first, size_t end, size_t thread) {
    const pass *p = context;
    const sl_session *s = p->s;
    const sl_info *info = &s->model->info;
    const size_t stride = sl_padded_rows(s->model->layers[p->layer].qkv.rows);
    const size_t width = (size_t)info->heads * info->head_dim, heads = info->kv_heads;
    size_t start = 0, token = 0; /* of a run */
    for (size_t r = 0; r < p->run_count; start += heads, token += p->runs[r++].count) {
        const sl_run *run = &p->runs[r];
        const size_t from = first > start ? first - start : 0;
        const size_t to = end < start + heads ? end - start : heads;
        if (end <= start || from >= to) continue;
        if (is_cache_far(p)) sl_bring_near(s->model, run->story, p->layer, from, to);
        for (size_t h = from; h < to; h++)
            sl_attend(s->model, run, p->layer, h, s->qkv + token * stride, stride,
                      s->input + token * width, &s->attention[thread]);
    }
}

/* ---- The pass -------------------------------------------------------------------------------- */

/* Move the tokens whose logits are wanted to the front of x; returns how many. */
static size_t gather_wanted(const pass *p) {
    const size_t dim = p->s->model->info.dim;
    size_t wanted = 0, end = 0;
    for (size_t r = 0; r < p->run_count; r++) {
        end += p->runs[r].count;
        for (size_t i = end - p->runs[r].wanted; i < end; i++, wanted++)
            memmove(p->s->x + wanted * dim, p->s->x + i * dim, dim * sizeof(float));
    }
    return wanted;
}

static void normalize_tokens(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const pass *p = context;
    for (size_t i = first; i < end; i++) normalize(p, i, p->s->x + i * p->s->model->info.dim);
}

static void do_pass(pass *p) {
    sl_session *s = p->s;
    const sl_model *model = s->model;
    for_tokens(p, embed_tokens, model->layers[0].attention_norm, &model->layers[0].qkv);
    for (p->layer = 0; p->layer < model->info.layers; p->layer++) {
        const sl_layer *layer = &model->layers[p->layer];
        const bool is_last = p->layer + 1 == model->info.layers;
        multiply(p, s->qkv);
        sl_share(p->team, p->run_count * model->info.kv_heads, 1, attend_heads, p);
        for_tokens(p, prepare_tokens, NULL, &layer->output);
        multiply(p, s->output);
        for_tokens(p, add_tokens, layer->feed_forward_norm, &layer->gate_up);
        multiply(p, s->gate_up);
        for_tokens(p, gate_tokens, NULL, &layer->down);
        multiply(p, s->output);
        if (is_last)
            for_tokens(p, add_tokens, NULL, NULL);
        else
            for_tokens(p, add_tokens, layer[1].attention_norm, &layer[1].qkv);
    }
    p->n = gather_wanted(p);
    if (p->n == 0) return;
    for_tokens(p, normalize_tokens, model->norm, &model->classifier);
    multiply(p, s->logits);
}

void sl_forward(sl_session *s, const sl_run *runs, size_t count) {
    pass p = {.s = s, .runs = runs, .run_count = count};
    for (size_t r = 0; r < count; r++) p.n += runs[r].count;
    sl_move_pass(s->model->move);
    sl_pace *pace = &s->pace[p.n > 1];
    /* While the weights are moved a processor is taken: what a team does then tells nothing. */
    const bool is_paced = s->team && !sl_move_is_under_way(s->model->move);
    if (is_paced && !sl_pace_begin(pace)) p.team = s->team;
    do_pass(&p);
    if (is_paced) sl_pace_end(pace);
    for (size_t r = 0; r < count; r++) runs[r].story->position += runs[r].count;
}

size_t sl_logits_stride(const sl_model *model) {
    return sl_padded_rows(model->info.vocab_size);
}
