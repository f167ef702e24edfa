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

/* A merge of two pieces in the hash table of merges. Its key is the rank, then the id of the piece
 * that it makes, so that the lowest key merges first. */
typedef struct {
    uint32_t left;
    uint32_t right;
    uint64_t key; /* UINT64_MAX: the slot is free */
} sl_rank;

/* An added token as it is searched for. */
typedef struct {
    const char *text;
    uint32_t length;
    int32_t id;
    uint32_t flags;
} sl_needle;

/* Finds added tokens in a text. */
typedef struct {
    sl_needle *needles; /* [count], sorted by text */
    uint32_t count;
    bool has_plain;   /* some are not special */
    bool begins[256]; /* the first bytes of needles */
    char *text;       /* of all needles */
} sl_matcher;

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
    sl_rank *ranks;          /* hash table of merges by rank; NULL for SL_SENTENCEPIECE */
    uint32_t rank_mask;      /* number of its slots, a power of two, minus 1 */
    uint64_t *filter;        /* a bit for pairs that may merge, see ranks.c */
    uint32_t filter_mask;    /* number of its bits, a power of two, minus 1 */
    int32_t symbol_ids[256]; /* of ASCII characters, or of bytes for SL_BYTE_LEVEL; -1: none */
    sl_matcher raw;          /* of added tokens as the text is given */
    sl_matcher normalized;   /* of added tokens after normalization */

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

/* Return the id of the piece that the texts of two pieces make, or -1. */
int32_t sl_find_joint(const sl_tokenizer *tokenizer, int32_t left, int32_t right);

/* Take away the borders inside a piece. */
void sl_index_borders(sl_tokenizer *tokenizer, int32_t id);

/* Report what is wrong with a vocabulary, or with the weight file that holds it. */
int sl_reject_vocabulary(const char *path, const char *reason);
int sl_reject_piece(const char *path, int32_t id, const char *reason);

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

/* ---- ranks.c --------------------------------------------------------------------------------- */

/* Check the merges by rank and build their table. Returns an error code. */
int sl_index_ranks(sl_tokenizer *tokenizer, const char *path);

/* Do the same as sl_merge by ranks. A word of SL_BYTE_LEVEL has no prefix. */
int sl_merge_ranked(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
                    sl_id_list *list);

/* ---- added.c --------------------------------------------------------------------------------- */

/* Build the matchers of added tokens. Returns false if there is not enough memory. */
bool sl_index_added(sl_tokenizer *tokenizer);
void sl_matcher_free(sl_matcher *matcher);

/* An added token in a text, with the whitespace that it takes in. */
typedef struct {
    size_t start;
    size_t end;
    int32_t id;
} sl_match;

/* A search for added tokens in a text. */
typedef struct {
    const sl_matcher *matcher;
    bool special; /* special tokens count */
    const char *text;
    size_t length;
    size_t at;        /* where the search continues */
    size_t done;      /* the end of the last match */
    size_t white_end; /* the end of whitespace that a match took in */
} sl_search;

/* Find the next added token; returns whether there is one. */
bool sl_search_next(sl_search *search, sl_match *match);

/* Return whether a search can find anything. */
static inline bool sl_can_match(const sl_matcher *matcher, bool special) {
    return matcher->has_plain || (special && matcher->count);
}

/* ---- decode.c -------------------------------------------------------------------------------- */

/* Build the table of decoded pieces. Returns false if there is not enough memory. */
bool sl_index_decoded(sl_tokenizer *tokenizer);

/* The state of decoding token by token. Start with zeros. */
typedef struct {
    char pending[4]; /* bytes that may become a character */
    uint32_t pending_count;
    bool begun;  /* there was text, so a dummy prefix is behind */
    bool joined; /* pending bytes that become no character are one U+FFFD together */
} sl_decoder;

/* Return how many bytes a call of sl_decoder_next or sl_decoder_end writes at most. */
size_t sl_decoder_bound(const sl_tokenizer *tokenizer);

/* Write the text that a token completes. Returns its length. */
size_t sl_decoder_next(sl_decoder *decoder, const sl_tokenizer *tokenizer, int32_t id, char *text);

/* Write U+FFFD for every pending byte. Returns the length. */
size_t sl_decoder_end(sl_decoder *decoder, char *text);

#endif
