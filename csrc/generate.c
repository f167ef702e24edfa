/* generate.c: generates a sequence or a batch of them. */

#include <inttypes.h>
#include <string.h>

#include "draft.h"
#include "error.h"
#include "forward.h"

/* ---- Starting -------------------------------------------------------------------------------- */

static int reject_long_prompt(const sl_session *s, size_t count) {
    return sl_fail(SL_ERROR_ARGUMENT,
                   "the prompt has %zu tokens and the %s's context is %" PRIu32
                   ": give a shorter prompt",
                   count, s->context < s->model->info.context ? "session" : "model", s->context);
}

/* Return whether a fork cut off a step of this session. If so, discard its sequences, which may be
 * incomplete, so that the session is usable again. */
static bool recover(sl_session *s) {
    if (!s->is_in_step) return false;
    for (size_t i = 0; i < s->slot_count; i++) sl_sequence_reset(&s->sequences[i]);
    if (s->draft) sl_sequence_reset(&s->draft->sequences[0]);
    s->is_in_step = false;
    return true;
}

/* Return the sequence in a slot, or NULL after an error. */
static sl_sequence *find_sequence(sl_session *s, size_t slot) {
    recover(s);
    if (slot < s->slot_count) return &s->sequences[slot];
    sl_fail(SL_ERROR_ARGUMENT, "slot is %zu and must be 0 to %zu", slot, s->slot_count - 1);
    return NULL;
}

/* Start a sequence that is reset and already has its prompt in ids[count]. */
static void start(sl_session *s, sl_sequence *sequence, size_t count, const sl_options *options) {
    sequence->options = *options;
    sequence->stop = SL_RUNNING;
    sequence->decoder = (sl_decoder){0};
    sequence->prompt_count = sequence->id_count = count;
    sequence->is_started = true;
    sl_random_seed(&sequence->random, options->seed);
    for (size_t i = 0; i < count; i++) /* decode the prompt: the generated text continues it */
        sl_decoder_next(&sequence->decoder, &s->model->tokenizer, sequence->ids[i], sequence->text);
}

/* Start a sequence with ids[count] in a slot. It keeps what its cache holds of these ids, and
 * counts them in *kept, unless kept is NULL. */
static int start_ids(sl_session *s, size_t slot, const int32_t *ids, size_t count,
                     const sl_options *options, size_t *kept) {
    sl_sequence *sequence = find_sequence(s, slot);
    if (!sequence) return SL_ERROR_ARGUMENT;
    int status = sl_check_options(options);
    if (status) return status;
    if (count == 0)
        return sl_fail(SL_ERROR_ARGUMENT, "the prompt has no tokens: give at least one");
    if (count > s->context) return reject_long_prompt(s, count);
    if ((status = sl_check_ids(s->model, ids, count))) return status;
    const size_t cached = kept ? sl_count_cached(sequence, ids, count) : 0;
    sl_sequence_reset(sequence);
    sequence->cache.position = cached;
    memcpy(sequence->ids, ids, count * sizeof *ids);
    start(s, sequence, count, options);
    if (kept) *kept = cached;
    return SL_OK;
}

int sl_start_slot_ids(sl_session *s, size_t slot, const int32_t *ids, size_t count,
                      const sl_options *options) {
    return start_ids(s, slot, ids, count, options, NULL);
}

int sl_start_slot(sl_session *s, size_t slot, const char *prompt, size_t length,
                  const sl_options *options) {
    const sl_info *info = &s->model->info;
    sl_sequence *sequence = find_sequence(s, slot);
    if (!sequence) return SL_ERROR_ARGUMENT;
    int status = sl_check_options(options);
    if (status) return status;
    const size_t bos_count = info->adds_bos || (length == 0 && info->bos_id >= 0);
    if (!bos_count && length == 0)
        return sl_fail(SL_ERROR_ARGUMENT,
                       "the model has no BOS token to start from: give a prompt that is not empty");
    size_t count;
    sl_sequence_reset(sequence);
    if (bos_count) sequence->ids[0] = info->bos_id;
    s->scratch.used = 0; /* a fork may have cut off another start */
    status = sl_encode_prompt(&s->model->tokenizer, &s->scratch, prompt, length,
                              sequence->ids + bos_count, s->context - bos_count, &count);
    count += bos_count;
    if (count > s->context) return reject_long_prompt(s, count);
    if (!status) start(s, sequence, count, options);
    return status;
}

/* ---- Generating ------------------------------------------------------------------------------ */

/* Return whether a sequence needs another token. Sets its stop if a limit is reached. */
static bool needs_token(sl_sequence *sequence) {
    if (sequence->stop) return false;
    if (sequence->id_count - sequence->prompt_count == (size_t)sequence->options.max_tokens)
        sequence->stop = SL_STOP_MAX_TOKENS;
    else if (sequence->id_count == sequence->cache.context)
        sequence->stop = SL_STOP_CONTEXT;
    return !sequence->stop;
}

/* Let the draft model add tokens after the last id of a sequence, as many as it may use and at most
 * `room`; return their number. */
