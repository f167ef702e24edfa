/* forward.h: runs a forward pass on as many threads as are fastest, and checks ids and logits. */

#ifndef STORYLLAMAS_FORWARD_H
#define STORYLLAMAS_FORWARD_H

#include "transformer.h"

/* Check that ids[count] are in the vocabulary; if one is not, return SL_ERROR_ARGUMENT. */
int sl_check_ids(const sl_model *model, const int32_t *ids, size_t count);

/* Fill the rotary table and run sl_transformer, on as many threads of the pool as are fastest. */
void sl_forward(sl_session *session, const sl_segment *segments, size_t count);

/* Return whether logits[count] are finite. */
bool sl_are_finite(const float *logits, size_t count);

/* Check that logits[count] are finite; if one is not, return SL_ERROR_NUMBER. */
int sl_check_logits(const float *logits, size_t count);

#endif
