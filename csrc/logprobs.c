/* logprobs.c: the log probabilities of the sampled token and of the most probable ones. */

#include "logprobs.h"

#include <math.h>

/* Insert a logit into top[*count], which is sorted and has room for `max`, at least one. */
static void insert(sl_logprob *top, size_t *count, size_t max, sl_logprob new) {
    size_t at = *count < max ? (*count)++ : max - 1;
    for (; at > 0 && top[at - 1].logprob < new.logprob; at--) top[at] = top[at - 1];
    top[at] = new;
}

sl_log_softmax sl_log_softmax_of(const sl_kernels *kernels, float *logits, size_t count,
                                 float largest) {
    const float sum = kernels->exponentials(logits, logits, count, largest, 1);
    return (sl_log_softmax){largest, log((double)sum)};
}

double sl_log_probability(sl_log_softmax softmax, float logit) {
    return (double)logit - (double)softmax.largest - softmax.log_sum;
}

void sl_logprobs_fill(sl_logprobs *logprobs, const sl_kernels *kernels, float *logits, size_t count,
                      int32_t id, size_t top) {
    const size_t max = top < count ? top : count;
    sl_logprob *first = logprobs->top;
    logprobs->top_count = 0;
    logprobs->sampled = logits[id];
    for (size_t i = 0; i < count; i++)
        if (logprobs->top_count < max || logits[i] > first[max - 1].logprob)
            insert(first, &logprobs->top_count, max, (sl_logprob){(int32_t)i, logits[i]});
    const sl_log_softmax softmax = sl_log_softmax_of(kernels, logits, count, first->logprob);
    logprobs->sampled = (float)sl_log_probability(softmax, logprobs->sampled);
    for (size_t i = 0; i < logprobs->top_count; i++)
        first[i].logprob = (float)sl_log_probability(softmax, first[i].logprob);
}
