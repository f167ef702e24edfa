/* engine.c: sessions, and what a caller does with one. */

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* ---- Sessions -------------------------------------------------------------------------------- */

enum { ALIGNMENT = 64 };

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

/* Groups of an input to a quantized matrix; none where nothing is quantized. */
static size_t count_groups(size_t columns, size_t group_size) {
    return group_size ? (columns + group_size - 1) / group_size : 0;
}

static void lay_out(sl_session *s, arena *a) {
    const sl_model *model = s->model;
    const sl_info *info = &model->info;
    const size_t heads = (size_t)info->layers * info->kv_heads, context = info->context;
    const size_t attention = (size_t)info->heads * info->head_dim;
    const size_t widest = larger(larger(info->dim, info->hidden), attention);
    const size_t qkv = attention + 2 * (size_t)info->kv_heads * info->head_dim;
    const size_t groups = larger(count_groups(widest, info->group_size),
                                 count_groups(info->dim, info->embedding_group_size));
    /* The last group of an input may reach beyond it. */
    const size_t rounded = widest + larger(info->group_size, info->embedding_group_size);

    s->keys = carve(a, heads, sl_padded_rows(context) * info->head_dim, sizeof *s->keys);
    s->values = carve(a, heads, context * info->head_dim, sizeof *s->values);
    s->x = carve(a, SL_CHUNK, info->dim, sizeof *s->x);
    s->input = carve(a, SL_CHUNK, widest, sizeof *s->input);
    s->qkv = carve(a, SL_CHUNK, sl_padded_rows(qkv), sizeof *s->qkv);
    s->gate_up = carve(a, SL_CHUNK, sl_padded_rows(2 * (size_t)info->hidden), sizeof *s->gate_up);
    s->output = carve(a, SL_CHUNK, sl_padded_rows(info->dim), sizeof *s->output);
    s->logits = carve(a, SL_CHUNK, sl_padded_rows(info->vocab_size), sizeof *s->logits);
    s->quantized_values = carve(a, SL_CHUNK, groups ? rounded : 0, sizeof *s->quantized_values);
    s->quantized_scales = carve(a, SL_CHUNK, groups, sizeof *s->quantized_scales);
    s->quantized_sums = carve(a, SL_CHUNK, groups, sizeof *s->quantized_sums);
    s->scores = carve(a, 1, sl_padded_rows(context), sizeof *s->scores);
    s->ids = carve(a, 1, context, sizeof *s->ids);
    s->candidates = carve(a, 1, info->vocab_size, sizeof *s->candidates);
    s->marks = carve(a, 1, info->vocab_size, sizeof *s->marks);
    s->text = carve(a, 1, sl_decoder_bound(&model->tokenizer), sizeof *s->text);
}

int sl_session_new(sl_session **session, const sl_model *model) {
    sl_session *s = *session = calloc(1, sizeof *s);
    if (!s) return sl_fail(SL_ERROR_MEMORY, "not enough memory for a session");
    s->model = model;
    arena a = {0};
    lay_out(s, &a);
    /* calloc's pages take up memory only once they are used. */
    if (!a.overflow) s->memory = calloc(1, a.used + ALIGNMENT);
    if (!s->memory) {
        sl_session_free(s);
        *session = NULL;
        return sl_fail(SL_ERROR_MEMORY,
                       "not enough memory for a session with a context of %" PRIu32 " tokens",
                       model->info.context);
    }
    const uintptr_t start = (uintptr_t)s->memory;
    a = (arena){.base = (uint8_t *)s->memory + (-start & (ALIGNMENT - 1))};
    lay_out(s, &a);
    return SL_OK;
}

void sl_session_free(sl_session *session) {
    if (!session) return;
    free(session->memory);
    free(session);
}

/* ---- Evaluating ------------------------------------------------------------------------------ */

static int check_ids(const sl_model *model, const int32_t *ids, size_t count) {
    const uint32_t vocab_size = model->info.vocab_size;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= vocab_size)
            return sl_fail(SL_ERROR_ARGUMENT, "token id %" PRId32 " is not in 0 … %" PRIu32, ids[i],
                           vocab_size - 1);
    return SL_OK;
}

