/* forward.c: runs a forward pass on as many threads as are fastest, and checks ids and logits. */

#include "forward.h"

#include <inttypes.h>
#include <string.h>

#include "error.h"

int sl_check_ids(const sl_model *model, const int32_t *ids, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= model->info.vocab_size)
            return sl_fail(SL_ERROR_ARGUMENT,
                           "token id %" PRId32 " is not in the vocabulary: give 0 to %" PRIu32,
                           ids[i], model->info.vocab_size - 1);
    return SL_OK;
}

/* Fill the rotary table up to the last position of the segments, and some rows ahead. */
static void extend_rotary(sl_session *s, const sl_segment *segments, size_t count) {
    enum { AHEAD = 16 };
    const sl_info *info = &s->model->info;
    size_t end = 0;
    for (size_t i = 0; i < count; i++) {
        const size_t last = segments[i].sequence->cache.position + segments[i].count;
        if (last > end) end = last;
    }
    if (end <= s->rotary_count) return;
    end = end + AHEAD < s->context ? end + AHEAD : s->context;
    sl_fill_rotary(info, s->rotary, s->rotary_count, end);
    s->rotary_count = end;
}

/* Return the autotuner of passes of about so many tokens. */
static sl_autotune *autotuner(sl_session *s, size_t tokens) {
    size_t kind = 0;
    while (tokens >>= 1) kind++;
    return &s->autotune[kind < SL_PASS_KINDS ? kind : SL_PASS_KINDS - 1];
}

void sl_forward(sl_session *session, const sl_segment *segments, size_t count) {
    size_t tokens = 0;
    for (size_t i = 0; i < count; i++) tokens += segments[i].count;
    extend_rotary(session, segments, count);
    sl_migration_count_pass(session->model->migration);
    sl_thread_pool *pool = sl_session_pool(session);
    /* A running migration occupies a processor, so a measurement would mislead. */
    if (!pool || sl_migration_is_running(session->model->migration)) {
        sl_transformer(session, NULL, segments, count);
        return;
    }
    sl_autotune *tune = autotuner(session, tokens);
    sl_thread_pool_use(pool, sl_autotune_begin(tune, sl_clock()));
    sl_transformer(session, pool, segments, count);
    sl_autotune_end(tune, sl_clock(), tokens);
}

bool sl_are_finite(const float *logits, size_t count) {
    uint32_t found = 0; /* 1: an exponent has only ones, so the logit is infinity or NaN */
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, logits + i, sizeof bits);
        found |= (bits & 0x7f800000) == 0x7f800000;
    }
    return !found;
}

int sl_check_logits(const float *logits, size_t count) {
    if (sl_are_finite(logits, count)) return SL_OK;
    return sl_fail(SL_ERROR_NUMBER, "the model's logits are not finite: its weights are damaged, "
                                    "export it again");
}
