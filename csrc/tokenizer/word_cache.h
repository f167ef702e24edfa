/* word_cache.h: the ids of words met before.
 *
 * A word has one place, which its hash names; a word that comes later takes it over. */

#ifndef STORYLLAMAS_WORD_CACHE_H
#define STORYLLAMAS_WORD_CACHE_H

#include <string.h>

#include "tokenizer.h"

enum {
    SL_WORD_BYTES = 24, /* of the longest word that is kept */
    SL_WORD_IDS = 9,    /* most ids of one, so that a place is a cache line */
    SL_WORD_PLACES = 1 << 16
};

typedef struct {
    uint64_t parts[SL_WORD_BYTES / 8]; /* the word's bytes, then zeros */
    uint8_t length;
} sl_word_key;

typedef struct {
    uint64_t parts[SL_WORD_BYTES / 8];
    uint8_t length; /* 0: the place is free */
    uint8_t count;
    int32_t ids[SL_WORD_IDS];
} sl_word;

_Static_assert(sizeof(sl_word) == 64, "a word is a cache line");

struct sl_word_cache {
    const sl_tokenizer *tokenizer;
    void *memory;   /* calloc's, whose pages take up memory only once they are used */
    sl_word *words; /* [SL_WORD_PLACES], aligned */
};

/* The key of a word of at most SL_WORD_BYTES; readable is how many bytes may be read from it. */
static inline sl_word_key sl_make_key(const char *word, size_t length, size_t readable) {
    static const uint8_t ones_then_zeros[2 * SL_WORD_BYTES] = {
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    sl_word_key key = {.length = (uint8_t)length};
    if (readable < SL_WORD_BYTES) {
        memcpy(key.parts, word, length);
        return key;
    }
    uint64_t mask[SL_WORD_BYTES / 8];
    memcpy(key.parts, word, SL_WORD_BYTES);
    memcpy(mask, ones_then_zeros + SL_WORD_BYTES - length, SL_WORD_BYTES);
    for (int i = 0; i < SL_WORD_BYTES / 8; i++) key.parts[i] &= mask[i];
    return key;
}

static inline sl_word *sl_word_place(const sl_word_cache *cache, const sl_word_key *key) {
    uint64_t hash = key->parts[0] * UINT64_C(0x9e3779b97f4a7c15);
    hash ^= key->parts[1] * UINT64_C(0xc2b2ae3d27d4eb4f);
    hash ^= key->parts[2] * UINT64_C(0x165667b19e3779f9);
    hash = (hash ^ hash >> 32) * UINT64_C(0x9e3779b97f4a7c15);
    return &cache->words[(hash >> 32) % SL_WORD_PLACES];
}

static inline bool sl_word_is(const sl_word *word, const sl_word_key *key) {
    uint64_t difference = word->length ^ key->length;
    for (int i = 0; i < SL_WORD_BYTES / 8; i++) difference |= word->parts[i] ^ key->parts[i];
    return difference == 0;
}

#endif
