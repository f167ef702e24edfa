/* story.c: telling stories, one or many at once. */

#include <inttypes.h>
#include <string.h>

#include "internal.h"

int sl_check_ids(const sl_model *model, const int32_t *ids, size_t count) {
    const uint32_t vocab_size = model->info.vocab_size;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= vocab_size)
            return sl_fail(SL_ERROR_ARGUMENT, "token id %" PRId32 " is not in 0 … %" PRIu32, ids[i],
                           vocab_size - 1);
    return SL_OK;
}

int sl_check_finite(const float *x, size_t count) {
    uint32_t found = 0; /* an exponent of ones */
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

void sl_rewind(sl_story *story) {
    story->position = 0;
    story->is_started = false;
    story->logits = NULL;
    story->stop = SL_IDLE;
}

/* ---- Beginning ------------------------------------------------------------------------------- */

static int refuse_long_prompt(size_t count, uint32_t context) {
    return sl_fail(SL_ERROR_ARGUMENT,
                   "the prompt has %zu tokens and the model's context is %" PRIu32
                   ": give a shorter prompt",
                   count, context);
}

/* The story at a place; NULL after an error. */
static sl_story *find_place(sl_session *s, size_t place) {
    if (place < s->story_count) return &s->stories[place];
    sl_fail(SL_ERROR_ARGUMENT, "place %zu is not one of the session's %zu", place, s->story_count);
    return NULL;
}

/* Begin with the ids that stand in a rewound story. */
static void begin(sl_session *s, sl_story *story, size_t count, const sl_options *options) {
    story->options = *options;
    story->stop = SL_RUNNING;
    story->decoder = (sl_decoder){0};
    story->prompt_count = story->id_count = count;
    story->is_started = true;
    sl_random_seed(&story->random, options->seed);
    for (size_t i = 0; i < count; i++) /* the story's text goes on from the prompt's */
        sl_decoder_next(&story->decoder, &s->model->tokenizer, story->ids[i], story->text);
}

int sl_join_ids(sl_session *s, size_t place, const int32_t *ids, size_t count,
                const sl_options *options) {
    const uint32_t context = s->model->info.context;
    sl_story *story = find_place(s, place);
    if (!story) return SL_ERROR_ARGUMENT;
    int status = sl_check_options(options);
    if (status) return status;
    if (count == 0) return sl_fail(SL_ERROR_ARGUMENT, "there are no tokens to start from");
    if (count > context) return refuse_long_prompt(count, context);
    if ((status = sl_check_ids(s->model, ids, count))) return status;
    sl_rewind(story);
    memcpy(story->ids, ids, count * sizeof *ids);
    begin(s, story, count, options);
    return SL_OK;
}

int sl_join(sl_session *s, size_t place, const char *prompt, size_t length,
            const sl_options *options) {
    const sl_info *info = &s->model->info;
    sl_story *story = find_place(s, place);
    if (!story) return SL_ERROR_ARGUMENT;
    int status = sl_check_options(options);
    if (status) return status;
    const size_t begins = info->bos_id >= 0;
    if (!begins && length == 0)
        return sl_fail(SL_ERROR_ARGUMENT,
                       "the model has no BOS token to start from: give a prompt that is not empty");
    size_t count;
    sl_rewind(story);
    if (begins) story->ids[0] = info->bos_id;
    status = sl_encode(&s->model->tokenizer, NULL, prompt, length, story->ids + begins,
                       info->context - begins, &count);
    if (count + begins > info->context) return refuse_long_prompt(count + begins, info->context);
    if (!status) begin(s, story, count + begins, options);
    return status;
}

/* ---- Going on -------------------------------------------------------------------------------- */

/* Whether a story is to tell another token. */
static bool goes_on(sl_story *story, const sl_info *info) {
    if (story->stop) return false;
    if (story->id_count - story->prompt_count == (size_t)story->options.tokens)
        story->stop = SL_STOP_TOKENS;
    else if (story->id_count == info->context)
        story->stop = SL_STOP_CONTEXT;
    return !story->stop;
}

/* Put tokens of stories[count] through the model: all that each has left, as far as there is room.
 * There is at least one. */
static void read_on(sl_session *s, sl_story *const *stories, size_t count) {
    sl_run runs[SL_MOST_STORIES];
    size_t run_count = 0, room = s->rows;
    do {
        sl_story *story = stories[run_count];
        const size_t left = story->id_count - story->position, n = left < room ? left : room;
        runs[run_count++] = (sl_run){story, story->ids + story->position, n, n == left};
        room -= n;
    } while (run_count < count && room);
    sl_forward(s, runs, run_count);
    float *logits = s->logits;
    for (size_t r = 0; r < run_count; r++) {
        if (!runs[r].wanted) continue;
        runs[r].story->logits = logits;
        logits += sl_logits_stride(s->model);
    }
}

typedef struct {
    const sl_model *model;
    sl_story *const *stories;
} choice;

/* Append the next token to stories whose logits are known. */
static void choose(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const choice *c = context;
    for (size_t i = first; i < end; i++) {
        sl_story *story = c->stories[i];
        story->chosen =
            sl_sample(c->model->kernels, &story->options, &story->random, story->logits,
                      c->model->info.vocab_size, story->ids, story->id_count, &story->sampler);
        story->logits = NULL;
    }
}

/* Tell the chosen token. */
static void tell(const sl_model *model, sl_story *story, sl_piece *piece) {
    const sl_info *info = &model->info;
    piece->id = story->chosen;
    if (!story->options.ignore_end) {
        if (piece->id == info->eos_id) story->stop = SL_STOP_EOS;
        if (piece->id == info->bos_id) story->stop = SL_STOP_BOS;
        if (story->stop) return;
    }
    story->ids[story->id_count++] = piece->id;
    piece->length = sl_decoder_next(&story->decoder, &model->tokenizer, piece->id, story->text);
}

/* Take out of stories[*count] those whose logits are known, and tell their tokens.
 * pieces[…] are those of the session's stories. */
static int tell_known(sl_session *s, sl_story **stories, size_t *count, sl_piece *pieces) {
    sl_story *known[SL_MOST_STORIES];
    size_t known_count = 0, left = 0;
    for (size_t i = 0; i < *count; i++) {
        sl_story *story = stories[i];
        if (!story->logits) {
            stories[left++] = story;
            continue;
        }
        const int status = sl_check_finite(story->logits, s->model->info.vocab_size);
        if (status) {
            sl_rewind(story);
            return status;
        }
        known[known_count++] = story;
    }
    *count = left;
    choice c = {s->model, known};
    sl_share(s->team, known_count, 1, choose, &c);
    for (size_t i = 0; i < known_count; i++)
        tell(s->model, known[i], &pieces[known[i] - s->stories]);
    return SL_OK;
}

/* Tell the next token of the first `count` stories of the session. */
static int step(sl_session *s, size_t count, sl_piece *pieces) {
    sl_story *waiting[SL_MOST_STORIES];
    size_t waiting_count = 0;
    for (size_t i = 0; i < count; i++) {
        sl_story *story = &s->stories[i];
        const bool was_running = story->stop == SL_RUNNING;
        pieces[i] = (sl_piece){.text = story->text, .id = -1};
        if (goes_on(story, &s->model->info)) waiting[waiting_count++] = story;
        story->ends_now = was_running;
    }
    for (;;) {
        const int status = tell_known(s, waiting, &waiting_count, pieces);
        if (status) return status;
        if (!waiting_count) break;
        read_on(s, waiting, waiting_count);
    }
    for (size_t i = 0; i < count; i++) {
        sl_story *story = &s->stories[i];
        pieces[i].stop = story->stop;
        if (story->stop && story->ends_now)
            pieces[i].length = sl_decoder_end(&story->decoder, story->text);
    }
    return SL_OK;
}

int sl_step(sl_session *session, sl_piece *pieces) {
    return step(session, session->story_count, pieces);
}

/* ---- One story ------------------------------------------------------------------------------- */

/* Put the prompt of the first story through the model. */
static int read_prompt(sl_session *s) {
    sl_story *story = s->stories;
    while (!story->logits) read_on(s, &story, 1);
    const int status = sl_check_finite(story->logits, s->model->info.vocab_size);
    if (status) sl_rewind(story);
    return status;
}

int sl_start(sl_session *s, const char *prompt, size_t length, const sl_options *options) {
    const int status = sl_join(s, 0, prompt, length, options);
    return status ? status : read_prompt(s);
}

int sl_start_ids(sl_session *s, const int32_t *ids, size_t count, const sl_options *options) {
    const int status = sl_join_ids(s, 0, ids, count, options);
    return status ? status : read_prompt(s);
}

int sl_next(sl_session *s, sl_piece *piece) {
    if (!s->stories[0].is_started) {
        *piece = (sl_piece){.text = "", .id = -1};
        return sl_fail(SL_ERROR_ARGUMENT, "no story has been started");
    }
    return step(s, 1, piece);
}

size_t sl_prompt_tokens(const sl_session *session) {
    return session->stories[0].is_started ? session->stories[0].prompt_count : 0;
}

size_t sl_story_tokens(const sl_session *session) {
    return session->stories[0].is_started ? session->stories[0].id_count : 0;
}

int sl_generate(sl_session *session, const char *prompt, size_t length, const sl_options *options,
                sl_tell tell_piece, void *data, int32_t *stop_reason) {
    int status = sl_start(session, prompt, length, options);
    for (*stop_reason = SL_RUNNING; !status && !*stop_reason;) {
        sl_piece piece;
        status = sl_next(session, &piece);
        if (status) break;
        *stop_reason = piece.stop;
        if (tell_piece(data, &piece) && !piece.stop)
            *stop_reason = session->stories[0].stop = SL_STOP_CALLBACK;
    }
    return status;
}

const char *sl_stop_name(int32_t stop_reason) {
    static const char *const names[SL_STOPS] = {
        [SL_RUNNING] = "running",    [SL_STOP_EOS] = "eos",         [SL_STOP_BOS] = "bos",
        [SL_STOP_TOKENS] = "tokens", [SL_STOP_CONTEXT] = "context", [SL_STOP_CALLBACK] = "callback",
        [SL_IDLE] = "idle",
    };
    return stop_reason >= 0 && stop_reason < SL_STOPS ? names[stop_reason] : "unknown";
}
