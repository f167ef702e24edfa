/* logprobs.h: the log probabilities of the sampled token and of the most probable ones. */

#ifndef STORYLLAMAS_LOGPROBS_H
#define STORYLLAMAS_LOGPROBS_H

#include "kernels/kernels.h"
#include "storyllamas.h"

/* What a piece shows of the distribution that its token was sampled from. */
typedef struct {
    float sampled;                   /* log probability of the sampled token */
    sl_logprob top[SL_MAX_LOGPROBS]; /* the most probable tokens, the lower id first among equals */
    size_t top_count;
} sl_logprobs;

/* What ln softmax subtracts from each logit. */
typedef struct {
    float largest; /* subtracted first, which avoids overflow */
    double log_sum;
} sl_log_softmax;

/* Return it for logits[count], the largest of which is given. The call overwrites the logits. */
sl_log_softmax sl_log_softmax_of(const sl_kernels *kernels, float *logits, size_t count,
                                 float largest);

/* Return ln softmax of one of the logits. */
double sl_log_probability(sl_log_softmax softmax, float logit);

/* Fill in the log probabilities of token id and of the `top` most probable tokens, at most
 * SL_MAX_LOGPROBS. logits[count] are those of the model, and the call overwrites them. */
void sl_logprobs_fill(sl_logprobs *logprobs, const sl_kernels *kernels, float *logits, size_t count,
                      int32_t id, size_t top);

#endif
