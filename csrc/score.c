/* score.c: logits and log-probabilities of given tokens. */

#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "forward.h"
#include "logprobs.h"

/* Receives the logits after ids[first] … ids[first + n - 1], in rows of the session's stride. */
typedef void (*logits_function)(const sl_session *s, const int32_t *ids, size_t first, size_t n,
                                void *data);

/* Put ids[count] through the model, from an empty cache, and call `use` with all logits. */
static int for_logits(sl_session *s, const int32_t *ids, size_t count, logits_function use,
                      void *data) {
    const size_t stride = sl_logits_stride(s->model);
    sl_sequence *sequence = &s->sequences[0];
    sl_sequence_reset(sequence);
    for (size_t first = 0; first < count; first += s->rows) {
        const size_t left = count - first, n = left < s->rows ? left : s->rows;
        sl_forward(s, &(sl_segment){sequence, ids + first, n, n}, 1);
        const int status = sl_check_logits(s->logits, n * stride);
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
    if (count < 1 || count > s->context)
        return sl_fail(SL_ERROR_ARGUMENT, "%zu tokens are given and must be 1 to %" PRIu32, count,
                       s->context);
    const int status = sl_check_ids(s->model, ids, count);
    return status ? status : for_logits(s, ids, count, copy_logits, logits);
}

/* Return ln softmax(logits)[id]. */
static double log_probability(const sl_kernels *kernels, float *logits, size_t size, int32_t id) {
    const float largest = logits[kernels->argmax(logits, size)], logit = logits[id];
    return sl_log_probability(sl_log_softmax_of(kernels, logits, size, largest), logit);
}

static void score_logits(const sl_session *s, const int32_t *ids, size_t first, size_t n,
                         void *data) {
    const size_t size = s->model->info.vocab_size, stride = sl_logits_stride(s->model);
    for (size_t i = 0; i < n; i++)
        ((double *)data)[first + i] =
            log_probability(s->model->kernels, s->logits + i * stride, size, ids[first + i + 1]);
}

int sl_score(sl_session *s, const int32_t *ids, size_t count, double *scores) {
    const size_t max = (size_t)s->context + 1;
    if (count < 2 || count > max)
        return sl_fail(SL_ERROR_ARGUMENT, "%zu tokens are given to score and must be 2 to %zu",
                       count, max);
    const int status = sl_check_ids(s->model, ids, count);
    return status ? status : for_logits(s, ids, count - 1, score_logits, scores);
}
