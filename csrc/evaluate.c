/* evaluate.c: logits and log-probabilities of given tokens. */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "internal.h"

/* Called with the logits after ids[first] … ids[first + n - 1], in rows of the session's stride. */
typedef void (*use_logits)(const sl_session *s, const int32_t *ids, size_t first, size_t n,
                           void *data);

/* Put ids[count] through the model from the start of the context, and use all of their logits. */
static int evaluate(sl_session *s, const int32_t *ids, size_t count, use_logits use, void *data) {
    const size_t stride = sl_logits_stride(s->model);
    sl_story *story = &s->stories[0];
    sl_rewind(story);
    for (size_t first = 0; first < count; first += SL_CHUNK) {
        const size_t n = count - first < SL_CHUNK ? count - first : SL_CHUNK;
        sl_forward(s, &(sl_run){story, ids + first, n, n}, 1);
        const int status = sl_check_finite(s->logits, n * stride);
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
    const int status = sl_check_ids(s->model, ids, count);
    return status ? status : evaluate(s, ids, count, copy_logits, logits);
}

/* ln softmax(logits)[id], the sum taken relative to the largest. */
static double log_probability(const sl_kernels *kernels, float *logits, size_t size, int32_t id) {
    const float largest = logits[kernels->argmax(logits, size)], chosen = logits[id];
    const float sum = kernels->exponentials(logits, logits, size, largest, 1);
    return (double)chosen - (double)largest - log((double)sum);
}

static void score_logits(const sl_session *s, const int32_t *ids, size_t first, size_t n,
                         void *data) {
    const size_t size = s->model->info.vocab_size, stride = sl_logits_stride(s->model);
    for (size_t i = 0; i < n; i++)
        ((double *)data)[first + i] =
            log_probability(s->model->kernels, s->logits + i * stride, size, ids[first + i + 1]);
}

int sl_score(sl_session *s, const int32_t *ids, size_t count, double *scores) {
    const size_t most = (size_t)s->model->info.context + 1;
    if (count < 2 || count > most)
        return sl_fail(SL_ERROR_ARGUMENT, "there are %zu tokens to score and must be 2 to %zu",
                       count, most);
    const int status = sl_check_ids(s->model, ids, count);
    return status ? status : evaluate(s, ids, count - 1, score_logits, scores);
}