/* Whether every number is finite: no exponent of ones. */
static int check_finite(const float *x, size_t count) {
    uint32_t found = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        found |= (bits & 0x7f800000) == 0x7f800000;
    }
    if (found)
        return sl_fail(
            SL_ERROR_NUMBER,
            "the model's output is not finite: its weights are damaged, export it again");
    return SL_OK;
}

static void rewind_session(sl_session *s) {
    s->position = 0;
    s->is_started = false;
    s->has_logits = false;
}

/* Called with the logits after ids[first] … ids[first + n - 1], in rows of the session's stride. */
typedef void (*use_logits)(const sl_session *s, const int32_t *ids, size_t first, size_t n,
                           void *data);

/* Put ids[count] through the model from the start of the context, and use all of their logits. */
static int evaluate(sl_session *s, const int32_t *ids, size_t count, use_logits use, void *data) {
    const size_t stride = sl_logits_stride(s->model);
    rewind_session(s);
    for (size_t first = 0; first < count; first += SL_CHUNK) {
        const size_t n = count - first < SL_CHUNK ? count - first : SL_CHUNK;
        sl_forward(s, ids + first, n, n);
        const int status = check_finite(s->logits, n * stride);
        if (status) return status;
        use(s, ids, first, n, data);
    }
    return SL_OK;
}

static void copy_logits(const sl_session *s, const int32_t *ids, size_t first, size_t n,
                        void *data) {
    (void)ids;
    const size_t size = s->model->info.vocab_size, stride = sl_logits_stride(s->model);
    for (size_t i = 0; i < n; i++)
        memcpy((float *)data + (first + i) * size, s->logits + i * stride, size * sizeof(float));
}

int sl_logits(sl_session *s, const int32_t *ids, size_t count, float *logits) {
    const uint32_t context = s->model->info.context;
    if (count < 1 || count > context)
        return sl_fail(SL_ERROR_ARGUMENT, "there are %zu tokens and must be 1 to %" PRIu32, count,
                       context);
    const int status = check_ids(s->model, ids, count);
    return status ? status : evaluate(s, ids, count, copy_logits, logits);
}

/* ln softmax(logits)[id], the sum taken relative to the largest. */
static double log_probability(const float *logits, size_t size, int32_t id) {
    float largest = logits[0];
    for (size_t i = 1; i < size; i++) largest = logits[i] > largest ? logits[i] : largest;
    double sum = 0;
    for (size_t i = 0; i < size; i++) sum += (double)expf(logits[i] - largest);
    return (double)logits[id] - (double)largest - log(sum);
}

static void score_logits(const sl_session *s, const int32_t *ids, size_t first, size_t n,
                         void *data) {
    const size_t size = s->model->info.vocab_size, stride = sl_logits_stride(s->model);
    for (size_t i = 0; i < n; i++)
        ((double *)data)[first + i] =
            log_probability(s->logits + i * stride, size, ids[first + i + 1]);
}

int sl_score(sl_session *s, const int32_t *ids, size_t count, double *scores) {
    const size_t most = (size_t)s->model->info.context + 1;
    if (count < 2 || count > most)
        return sl_fail(SL_ERROR_ARGUMENT, "there are %zu tokens to score and must be 2 to %zu",
                       count, most);
    const int status = check_ids(s->model, ids, count);
    return status ? status : evaluate(s, ids, count - 1, score_logits, scores);
}

/* ---- Stories --------------------------------------------------------------------------------- */

/* Put the prompt, which stands in the ids of a rewound session, through the model. */
static int begin(sl_session *s, size_t count, const sl_options *options) {
    for (size_t first = 0; first < count; first += SL_CHUNK) {
        const size_t left = count - first, n = left < SL_CHUNK ? left : SL_CHUNK;
        sl_forward(s, s->ids + first, n, n == left);
    }
    const int status = check_finite(s->logits, s->model->info.vocab_size);
    if (status) return status;
    s->options = *options;
    s->stop = SL_RUNNING;
    s->decoder = (sl_decoder){0};
    s->prompt_count = s->id_count = count;
    s->is_started = s->has_logits = true;
    sl_random_seed(&s->random, options->seed);
    for (size_t i = 0; i < count; i++) /* the story's text goes on from the prompt's */
        sl_decoder_next(&s->decoder, &s->model->tokenizer, s->ids[i], s->text);
    return SL_OK;
}

static int refuse_long_prompt(size_t count, uint32_t context) {
    return sl_fail(SL_ERROR_ARGUMENT,
                   "the prompt has %zu tokens and the model's context is %" PRIu32
                   ": give a shorter prompt",
                   count, context);
}

