/* decode.c: decodes ids to text. */

#include "decode.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "../error.h"
#include "../sizes.h"
#include "tokenizer.h"
#include "utf8.h"

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */
#define UNKNOWN " \xe2\x81\x87 "   /* U+2047: the text of SentencePiece's unknown piece */

enum { REPLACEMENT_BYTES = 3, UNKNOWN_BYTES = 5, SHORT_BYTES = 16 };

/* ---- The table of decoded pieces ------------------------------------------------------------- */

/* Write a piece and replace U+2581 by spaces. Returns the length. */
static size_t write_piece(const char *piece, size_t length, char *text) {
    char *out = text;
    for (size_t i = 0; i < length;) {
        if (length - i >= SL_SPACE_BYTES && memcmp(piece + i, SL_SPACE, SL_SPACE_BYTES) == 0) {
            *out++ = ' ';
            i += SL_SPACE_BYTES;
        } else {
            *out++ = piece[i++];
        }
    }
    return (size_t)(out - text);
}

/* Return whether the unknown piece is a special token, which has no text. */
static bool is_special_unknown(const sl_tokenizer *tokenizer) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    for (uint32_t i = 0; i < vocabulary->added_count; i++)
        if (vocabulary->added[i].id == (uint32_t)vocabulary->unk_id)
            return vocabulary->added[i].flags & SL_ADDED_SPECIAL;
    return false;
}

static size_t write_unknown(const sl_tokenizer *tokenizer, int32_t id, char *text) {
    if (tokenizer->vocabulary.kind == SL_SENTENCEPIECE) {
        memcpy(text, UNKNOWN, UNKNOWN_BYTES);
        return UNKNOWN_BYTES;
    }
    if (is_special_unknown(tokenizer)) return 0;
    memcpy(text, sl_piece_text(tokenizer, id), sl_piece_length(tokenizer, id));
    return sl_piece_length(tokenizer, id);
}

/* Write the text of a piece. Returns its length: 0 for a piece that decodes only together with
 * others, which is a byte piece, or a piece of SL_BYTE_LEVEL that is not valid UTF-8. */
static size_t write_decoded(const sl_tokenizer *tokenizer, int32_t id, char *text) {
    const char *piece = sl_piece_text(tokenizer, id);
    const uint32_t length = sl_piece_length(tokenizer, id);
    const uint8_t type = sl_piece_type(tokenizer, id);
    if (type == SL_PIECE_CONTROL || type == SL_PIECE_BYTE) return 0;
    if (type == SL_PIECE_UNKNOWN) return write_unknown(tokenizer, id, text);
    if (tokenizer->vocabulary.kind != SL_BYTE_LEVEL) return write_piece(piece, length, text);
    if (sl_utf8_valid(piece, length) < length) return 0;
    memcpy(text, piece, length);
    return length;
}

bool sl_index_decoded(sl_tokenizer *tokenizer) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    tokenizer->decoded = calloc(vocabulary->size, sizeof *tokenizer->decoded);
    tokenizer->decoded_text =
        sl_allocate(sl_size_add(vocabulary->text_bytes, UNKNOWN_BYTES + SHORT_BYTES), 1);
    if (!tokenizer->decoded || !tokenizer->decoded_text) return false;
    uint32_t start = 0;
    for (int32_t id = 0; id < (int32_t)vocabulary->size; id++) {
        const size_t length = write_decoded(tokenizer, id, tokenizer->decoded_text + start);
        tokenizer->decoded[id] = (sl_decoded){start, (uint32_t)length};
        start += (uint32_t)length;
    }
    memset(tokenizer->decoded_text + start, 0,
           SHORT_BYTES); /* append_text reads them after the last piece */
    return true;
}

/* ---- Token by token -------------------------------------------------------------------------- */

size_t sl_decoder_bound(const sl_tokenizer *tokenizer) {
    const size_t longest =
        tokenizer->longest > UNKNOWN_BYTES ? tokenizer->longest : (size_t)UNKNOWN_BYTES;
    const size_t each = tokenizer->vocabulary.kind == SL_BYTE_LEVEL ? REPLACEMENT_BYTES : 1;
    return each * longest + sizeof(((sl_decoder *)0)->pending) * REPLACEMENT_BYTES;
}