static size_t add_draft(const sl_session *s, sl_sequence *sequence, size_t room) {
    if (!s->draft) return 0;
    const size_t generated = sequence->id_count - sequence->prompt_count;
    const size_t wanted = (size_t)sequence->options.max_tokens - generated - 1;
    const size_t positions = s->context - sequence->id_count;
    size_t count = s->draft_tokens;
    if (count > room) count = room;
    if (count > wanted) count = wanted;
    if (count > positions) count = positions;
    return sl_draft(s->draft, sequence, count);
}

/* Run a forward pass with as many new tokens of sequences[count] as fit in it, at least one. Each
 * sequence that has no new tokens left then gets logits. If it had one left, drafted tokens follow
 * in the same pass. */
static void forward(sl_session *s, sl_sequence *const *sequences, size_t count) {
    sl_segment segments[SL_MAX_SLOTS];
    size_t segment_count = 0, room = s->rows;
    do {
        sl_sequence *sequence = sequences[segment_count];
        const size_t position = sequence->cache.position, left = sequence->id_count - position;
        const size_t drafted = left == 1 ? add_draft(s, sequence, room - 1) : 0;
        const size_t n = left < room ? left + drafted : room;
        sequence->draft_count = drafted;
        sequence->drafted += drafted;
        segments[segment_count++] =
            (sl_segment){sequence, sequence->ids + position, n, n >= left ? 1 + drafted : 0};
        room -= n;
    } while (segment_count < count && room);
    sl_forward(s, segments, segment_count);
    float *logits = s->logits;
    for (size_t r = 0; r < segment_count; r++) {
        if (!segments[r].logit_count) continue;
        segments[r].sequence->logits = logits;
        logits += segments[r].logit_count * sl_logits_stride(s->model);
    }
}

typedef struct {
    const sl_model *model;
    sl_sequence *const *sequences;
} sampling;

/* Sample the next token of sequences that have logits. */
static void sample(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const sampling *c = context;
    for (size_t i = first; i < end; i++) {
        sl_sequence *sequence = c->sequences[i];
        const sl_kernels *kernels = c->model->kernels;
        const size_t count = c->model->info.vocab_size, top = (size_t)sequence->options.logprobs;
        if (top) memcpy(sequence->unsampled, sequence->logits, count * sizeof(float));
        sequence->next_id =
            sl_sample(kernels, &sequence->options, &sequence->random, sequence->logits, count,
                      sequence->ids, sequence->id_count, &sequence->sampler);
        if (top)
            sl_logprobs_fill(&sequence->logprobs, kernels, sequence->unsampled, count,
                             sequence->next_id, top);
    }
}

/* Take the logits after the sampled token if it was drafted, so that the model has them. Else
 * discard the drafted tokens. */
static void follow_draft(const sl_model *model, sl_sequence *sequence) {
    if (sequence->draft_count && sequence->ids[sequence->id_count] == sequence->next_id) {
        sequence->draft_count--;
        sequence->accepted++;
        sequence->logits += sl_logits_stride(model);
    } else {
        sequence->draft_count = 0;
        sequence->cache.position = sequence->id_count;
        sequence->logits = NULL;
    }
}

static bool ends_sequence(const sl_model *model, int32_t id) {
    for (size_t i = 0; i < model->extra_eos_count; i++)
        if ((int32_t)model->extra_eos_ids[i] == id) return true;
    return id == model->info.eos_id;
}

/* Append the sampled token to its sequence, unless it ends the sequence, and fill in the piece. */
static void append_token(const sl_model *model, sl_sequence *sequence, sl_piece *piece) {
    const sl_info *info = &model->info;
    piece->id = sequence->next_id;
    if (sequence->options.logprobs) {
        piece->logprob = sequence->logprobs.sampled;
        piece->top = sequence->logprobs.top;
        piece->top_count = sequence->logprobs.top_count;
    }
    if (!sequence->options.ignore_eos) {
        if (ends_sequence(model, piece->id)) sequence->stop = SL_STOP_EOS;
        if (piece->id == info->bos_id) sequence->stop = SL_STOP_BOS;
        if (sequence->stop) return;
    }
    sequence->ids[sequence->id_count++] = piece->id;
    piece->length =
        sl_decoder_next(&sequence->decoder, &model->tokenizer, piece->id, sequence->text);
}

/* Generate the next token of each sequence that has logits, and remove these sequences from
 * sequences[*count]. pieces[slot_count] are those of the session. */
static int generate_ready(sl_session *s, sl_sequence **sequences, size_t *count, sl_piece *pieces) {
    sl_sequence *ready[SL_MAX_SLOTS];
    size_t ready_count = 0, waiting_count = 0;
    int status = SL_OK;
    for (size_t i = 0; i < *count; i++) {
        sl_sequence *sequence = sequences[i];
        if (!sequence->logits) {
            sequences[waiting_count++] = sequence;
            continue;
        }
        const int checked = sl_check_logits(sequence->logits, s->model->info.vocab_size);
        if (checked) {
            status = checked;
            sl_sequence_reset(sequence);
        } else {
            ready[ready_count++] = sequence;
        }
    }
    *count = waiting_count;
    sampling c = {s->model, ready};
    sl_parallel_for(s->pool, ready_count, 1, sample, &c);
    for (size_t i = 0; i < ready_count; i++) {
        follow_draft(s->model, ready[i]);
        append_token(s->model, ready[i], &pieces[ready[i] - s->sequences]);
    }
    return status;
}

