/* word_cache.h: a cache of words and their ids.
 *
 * The hash of a word selects its slot. A later word with the same slot replaces it. */

#ifndef STORYLLAMAS_WORD_CACHE_H
#define STORYLLAMAS_WORD_CACHE_H

#include <string.h>

#include "tokenizer.h"

enum {
    SL_WORD_BYTES = 24, /* bytes of the longest word in the cache */
    SL_WORD_IDS = 7,    /* largest number of a word's ids, so that a slot is a cache line */
    SL_WORD_SLOTS = 1 << 16
};

/* The bytes of a word, padded with zeros. */
typedef struct {
    uint64_t first, second, third;
    uint32_t length;
} sl_word_key;

typedef struct {
    sl_word_key key; /* length 0: the slot is free */
    uint32_t count;
    int32_t ids[SL_WORD_IDS];
} sl_word;

_Static_assert(sizeof(sl_word) == 64, "a word is a cache line");

struct sl_word_cache {
    const sl_tokenizer *tokenizer;
    void *memory;   /* from calloc: pages take up memory from their first use on */
    sl_word *words; /* [SL_WORD_SLOTS], aligned */
};

/* Return 8 bytes. Those whose mask is 0 are cleared. */
static inline uint64_t sl_load_masked(const char *bytes, const uint8_t *mask) {
    uint64_t part, ones;
    memcpy(&part, bytes, sizeof part);
    memcpy(&ones, mask, sizeof ones);
    return part & ones;
}

/* Return the key of a word of at most SL_WORD_BYTES. `readable` bytes may be read from it. */
static inline sl_word_key sl_make_key(const char *word, size_t length, size_t readable) {
    static const uint8_t ones_then_zeros[2 * SL_WORD_BYTES] = {
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    const uint8_t *mask = ones_then_zeros + SL_WORD_BYTES - length;
    char padded[SL_WORD_BYTES] = {0};
    if (readable < SL_WORD_BYTES) word = memcpy(padded, word, length);
    return (sl_word_key){sl_load_masked(word, mask), sl_load_masked(word + 8, mask + 8),
                         sl_load_masked(word + 16, mask + 16), (uint32_t)length};
}

/* Return the slot of a word, whether it is in the cache or not. */
static inline sl_word *sl_word_slot(const sl_word_cache *cache, sl_word_key key) {
    uint64_t hash = key.first * UINT64_C(0x9e3779b97f4a7c15);
    hash ^= key.second * UINT64_C(0xc2b2ae3d27d4eb4f);
    hash ^= key.third * UINT64_C(0x165667b19e3779f9);
    hash = (hash ^ hash >> 32) * UINT64_C(0x9e3779b97f4a7c15);
    return &cache->words[(hash >> 32) % SL_WORD_SLOTS];
}

/* Return whether the word in a slot has this key. */
static inline bool sl_word_is(const sl_word *word, sl_word_key key) {
    return ((word->key.first ^ key.first) | (word->key.second ^ key.second) |
            (word->key.third ^ key.third) | (word->key.length ^ key.length)) == 0;
}

#endif
