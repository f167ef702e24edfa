/* draft.c: a smaller model drafts the next tokens of a sequence. */

#include "draft.h"

#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "forward.h"

/* ---- Choosing a draft ------------------------------------------------------------------------ */

/* Return the first id whose piece differs, or the size of the smaller vocabulary. */
static uint32_t first_difference(const sl_model *a, const sl_model *b) {
    const uint32_t size_a = a->info.vocab_size, size_b = b->info.vocab_size;
    uint32_t id = 0;
    for (; id < size_a && id < size_b; id++) {
        size_t length_a, length_b;
        const char *text_a = sl_token_text(&a->tokenizer, (int32_t)id, &length_a);
        const char *text_b = sl_token_text(&b->tokenizer, (int32_t)id, &length_b);
        if (length_a != length_b || memcmp(text_a, text_b, length_a) != 0) break;
    }
    return id;
}

int sl_set_draft(sl_session *session, sl_session *draft, uint32_t tokens) {
    if (draft && (tokens < 1 || tokens > SL_MAX_DRAFT_TOKENS))
        return sl_fail(SL_ERROR_ARGUMENT, "draft tokens is %" PRIu32 " and must be 1 to %d", tokens,
                       SL_MAX_DRAFT_TOKENS);
    if (draft && session->slot_count > 1)
        return sl_fail(
            SL_ERROR_ARGUMENT,
            "the session has %zu slots and a draft is for one: use a session of one slot",
            session->slot_count);
    if (draft == session)
        return sl_fail(SL_ERROR_ARGUMENT, "a session cannot draft for itself: use another one");
    if (draft) {
        const uint32_t size = session->model->info.vocab_size;
        const uint32_t id = first_difference(session->model, draft->model);
        if (draft->model->info.vocab_size != size)
            return sl_fail(SL_ERROR_ARGUMENT,
                           "the draft model has %" PRIu32 " pieces and the model %" PRIu32
                           ": use one with the same tokenizer",
                           draft->model->info.vocab_size, size);
        if (id < size)
            return sl_fail(SL_ERROR_ARGUMENT,
                           "piece %" PRIu32 " of the draft model is not that of the model: use one "
                           "with the same tokenizer",
                           id);
        sl_sequence_reset(&draft->sequences[0]);
    }
    if (session->draft) sl_sequence_reset(&session->draft->sequences[0]);
    session->draft = draft;
    session->draft_tokens = tokens;
    return SL_OK;
}

/* ---- Drafting -------------------------------------------------------------------------------- */

/* Put the ids of a sequence that its cache lacks through the model; return the logits after the
 * last one, or NULL if they are not finite. */
static float *catch_up(sl_session *s, sl_sequence *sequence) {
    for (size_t left; (left = sequence->id_count - sequence->cache.position) > 0;) {
        const size_t n = left < s->rows ? left : s->rows;
        const int32_t *ids = sequence->ids + sequence->cache.position;
        sl_forward(s, &(sl_segment){sequence, ids, n, n == left}, 1);
    }
    return sl_are_finite(s->logits, s->model->info.vocab_size) ? s->logits : NULL;
}

size_t sl_draft(sl_session *s, sl_sequence *sequence, size_t count) {
    sl_sequence *own = &s->sequences[0];
    const size_t known = sequence->id_count;
    if (known >= s->context) return 0;
    if (count > s->context - known) count = s->context - known;
    own->cache.position = sl_count_cached(own, sequence->ids, known);
    own->is_started = true; /* its ids are those in its cache */
    own->id_count = known;
    memcpy(own->ids, sequence->ids, known * sizeof *own->ids);
    sl_random random = sequence->random;
    size_t drafted = 0;
    for (; drafted < count; drafted++) {
        float *logits = catch_up(s, own);
        if (!logits) break; /* the model can do without a draft */
        const int32_t id =
            sl_sample(s->model->kernels, &sequence->options, &random, logits,
                      s->model->info.vocab_size, own->ids, own->id_count, &own->sampler);
        own->ids[own->id_count++] = id;
        sequence->ids[known + drafted] = id;
    }
    return drafted;
}
