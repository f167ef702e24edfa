/* tokenizer.h: a vocabulary ready to use, and what the tokenizer's files share.
 *
 * SentencePiece's byte-pair encoding, id for id. A text is normalized (a space in front, spaces to
 * U+2581) and cut into symbols: user-defined pieces where they stand, characters elsewhere.
 * Neighbours whose joint text is a piece are merged, the highest score first and the leftmost of
 * equals, until none is left (Sennrich et al. 2016, arXiv:1508.07909; Kudo & Richardson 2018,
 * arXiv:1808.06226).
 *
 * No merge crosses the border of two characters that stand side by side in no piece. So encode.c
 * cuts the text at these borders into words, looks each word up in a cache and has merge.c encode
 * those that are not there. */

#ifndef STORYLLAMAS_TOKENIZER_H
#define STORYLLAMAS_TOKENIZER_H

#include <stdbool.h>

#include "../storyllamas.h"

#define SL_SPACE "\xe2\x96\x81" /* U+2581, how pieces write a space */
enum { SL_SPACE_BYTES = 3 };

enum {
    SL_PIECE_NORMAL = 1,
    SL_PIECE_UNKNOWN,
    SL_PIECE_CONTROL,
    SL_PIECE_USER_DEFINED,
    SL_PIECE_UNUSED,
    SL_PIECE_BYTE
};

/* What a piece decodes to. */
typedef struct {
    uint32_t start; /* in the tokenizer's decoded text */
    uint32_t length;
} sl_decoded;

/* The arrays of the vocabulary are borrowed, all other memory is the tokenizer's own. */
struct sl_tokenizer {
    sl_vocabulary vocabulary;
    void *copy; /* of the vocabulary's arrays, if sl_tokenizer_open made one */

    /* Encoding. */
    uint32_t *slots;       /* hash table of the pieces that text can merge to: id + 1, 0 is free */
    uint32_t slot_mask;    /* number of slots, a power of two, minus 1 */
    int32_t *user_defined; /* ids by first byte, then longest first */
    uint32_t user_starts[257];  /* those that begin with byte b: user_starts[b … b + 1] */
    int32_t byte_ids[256];      /* -1: there is none */
    uint32_t longest_mergeable; /* bytes of the longest piece in slots */
    uint32_t longest;           /* bytes of the longest piece */
    bool has_unused;
    /* Whether no piece holds two characters side by side of which the first ends in the one byte
     * and the second begins with the other, [the two bytes as they are in memory]. Spaces stand in
     * as they are in text and as they are in pieces. */
    uint8_t borders[1 << 16];

    /* Decoding. */
    sl_decoded *decoded; /* [size]; of byte pieces nothing */
    char *decoded_text;
};

/* ---- utf8.c ---------------------------------------------------------------------------------- */

/* Length of the valid UTF-8 character that text begins with; 0 if it begins with none, -1 if it
 * ends before that is certain. length is at least 1. */
int sl_utf8_character(const char *text, size_t length);

/* Bytes of valid UTF-8 that text begins with. */
size_t sl_utf8_valid(const char *text, size_t length);

/* ---- vocabulary.c ---------------------------------------------------------------------------- */

/* Check a vocabulary, borrow its arrays and build the tables. On failure sl_tokenizer_free is still
 * due. path names the weight file that it comes from; NULL: it comes from the caller. */
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

/* The piece that text can merge to and that has this text, or -1. */
int32_t sl_find_piece(const sl_tokenizer *tokenizer, const char *text, uint32_t length);

/* The byte that a piece spelt "<0xNN>" stands for, or -1. */
int sl_byte_of(const char *text, uint32_t length);

/* ---- merge.c --------------------------------------------------------------------------------- */

typedef struct {
    int32_t *ids;
    size_t capacity;
    size_t count;   /* may pass capacity */
    int32_t last;   /* the id put last; -1: none */
    int32_t unk_id; /* is not put after itself: neighbours that are no piece are one unknown */
} sl_id_list;

static inline void sl_put(sl_id_list *list, int32_t id) {
    if (id == list->unk_id && id == list->last) return;
    if (list->count < list->capacity) list->ids[list->count] = id;
    list->count++;
    list->last = id;
}

/* Encode a word of valid UTF-8, with a space in front if so said. */
int sl_merge(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
             sl_id_list *list);

/* ---- decode.c -------------------------------------------------------------------------------- */

/* Build the table of what pieces decode to; returns false if memory is short. */
bool sl_index_decoded(sl_tokenizer *tokenizer);

/* A text coming in token by token. Start with zeros. */
typedef struct {
    char pending[4]; /* bytes that may yet become a character */
    uint32_t pending_count;
    bool begun; /* the dummy prefix is behind */
} sl_decoder;

/* Most bytes that one call of sl_decoder_next or sl_decoder_end writes. */
size_t sl_decoder_bound(const sl_tokenizer *tokenizer);

/* Write the text that a token completes; returns its length. */
size_t sl_decoder_next(sl_decoder *decoder, const sl_tokenizer *tokenizer, int32_t id, char *text);

/* Write U+FFFD for every byte still pending; returns the length. */
size_t sl_decoder_end(sl_decoder *decoder, char *text);

#endif
