/* decode.h: decodes ids to text, token by token. */

#ifndef STORYLLAMAS_DECODE_H
#define STORYLLAMAS_DECODE_H

#include <stdbool.h>

#include "../storyllamas.h"

/* The text that a piece decodes to, as a part of the tokenizer's decoded_text. */
typedef struct {
    uint32_t start;
    uint32_t length;
} sl_decoded;

/* Build the table of decoded pieces. Returns false if there is not enough memory. */
bool sl_index_decoded(sl_tokenizer *tokenizer);

/* The state of decoding token by token. Start with zeros. */
typedef struct {
    char pending[4]; /* bytes of an incomplete character */
    uint32_t pending_count;
    bool begun;  /* there was text, so the dummy prefix has been removed */
    bool joined; /* an incomplete character becomes one U+FFFD, and not one for each byte */
} sl_decoder;

/* Return the largest number of bytes that sl_decoder_next or sl_decoder_end writes. */
size_t sl_decoder_bound(const sl_tokenizer *tokenizer);

/* Write the text that a token completes. Returns its length. */
size_t sl_decoder_next(sl_decoder *decoder, const sl_tokenizer *tokenizer, int32_t id, char *text);

/* Write U+FFFD for the pending bytes, at the end of a text. Returns the length. */
size_t sl_decoder_end(sl_decoder *decoder, char *text);

#endif