int sl_start_ids(sl_session *s, const int32_t *ids, size_t count, const sl_options *options) {
    const uint32_t context = s->model->info.context;
    int status = sl_check_options(options);
    if (status) return status;
    if (count == 0) return sl_fail(SL_ERROR_ARGUMENT, "there are no tokens to start from");
    if (count > context) return refuse_long_prompt(count, context);
    if ((status = check_ids(s->model, ids, count))) return status;
    rewind_session(s);
    memcpy(s->ids, ids, count * sizeof *ids);
    return begin(s, count, options);
}

int sl_start(sl_session *s, const char *prompt, size_t length, const sl_options *options) {
    const sl_info *info = &s->model->info;
    int status = sl_check_options(options);
    if (status) return status;
    const size_t begins = info->bos_id >= 0;
    if (!begins && length == 0)
        return sl_fail(SL_ERROR_ARGUMENT,
                       "the model has no BOS token to start from: give a prompt that is not empty");
    size_t count;
    rewind_session(s);
    if (begins) s->ids[0] = info->bos_id;
    status = sl_encode(&s->model->tokenizer, NULL, prompt, length, s->ids + begins,
                       info->context - begins, &count);
    if (count + begins > info->context) return refuse_long_prompt(count + begins, info->context);
    return status ? status : begin(s, count + begins, options);
}

static int stop(sl_session *s, sl_piece *piece, int32_t reason) {
    piece->length = sl_decoder_end(&s->decoder, s->text);
    piece->stop = s->stop = reason;
    return SL_OK;
}

int sl_next(sl_session *s, sl_piece *piece) {
    const sl_info *info = &s->model->info;
    *piece = (sl_piece){.text = s->text, .id = -1, .stop = s->stop};
    if (!s->is_started) return sl_fail(SL_ERROR_ARGUMENT, "no story has been started");
    if (s->stop) return SL_OK;
    if (s->id_count - s->prompt_count == (size_t)s->options.tokens)
        return stop(s, piece, SL_STOP_TOKENS);
    if (s->id_count == info->context) return stop(s, piece, SL_STOP_CONTEXT);
    if (!s->has_logits) {
        sl_forward(s, s->ids + s->id_count - 1, 1, 1);
        const int status = check_finite(s->logits, info->vocab_size);
        if (status) {
            rewind_session(s);
            return status;
        }
    }
    piece->id = sl_sample(&s->options, &s->random, s->logits, info->vocab_size, s->ids, s->id_count,
                          s->candidates, s->marks);
    s->has_logits = false;
    if (!s->options.ignore_end) {
        if (piece->id == info->eos_id) return stop(s, piece, SL_STOP_EOS);
        if (piece->id == info->bos_id) return stop(s, piece, SL_STOP_BOS);
    }
    s->ids[s->id_count++] = piece->id;
    piece->length = sl_decoder_next(&s->decoder, &s->model->tokenizer, piece->id, s->text);
    return SL_OK;
}

size_t sl_prompt_tokens(const sl_session *session) {
    return session->is_started ? session->prompt_count : 0;
}

size_t sl_story_tokens(const sl_session *session) {
    return session->is_started ? session->id_count : 0;
}

int sl_generate(sl_session *session, const char *prompt, size_t length, const sl_options *options,
                sl_tell tell, void *data, int32_t *stop_reason) {
    int status = sl_start(session, prompt, length, options);
    for (*stop_reason = SL_RUNNING; !status && !*stop_reason;) {
        sl_piece piece;
        status = sl_next(session, &piece);
        if (status) break;
        *stop_reason = piece.stop;
        if (tell(data, &piece) && !piece.stop) *stop_reason = session->stop = SL_STOP_CALLBACK;
    }
    return status;
}

const char *sl_stop_name(int32_t stop_reason) {
    static const char *const names[SL_STOPS] = {
        [SL_RUNNING] = "running",    [SL_STOP_EOS] = "eos",         [SL_STOP_BOS] = "bos",
        [SL_STOP_TOKENS] = "tokens", [SL_STOP_CONTEXT] = "context", [SL_STOP_CALLBACK] = "callback",
    };
    return stop_reason >= 0 && stop_reason < SL_STOPS ? names[stop_reason] : "unknown";
}
