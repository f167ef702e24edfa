/* tokenizer.h: a tokenizer: a vocabulary and the tables that encode and decode use.
 *
 * The tokenizer gives the same ids as SentencePiece or as the tokenizers library of Hugging Face.
 * It normalizes a text (a space in front, spaces to U+2581) and splits it into symbols: characters
 * or bytes, and user-defined pieces. Then it merges neighbouring symbols, those of the highest
 * score or the lowest rank first and the leftmost among equals, until no merge is left (Sennrich et
 * al. 2016, arXiv:1508.07909; Kudo & Richardson 2018, arXiv:1808.06226).
 *
 * If two characters are not neighbours in any piece, no merge crosses the border between them. So
 * encode.c splits the text into words at these borders, looks each word up in a cache, and calls
 * merge_scored.c or merge_ranked.c for words that are not in the cache. */

#ifndef STORYLLAMAS_TOKENIZER_H
#define STORYLLAMAS_TOKENIZER_H

#include <stdbool.h>
#include <string.h>

#include "../storyllamas.h"
#include "added.h"
#include "decode.h"
#include "merge.h"

#define SL_SPACE "\xe2\x96\x81" /* U+2581, which replaces a space in pieces */
enum { SL_SPACE_BYTES = 3 };

/* Types of pieces, as in the weight file. */
enum {
    SL_PIECE_NORMAL = 1,
    SL_PIECE_UNKNOWN,
    SL_PIECE_CONTROL,
    SL_PIECE_USER_DEFINED,
    SL_PIECE_UNUSED,
    SL_PIECE_BYTE
};

/* The tokenizer owns all its memory but the arrays of the vocabulary. */
struct sl_tokenizer {
    sl_vocabulary vocabulary;
    void *copy; /* the arrays, if sl_tokenizer_open has copied them; else NULL */

    /* Encoding. */
    uint32_t *slots;    /* hash table of the pieces that text can merge to: id + 1, or 0 if free */
    uint32_t slot_mask; /* number of slots, a power of two, minus 1 */
    int32_t *user_defined;      /* ids, sorted by first byte, then longest first */
    uint32_t user_starts[257];  /* pieces with first byte b begin at user_starts[b] */
    int32_t byte_ids[256];      /* the byte pieces; -1: there is none */
    uint32_t longest_mergeable; /* bytes of the longest piece in slots */
    uint32_t longest;           /* bytes of the longest piece */
    bool has_unused;
    /* Borders between words, indexed by two neighbouring bytes as a uint16_t in memory. 1: no piece
     * has a character that ends in the first byte followed by one that begins with the second, so
     * no merge crosses the border. A space counts in both its forms, ' ' and U+2581. */
    uint8_t borders[1 << 16];
    sl_rank *ranks;          /* hash table of merges by rank; NULL for SL_SENTENCEPIECE */
    uint32_t rank_mask;      /* number of its slots, a power of two, minus 1 */
    uint64_t *filter;        /* a bit for pairs that may merge, see merge_ranked.c */
    uint32_t filter_mask;    /* number of its bits, a power of two, minus 1 */
    int32_t symbol_ids[256]; /* of ASCII characters, or of bytes for SL_BYTE_LEVEL; -1: none */
    sl_matcher raw;          /* for added tokens that are found before normalization */
    sl_matcher normalized;   /* for added tokens that are found after it */

    /* Decoding. */
    sl_decoded *decoded; /* [size]; empty for byte pieces */
    char *decoded_text;
};

/* Check a vocabulary and build the tables. The arrays must live as long as the tokenizer. path is
 * the weight file of the vocabulary, for error messages, or NULL. Call sl_tokenizer_free after an
 * error too. */
int sl_tokenizer_index(sl_tokenizer *tokenizer, const sl_vocabulary *vocabulary, const char *path);
void sl_tokenizer_free(sl_tokenizer *tokenizer);

static inline const char *sl_piece_text(const sl_tokenizer *tokenizer, int32_t id) {
    return tokenizer->vocabulary.text + tokenizer->vocabulary.offsets[id];
}

static inline uint32_t sl_piece_length(const sl_tokenizer *tokenizer, int32_t id) {
    return tokenizer->vocabulary.offsets[id + 1] - tokenizer->vocabulary.offsets[id];
}

static inline uint8_t sl_piece_type(const sl_tokenizer *tokenizer, int32_t id) {
    return tokenizer->vocabulary.types[id];
}

/* Return the id of the piece that text merges to, or -1. */
int32_t sl_find_piece(const sl_tokenizer *tokenizer, const char *text, uint32_t length);

/* Return the id of the piece whose text is that of two pieces together, or -1. */
int32_t sl_find_joint(const sl_tokenizer *tokenizer, int32_t left, int32_t right);

/* Remove the borders between characters that are neighbours in a piece. */
void sl_index_borders(sl_tokenizer *tokenizer, int32_t id);

/* Encode a text as sl_encode does, without a cache. Long words, and copies of the text, take
 * scratch memory. */
int sl_encode_prompt(const sl_tokenizer *tokenizer, sl_scratch *scratch, const char *text,
                     size_t length, int32_t *ids, size_t capacity, size_t *count);

/* Return an error: there is no scratch memory for `length` bytes of a text. */
int sl_reject_text_memory(size_t length);

/* Return the byte of a byte piece, whose text is "<0xNN>", or -1. */
static inline int sl_byte_of(const char *text, uint32_t length) {
    static const char digits[] = "0123456789ABCDEF";
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    const char *high = (const char *)memchr(digits, text[3], 16);
    const char *low = (const char *)memchr(digits, text[4], 16);
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

#endif
