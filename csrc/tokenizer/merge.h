/* merge.h: encodes a word by byte-pair encoding: merges by score (merge_scored.c) or by rank
 * (merge_ranked.c). */

#ifndef STORYLLAMAS_MERGE_H
#define STORYLLAMAS_MERGE_H

#include <stdbool.h>

#include "../scratch.h"
#include "../storyllamas.h"

/* The ids of a text so far. */
typedef struct {
    int32_t *ids;
    size_t capacity;
    size_t count;        /* may exceed capacity; ids beyond it are not written */
    int32_t last;        /* the last id; -1: none */
    int32_t unk_id;      /* is not appended after itself: neighbouring unknown pieces become one */
    sl_scratch *scratch; /* for long words */
} sl_id_list;

/* Append an id. */
static inline void sl_put(sl_id_list *list, int32_t id) {
    if (id == list->unk_id && id == list->last) return;
    if (list->count < list->capacity) list->ids[list->count] = id;
    list->count++;
    list->last = id;
}

/* Append the ids of a word of valid UTF-8, merged by score. prefix puts a space in front of it. */
int sl_merge_scored(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
                    sl_id_list *list);

/* A merge of two pieces, in a hash table. The high half of the key is the rank and the low half the
 * id of the merged piece, so the lowest key merges first. */
typedef struct {
    uint32_t left;
    uint32_t right;
    uint64_t key; /* UINT64_MAX: the slot is free */
} sl_rank;

/* Check the merges by rank and build their table. Returns an error code. */
int sl_index_ranks(sl_tokenizer *tokenizer, const char *path);

/* Append the ids of a word, merged by rank. A word of SL_BYTE_LEVEL has no prefix. */
int sl_merge_ranked(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
                    sl_id_list *list);

#endif