/* Write U+FFFD for the first pending bytes: one for each, or a single one if they are joined. */
static size_t write_replacement(const sl_decoder *decoder, uint32_t bytes, char *text) {
    const uint32_t count = decoder->joined && bytes ? 1 : bytes;
    for (uint32_t i = 0; i < count; i++)
        memcpy(text + i * REPLACEMENT_BYTES, REPLACEMENT, REPLACEMENT_BYTES);
    return count * (size_t)REPLACEMENT_BYTES;
}

/* Write the characters that the pending bytes complete, and U+FFFD for bytes that cannot be part of
 * a character. Only the last byte is new; those before it are the beginning of a character. */
static size_t write_pending(sl_decoder *decoder, char *text) {
    char *out = text;
    while (decoder->pending_count) {
        const int size = sl_utf8_character(decoder->pending, decoder->pending_count);
        if (size < 0) break;
        uint32_t taken = size ? (uint32_t)size : 1;
        if (!size && decoder->joined && decoder->pending_count > 1)
            taken = decoder->pending_count - 1;
        if (size)
            out = (char *)memcpy(out, decoder->pending, taken) + taken;
        else
            out += write_replacement(decoder, taken, out);
        decoder->pending_count -= taken;
        memmove(decoder->pending, decoder->pending + taken, decoder->pending_count);
    }
    return (size_t)(out - text);
}

static size_t write_byte(sl_decoder *decoder, char byte, char *text) {
    decoder->pending[decoder->pending_count++] = byte;
    return write_pending(decoder, text);
}

size_t sl_decoder_end(sl_decoder *decoder, char *text) {
    const size_t length = write_replacement(decoder, decoder->pending_count, text);
    decoder->pending_count = 0;
    return length;
}

/* Return whether the piece begins with the space that the tokenizer puts in front of a text. */
static bool has_prefix(const sl_tokenizer *tokenizer, int32_t id) {
    return tokenizer->vocabulary.dummy_prefix && sl_piece_type(tokenizer, id) != SL_PIECE_UNKNOWN &&
           sl_piece_length(tokenizer, id) >= SL_SPACE_BYTES &&
           memcmp(sl_piece_text(tokenizer, id), SL_SPACE, SL_SPACE_BYTES) == 0;
}

/* Write a piece of SL_BYTE_LEVEL. Its bytes may complete a character that earlier pieces began. */
static size_t decode_byte_level(sl_decoder *decoder, const sl_tokenizer *tokenizer, int32_t id,
                                char *text) {
    char *out = text;
    decoder->joined = true;
    decoder->begun = true;
    if (sl_piece_type(tokenizer, id) == SL_PIECE_UNKNOWN && !tokenizer->decoded[id].length)
        return 0;
    for (uint32_t i = 0; i < sl_piece_length(tokenizer, id); i++)
        out += write_byte(decoder, sl_piece_text(tokenizer, id)[i], out);
    return (size_t)(out - text);
}

/* Remove spaces from the first text, as the vocabulary's `strip` says. Returns the new length. */
static size_t strip_first(const sl_tokenizer *tokenizer, int32_t id, char *text, size_t length) {
    const int32_t strip = tokenizer->vocabulary.strip;
    if (strip == SL_STRIP_NONE || length == 0) return length;
    if (strip == SL_STRIP_SPACE) {
        if (*text != ' ') return length;
        memmove(text, text + 1, --length);
        return length;
    }
    size_t kept = 0;
    const char *piece = sl_piece_text(tokenizer, id);
    const uint32_t piece_length = sl_piece_length(tokenizer, id);
    for (uint32_t at = 0; at < piece_length;) {
        const bool space = piece_length - at >= SL_SPACE_BYTES &&
                           memcmp(piece + at, SL_SPACE, SL_SPACE_BYTES) == 0;
        if (!space) text[kept++] = piece[at];
        at += space ? SL_SPACE_BYTES : 1;
    }
    return kept;
}

static size_t decode_sentencepiece(sl_decoder *decoder, const sl_tokenizer *tokenizer, int32_t id,
                                   char *text) {
    const size_t pending = sl_decoder_end(decoder, text);
    if (sl_piece_type(tokenizer, id) == SL_PIECE_CONTROL) return pending;
    const uint32_t prefix = !decoder->begun && has_prefix(tokenizer, id);
    const uint32_t length = tokenizer->decoded[id].length - prefix;
    decoder->begun = true;
    memcpy(text + pending, tokenizer->decoded_text + tokenizer->decoded[id].start + prefix, length);
    return pending + length;
}

