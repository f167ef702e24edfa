/* draft.h: a smaller model drafts the next tokens of a sequence. */

#ifndef STORYLLAMAS_DRAFT_H
#define STORYLLAMAS_DRAFT_H

#include "session.h"

/* Write at most `count` tokens that are likely to follow the ids of a sequence, sampled by the
 * model of another session, to sequence->ids + sequence->id_count. Return their number. The
 * sequence's random numbers stay as they are. */
size_t sl_draft(sl_session *session, sl_sequence *sequence, size_t count);

#endif
