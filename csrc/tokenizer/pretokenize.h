/* pretokenize.h: cuts a text into words, as the pre-tokenizers of byte-level tokenizers do. */

#ifndef STORYLLAMAS_PRETOKENIZE_H
#define STORYLLAMAS_PRETOKENIZE_H

#include "unicode.h"

/* A walk over the words of a text. Start with `range` zero. */
typedef struct {
    const char *text; /* valid UTF-8 */
    size_t length;
    int32_t rule;           /* SL_PRE_GPT2, SL_PRE_LLAMA3 or SL_PRE_SMOLLM */
    sl_unicode_range range; /* of the last character beyond ASCII, often that of the next one too */
} sl_word_scan;

/* Return the end of the word that begins at `at`; at is below length. */
size_t sl_word_end(sl_word_scan *scan, size_t at);

#endif
