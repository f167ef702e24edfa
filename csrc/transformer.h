/* transformer.h: the Llama 3 architecture. */

#ifndef STORYLLAMAS_TRANSFORMER_H
#define STORYLLAMAS_TRANSFORMER_H

#include "session.h"

/* Tokens of one sequence that go through the model together. */
typedef struct {
    sl_sequence *sequence;
    const int32_t *ids; /* [count] in the vocabulary; they follow the tokens in the cache */
    size_t count;
    size_t logit_count; /* of the last tokens, which need logits */
} sl_segment;

/* Put segments[count] through the model, at most session->rows tokens in all. Each segment is of a
 * different sequence and fits the context. The call appends keys and values to the caches and
 * writes session->logits, a row for each token that needs logits, in the order of the segments. If
 * pool is NULL the calling thread computes everything. */
void sl_transformer(sl_session *session, sl_thread_pool *pool, const sl_segment *segments,
                    size_t count);

#endif