/* Generate the next token of the first `count` slots. If one fails, the others still get theirs. */
static int generate_all(sl_session *s, size_t count, sl_piece *pieces) {
    sl_sequence *waiting[SL_MAX_SLOTS];
    size_t waiting_count = 0;
    int status = SL_OK;
    for (size_t i = 0; i < count; i++) {
        sl_sequence *sequence = &s->sequences[i];
        pieces[i] = (sl_piece){.text = sequence->text, .id = -1};
        sequence->was_running = sequence->stop == SL_RUNNING;
        if (needs_token(sequence)) waiting[waiting_count++] = sequence;
    }
    for (;;) {
        const int failure = generate_ready(s, waiting, &waiting_count, pieces);
        if (failure) status = failure;
        if (!waiting_count) break;
        forward(s, waiting, waiting_count);
    }
    for (size_t i = 0; i < count; i++) {
        sl_sequence *sequence = &s->sequences[i];
        pieces[i].stop = sequence->stop;
        if (sequence->stop && sequence->was_running && sequence->is_started)
            pieces[i].length = sl_decoder_end(&sequence->decoder, sequence->text);
    }
    return status;
}

static int step(sl_session *s, size_t count, sl_piece *pieces) {
    if (recover(s)) {
        for (size_t i = 0; i < count; i++)
            pieces[i] = (sl_piece){.text = "", .id = -1, .stop = SL_IDLE};
        return sl_fail(SL_ERROR_ARGUMENT, "this process was forked while the session generated a "
                                          "token: start its sequences again");
    }
    s->is_in_step = true;
    sl_session_pool(s);
    const int status = generate_all(s, count, pieces);
    s->is_in_step = false;
    return status;
}

int sl_step(sl_session *session, sl_piece *pieces) {
    return step(session, session->slot_count, pieces);
}

/* ---- One sequence, in slot 0 ----------------------------------------------------------------- */

/* Put the prompt through the model. */
static int prefill(sl_session *s) {
    sl_sequence *sequence = s->sequences;
    s->is_in_step = true;
    while (!sequence->logits) forward(s, &sequence, 1);
    s->is_in_step = false;
    const int status = sl_check_logits(sequence->logits, s->model->info.vocab_size);
    if (status) sl_sequence_reset(sequence);
    return status;
}

int sl_start(sl_session *s, const char *prompt, size_t length, const sl_options *options) {
    const int status = sl_start_slot(s, 0, prompt, length, options);
    return status ? status : prefill(s);
}

int sl_start_ids(sl_session *s, const int32_t *ids, size_t count, const sl_options *options) {
    const int status = sl_start_slot_ids(s, 0, ids, count, options);
    return status ? status : prefill(s);
}

int sl_continue_ids(sl_session *s, const int32_t *ids, size_t count, const sl_options *options,
                    size_t *kept) {
    size_t cached;
    const int status = start_ids(s, 0, ids, count, options, kept ? kept : &cached);
    return status ? status : prefill(s);
}

int sl_next(sl_session *s, sl_piece *piece) {
    if (!s->is_in_step && !s->sequences[0].is_started) {
        *piece = (sl_piece){.text = "", .id = -1};
        return sl_fail(SL_ERROR_ARGUMENT, "no sequence has been started: call sl_start first");
    }
    return step(s, 1, piece);
}

size_t sl_prompt_tokens(const sl_session *session) {
    return session->sequences[0].is_started ? session->sequences[0].prompt_count : 0;
}

size_t sl_sequence_tokens(const sl_session *session) {
    return session->sequences[0].is_started ? session->sequences[0].id_count : 0;
}

void sl_draft_counts(const sl_session *session, size_t *drafted, size_t *accepted) {
    *drafted = session->sequences[0].drafted;
    *accepted = session->sequences[0].accepted;
}

int sl_generate(sl_session *session, const char *prompt, size_t length, const sl_options *options,
                sl_callback callback, void *data, int32_t *stop) {
    int status = sl_start(session, prompt, length, options);
    for (*stop = SL_RUNNING; !status && !*stop;) {
        sl_piece piece;
        status = sl_next(session, &piece);
        if (status) break;
        *stop = piece.stop;
        if (callback(data, &piece) && !piece.stop)
            *stop = session->sequences[0].stop = SL_STOP_CALLBACK;
    }
    return status;
}

const char *sl_stop_name(int32_t stop) {
    static const char *const names[SL_STOP_COUNT] = {
        [SL_RUNNING] = "running",
        [SL_STOP_EOS] = "eos",
        [SL_STOP_BOS] = "bos",
        [SL_STOP_MAX_TOKENS] = "max_tokens",
        [SL_STOP_CONTEXT] = "context",
        [SL_STOP_CALLBACK] = "callback",
        [SL_IDLE] = "idle",
    };
    return stop >= 0 && stop < SL_STOP_COUNT ? names[stop] : "unknown";
}
