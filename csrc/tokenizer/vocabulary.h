/* vocabulary.h: checks a vocabulary. */

#ifndef STORYLLAMAS_VOCABULARY_H
#define STORYLLAMAS_VOCABULARY_H

#include "tokenizer.h"

/* Check the sizes, the offsets and the rules of a vocabulary, before anything else uses it. path is
 * the weight file of the vocabulary, for error messages, or NULL, here and below. */
int sl_check_vocabulary(const sl_vocabulary *vocabulary, const char *path);

/* Check the added tokens. */
int sl_check_added(const sl_tokenizer *tokenizer, const char *path);

/* Check a piece, as far as its type does not matter. */
int sl_check_piece(const sl_tokenizer *tokenizer, int32_t id, const char *path);

/* Check that every character can be encoded: by byte fallback or the unknown piece. */
int sl_check_fallback(const sl_tokenizer *tokenizer, const char *path);

/* Return an error for a vocabulary, or for one of its pieces. reason continues a sentence. */
int sl_reject_vocabulary(const char *path, const char *reason);
int sl_reject_piece(const char *path, int32_t id, const char *reason);

#endif