static size_t decode_bpe(sl_decoder *decoder, const sl_tokenizer *tokenizer, int32_t id,
                         char *text) {
    const sl_decoded piece = tokenizer->decoded[id];
    if (piece.length == 0) return 0;
    const size_t pending = sl_decoder_end(decoder, text);
    size_t length = piece.length;
    memcpy(text + pending, tokenizer->decoded_text + piece.start, length);
    if (!decoder->begun) length = strip_first(tokenizer, id, text + pending, length);
    decoder->begun = true;
    return pending + length;
}

size_t sl_decoder_next(sl_decoder *decoder, const sl_tokenizer *tokenizer, int32_t id, char *text) {
    const uint8_t type = sl_piece_type(tokenizer, id);
    const int32_t kind = tokenizer->vocabulary.kind;
    if (type == SL_PIECE_BYTE) {
        const int byte = sl_byte_of(sl_piece_text(tokenizer, id), sl_piece_length(tokenizer, id));
        size_t length = write_byte(decoder, (char)byte, text);
        if (!decoder->begun && kind == SL_BPE && length)
            length = strip_first(tokenizer, id, text, length);
        decoder->begun = true; /* only the first token is stripped */
        return length;
    }
    if (kind == SL_SENTENCEPIECE) return decode_sentencepiece(decoder, tokenizer, id, text);
    if (type == SL_PIECE_CONTROL) return 0; /* it does not end an incomplete character either */
    if (kind == SL_BYTE_LEVEL) return decode_byte_level(decoder, tokenizer, id, text);
    return decode_bpe(decoder, tokenizer, id, text);
}

/* ---- All tokens at once ---------------------------------------------------------------------- */

typedef struct {
    char *bytes;
    size_t capacity;
    size_t length; /* may exceed capacity */
} text_out;

/* Append a text, or count its length if it does not fit. A short text is copied as SHORT_BYTES
 * bytes, which is faster; the text that follows overwrites the excess. SHORT_BYTES bytes must be
 * readable. */
static void append_text(text_out *out, const char *text, size_t length) {
    if (length <= SHORT_BYTES && out->length + SHORT_BYTES <= out->capacity)
        memcpy(out->bytes + out->length, text, SHORT_BYTES);
    else if (out->length + length <= out->capacity)
        memcpy(out->bytes + out->length, text, length);
    out->length += length;
}

static int decode(const sl_tokenizer *tokenizer, const int32_t *ids, size_t count, char *part,
                  text_out *out) {
    sl_decoder decoder = {0};
    for (size_t i = 0; i < count; i++) {
        const int32_t id = ids[i];
        if (id < 0 || (uint32_t)id >= tokenizer->vocabulary.size)
            return sl_fail(SL_ERROR_ARGUMENT,
                           "token id %" PRId32 " is not in the vocabulary: give 0 to %" PRIu32, id,
                           tokenizer->vocabulary.size - 1);
        const sl_decoded piece = tokenizer->decoded[id];
        if (piece.length && decoder.begun && !decoder.pending_count)
            append_text(out, tokenizer->decoded_text + piece.start, piece.length);
        else
            append_text(out, part, sl_decoder_next(&decoder, tokenizer, id, part));
    }
    append_text(out, part, sl_decoder_end(&decoder, part));
    return SL_OK;
}

int sl_decode(const sl_tokenizer *tokenizer, const int32_t *ids, size_t count, char *text,
              size_t capacity, size_t *length) {
    *length = 0;
    char *part = calloc(1, sl_decoder_bound(tokenizer) + SHORT_BYTES);
    if (!part) return sl_fail(SL_ERROR_MEMORY, "not enough memory to decode %zu ids", count);
    text_out out = {text, capacity, 0};
    int status = decode(tokenizer, ids, count, part, &out);
    free(part);
    *length = out.length;
    if (!status && out.length > capacity)
        status = sl_fail(SL_ERROR_ARGUMENT, "the text has %zu bytes and there is room for %zu",
                         out.length, capacity);
    return status;
}
