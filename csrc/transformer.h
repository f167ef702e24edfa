/* transformer.h: the Llama 3 architecture. */

#ifndef STORYLLAMAS_TRANSFORMER_H
#define STORYLLAMAS_TRANSFORMER_H

#include "session.h"

/* Tokens of one sequence that go through the model together. */
typedef struct {
    sl_sequence *sequence;
    const int32_t *ids; /* [count], in range; they follow the tokens in the sequence's cache */
    size_t count;
    size_t logit_count; /* the last so many tokens need logits */
} sl_segment;

/* Put segments[count], each of another sequence and within its context, through the model: at most
 * session->rows tokens. Their keys and values join the caches. session->logits receives the logits,
 * in the order of the segments. pool may be NULL: the calling thread computes all. */
void sl_transformer(sl_session *session, sl_thread_pool *pool, const sl_segment *segments,
                    size_t count);

#endif
