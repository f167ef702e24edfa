/* tokenizer.h: a vocabulary with its tables, and what the files of the tokenizer share.
 *
 * The tokenizer gives the same ids as SentencePiece's byte-pair encoding. It normalizes a text (a
 * space in front, spaces to U+2581) and splits it into symbols: user-defined pieces, and characters
 * elsewhere. Then it merges neighbouring symbols whose joint text is a piece, the highest score
 * first and the leftmost among equals, until none is left (Sennrich et al. 2016, arXiv:1508.07909;
 * Kudo & Richardson 2018, arXiv:1808.06226).
 *
 * If two characters are not neighbours in any piece, no merge crosses the border between them. So
 * encode.c splits the text into words at these borders, looks each word up in a cache, and calls
 * merge.c for words that are not in the cache. */

#ifndef STORYLLAMAS_TOKENIZER_H
#define STORYLLAMAS_TOKENIZER_H

#include <stdbool.h>
#include <string.h>

#include "../storyllamas.h"

#define SL_SPACE "\xe2\x96\x81" /* U+2581 stands for a space in pieces */
enum { SL_SPACE_BYTES = 3 };

enum {
    SL_PIECE_NORMAL = 1,
    SL_PIECE_UNKNOWN,
    SL_PIECE_CONTROL,
    SL_PIECE_USER_DEFINED,
    SL_PIECE_UNUSED,
    SL_PIECE_BYTE
};

/* The text that a piece decodes to. */
typedef struct {
    uint32_t start; /* in the tokenizer's decoded_text */
    uint32_t length;
} sl_decoded;

/* The tokenizer owns all its memory but the arrays of the vocabulary. */
struct sl_tokenizer {
    sl_vocabulary vocabulary;
    void *copy; /* sl_tokenizer_open's copy of these arrays, or NULL */

    /* Encoding. */
    uint32_t *slots;    /* hash table of the pieces that text can merge to: id + 1, or 0 if free */
    uint32_t slot_mask; /* number of slots, a power of two, minus 1 */
    int32_t *user_defined;      /* ids, sorted by first byte, then longest first */
    uint32_t user_starts[257];  /* pieces with first byte b begin at user_starts[b] */
    int32_t byte_ids[256];      /* the byte pieces; -1: there is none */
    uint32_t longest_mergeable; /* bytes of the longest piece in slots */
    uint32_t longest;           /* bytes of the longest piece */
    bool has_unused;
    /* Whether there is a border between two bytes, indexed by the two bytes as they lie in memory:
     * 1 if no piece has a character that ends in the first byte before one that begins with the
     * second. A space counts in both its forms, ' ' and U+2581. */
    uint8_t borders[1 << 16];

    /* Decoding. */
    sl_decoded *decoded; /* [size]; empty for byte pieces */
    char *decoded_text;
};

/* ---- utf8.c ---------------------------------------------------------------------------------- */

/* Return the length of the UTF-8 character that text begins with, 0 if it is not valid, or -1 if
 * the text ends before that is certain. length is at least 1. */
int sl_utf8_character(const char *text, size_t length);

/* Return how many bytes of valid UTF-8 the text begins with. */
size_t sl_utf8_valid(const char *text, size_t length);

/* ---- vocabulary.c ---------------------------------------------------------------------------- */

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

/* Return the byte that a piece spelt "<0xNN>" stands for, or -1. */
static inline int sl_byte_of(const char *text, uint32_t length) {
    static const char digits[] = "0123456789ABCDEF";
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    const char *high = (const char *)memchr(digits, text[3], 16);
    const char *low = (const char *)memchr(digits, text[4], 16);
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

/* ---- merge.c --------------------------------------------------------------------------------- */

typedef struct {
    int32_t *ids;
    size_t capacity;
    size_t count;   /* may exceed capacity; ids beyond it are not written */
    int32_t last;   /* the last id; -1: none */
    int32_t unk_id; /* never follows itself: unknown neighbours are one unknown piece */
} sl_id_list;

/* Append an id. */
static inline void sl_put(sl_id_list *list, int32_t id) {
    if (id == list->unk_id && id == list->last) return;
    if (list->count < list->capacity) list->ids[list->count] = id;
    list->count++;
    list->last = id;
}

/* Append the ids of a word of valid UTF-8. prefix puts a space in front of it. */
int sl_merge(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
             sl_id_list *list);

/* ---- decode.c -------------------------------------------------------------------------------- */

/* Build the table of decoded pieces. Returns false if there is not enough memory. */
bool sl_index_decoded(sl_tokenizer *tokenizer);

/* The state of decoding token by token. Start with zeros. */
typedef struct {
    char pending[4]; /* bytes that may become a character */
    uint32_t pending_count;
    bool begun; /* there was text, so a dummy prefix is behind */
} sl_decoder;

/* Return how many bytes a call of sl_decoder_next or sl_decoder_end writes at most. */
size_t sl_decoder_bound(const sl_tokenizer *tokenizer);

/* Write the text that a token completes. Returns its length. */
size_t sl_decoder_next(sl_decoder *decoder, const sl_tokenizer *tokenizer, int32_t id, char *text);

/* Write U+FFFD for every pending byte. Returns the length. */
size_t sl_decoder_end(sl_decoder *decoder, char *text);

#endif
