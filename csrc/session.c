/* session.c: the memory of a session. */

#include <inttypes.h>
#include <stdlib.h>

#include "internal.h"

enum { ALIGNMENT = 64, HUGE_FROM = 1 << 22 };

/* Carves arrays out of one block of memory. A first pass, with base NULL, finds the size. */
typedef struct {
    uint8_t *base;
    size_t used;
    bool overflow;
} arena;

static void *carve(arena *a, size_t count, size_t each, size_t size) {
    const size_t most = SIZE_MAX / 2 - a->used;
    if (a->overflow || (each && count > most / each) || count * each > most / size) {
        a->overflow = true;
        return NULL;
    }
    void *part = a->base ? a->base + a->used : NULL;
    a->used += (count * each * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return part;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* Floats of the widest input of a matrix. */
static size_t widest_input(const sl_info *info) {
    return larger(larger(info->dim, info->hidden), (size_t)info->heads * info->head_dim);
}

static void lay_out_story(sl_story *story, const sl_model *model, arena *a) {
    const sl_info *info = &model->info;
    const sl_story laid_out = {
        .stop = SL_IDLE,
        .keys = carve(a, 1, sl_keys_bytes(model), 1),
        .values = carve(a, 1, sl_values_bytes(model), 1),
        .ids = carve(a, 1, info->context, sizeof *story->ids),
        .sampler.candidates = carve(a, 1, info->vocab_size, sizeof *story->sampler.candidates),
        .sampler.indices = carve(a, 1, info->vocab_size + SL_TILE_ROWS, sizeof(int32_t)),
        .sampler.marks = carve(a, 1, info->vocab_size, 1),
        .text = carve(a, 1, sl_decoder_bound(&model->tokenizer), 1),
    };
    if (story) *story = laid_out;
}

static void lay_out_attention(sl_attention *scratch, const sl_model *model, arena *a) {
    const size_t context = sl_padded_rows(model->info.context);
    const size_t head_dim = sl_padded_rows(model->info.head_dim);
    const sl_attention laid_out = {
        .scores = carve(a, SL_QUERIES, context, sizeof *scratch->scores),
        .output = carve(a, SL_QUERIES, head_dim, sizeof *scratch->output),
        .rounded = carve(a, 1, head_dim, sizeof *scratch->rounded),
    };
    if (scratch) *scratch = laid_out;
}

/* Quantized activations: room for the matrix that needs most. */
static void lay_out_quantized(sl_session *s, arena *a) {
    const sl_info *info = &s->model->info;
    const size_t least = info->embedding_group_size && info->embedding_group_size < info->group_size
                             ? info->embedding_group_size
                             : info->group_size;
    const size_t most = larger(info->embedding_group_size, info->group_size);
    const size_t columns = widest_input(info) + most, groups = least ? columns / least + 1 : 0;
    s->quantized_values = carve(a, s->rows, least ? columns : 0, sizeof *s->quantized_values);
    s->quantized_scales = carve(a, s->rows, groups, sizeof *s->quantized_scales);
    s->quantized_sums = carve(a, s->rows, groups, sizeof *s->quantized_sums);
}

static void lay_out(sl_session *s, arena *a) {
    const sl_info *info = &s->model->info;
    const size_t head_rows = (size_t)info->heads + 2 * (size_t)info->kv_heads;
    const size_t qkv = sl_padded_rows(head_rows * info->head_dim);
    s->stories = carve(a, 1, s->story_count, sizeof *s->stories);
    s->attention = carve(a, 1, s->threads, sizeof *s->attention);
    s->x = carve(a, s->rows, info->dim, sizeof *s->x);
    s->input = carve(a, s->rows, widest_input(info), sizeof *s->input);
    s->qkv = carve(a, s->rows, qkv, sizeof *s->qkv);
    s->gate_up = carve(a, s->rows, sl_padded_rows(2 * (size_t)info->hidden), sizeof *s->gate_up);
    s->output = carve(a, s->rows, sl_padded_rows(info->dim), sizeof *s->output);
    s->logits = carve(a, s->rows, sl_padded_rows(info->vocab_size), sizeof *s->logits);
    lay_out_quantized(s, a);
    for (size_t i = 0; i < s->threads; i++)
        lay_out_attention(a->base ? &s->attention[i] : NULL, s->model, a);
    for (size_t i = 0; i < s->story_count; i++)
        lay_out_story(a->base ? &s->stories[i] : NULL, s->model, a);
}

/* Threads that serve best, by what they share out: a step takes a microsecond to start, in which
 * one of them reads some 50 KB of weights. */
static size_t best_threads(const sl_model *model) {
    enum { LEAST_BYTES = 1 << 20, MOST = 8 };
    const size_t processors = sl_processors(), most = processors < MOST ? processors : MOST;
    return model->info.file_bytes < LEAST_BYTES ? 1 : most;
}

static int allocate(sl_session *s) {
    arena a = {0};
    lay_out(s, &a);
    s->memory_bytes = a.used;
    if (!a.overflow) s->memory = sl_pages_new(a.used, a.used >= HUGE_FROM);
    if (!s->memory)
        return sl_fail(SL_ERROR_MEMORY,
                       "not enough memory for a session of %zu stories with a context of %" PRIu32
                       " tokens",
                       s->story_count, s->model->info.context);
    a = (arena){.base = s->memory};
    lay_out(s, &a);
    if (s->threads > 1 && !(s->team = sl_team_new(s->threads)))
        return sl_fail(SL_ERROR_MEMORY, "%zu threads cannot be started: use fewer", s->threads);
    s->pace[0].is_alone = true; /* a prompt, which is often the only one, begins with the team */
    return SL_OK;
}

static int check_session_options(const sl_session_options *options) {
    if (options->threads > SL_MOST_THREADS)
        return sl_fail(SL_ERROR_ARGUMENT, "threads is %" PRIu32 " and must be 0 (automatic) to %d",
                       options->threads, SL_MOST_THREADS);
    if (options->stories < 1 || options->stories > SL_MOST_STORIES)
        return sl_fail(SL_ERROR_ARGUMENT, "stories is %" PRIu32 " and must be 1 to %d",
                       options->stories, SL_MOST_STORIES);
    return SL_OK;
}

int sl_session_new(sl_session **session, const sl_model *model, const sl_session_options *options) {
    static const sl_session_options defaults = SL_SESSION_DEFAULTS;
    *session = NULL;
    if (!options) options = &defaults;
    int status = check_session_options(options);
    if (status) return status;
    sl_session *s = calloc(1, sizeof *s);
    if (!s) return sl_fail(SL_ERROR_MEMORY, "not enough memory for a session");
    s->model = model;
    s->threads = options->threads ? options->threads : best_threads(model);
    s->story_count = options->stories;
    s->rows = larger(SL_CHUNK, s->story_count);
    if ((status = allocate(s)))
        sl_session_free(s);
    else
        *session = s;
    return status;
}

void sl_session_free(sl_session *session) {
    if (!session) return;
    sl_team_free(session->team);
    sl_pages_free(session->memory, session->memory_bytes);
    free(session);
}
