/* pretokenize.h: the words that byte-level tokenizers cut a text into. */

#ifndef STORYLLAMAS_PRETOKENIZE_H
#define STORYLLAMAS_PRETOKENIZE_H

#include "unicode.h"

/* A walk over the words of a text. Start with `range` zero. */
typedef struct {
    const char *text; /* valid UTF-8 */
    size_t length;
    int32_t rule;           /* SL_PRE_GPT2, SL_PRE_LLAMA3 or SL_PRE_SMOLLM */
    sl_unicode_range range; /* of the last character beyond ASCII: the next is often of the same */
} sl_word_scan;

/* Where the word that begins at `at` ends; at is below length. */
size_t sl_word_end(sl_word_scan *scan, size_t at);

#endif
