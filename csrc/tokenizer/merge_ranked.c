/* merge_ranked.c: encodes one word of a tokenizer.json: merges pieces by the rank of their merge.
 *
 * A word begins as symbols: the pieces of its characters or bytes. The neighbours whose merge has
 * the lowest rank merge first, the leftmost among equals, until none is left. Few symbols are
 * merged in an array, many with a heap and a linked list, in O(n log n). */

#include "merge.h"

#include <inttypes.h>
#include <stdlib.h>

#include "../error.h"
#include "../sizes.h"
#include "tokenizer.h"
#include "utf8.h"
#include "vocabulary.h"

#define NO_KEY UINT64_MAX   /* the pair does not merge */
#define NO_PLACE UINT32_MAX /* no symbol */

enum {
    SMALL_RANKED_WORD = 64, /* bytes of a word that needs no memory but the stack */
    MAX_SYMBOLS = SL_SPACE_BYTES * (SMALL_RANKED_WORD + 1),
    FILTER_BITS = 4, /* for every slot of the table of merges, which is half full at most */
    FEW_SYMBOLS = 96 /* more are merged with the heap */
};

/* ---- The table of merges --------------------------------------------------------------------- */

static inline sl_rank *rank_slot(const sl_tokenizer *tokenizer, int32_t left, int32_t right) {
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint32_t at = (uint32_t)((pair * UINT64_C(0x9e3779b97f4a7c15)) >> 32);
    for (;; at++) {
        sl_rank *slot = &tokenizer->ranks[at & tokenizer->rank_mask];
        if (slot->key == NO_KEY || (slot->left == (uint32_t)left && slot->right == (uint32_t)right))
            return slot;
    }
}

/* Return the bit of a pair in the filter of pairs that may merge. Most pairs do not merge, and the
 * filter fits in smaller caches than the table. */
static inline uint32_t filter_bit(const sl_tokenizer *tokenizer, int32_t left, int32_t right) {
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    return (uint32_t)((pair * UINT64_C(0xc2b2ae3d27d4eb4f)) >> 32) & tokenizer->filter_mask;
}

/* Return the key of the merge of two pieces, or NO_KEY. */
static inline uint64_t find_key(const sl_tokenizer *tokenizer, int32_t left, int32_t right) {
    const uint32_t bit = filter_bit(tokenizer, left, right);
    if (!(tokenizer->filter[bit / 64] >> bit % 64 & 1)) return NO_KEY;
    return rank_slot(tokenizer, left, right)->key;
}

static inline int32_t merged_id(uint64_t key) {
    return (int32_t)(uint32_t)key;
}

/* Check a merge. Returns the reason if it is wrong, or NULL, and sets *id to the merged piece. */
static const char *check_merge(const sl_tokenizer *tokenizer, sl_merge_pair pair, int32_t *id) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    if (pair.left >= vocabulary->size || pair.right >= vocabulary->size)
        return "a merge of its tokenizer names a piece that is not there";
    const int32_t parts[2] = {(int32_t)pair.left, (int32_t)pair.right};
    for (int i = 0; i < 2; i++)
        if (sl_piece_type(tokenizer, parts[i]) == SL_PIECE_BYTE ||
            sl_piece_type(tokenizer, parts[i]) == SL_PIECE_UNKNOWN)
            return "a merge of its tokenizer joins an unknown or a byte piece";
    *id = sl_find_joint(tokenizer, parts[0], parts[1]);
    return *id < 0 ? "a merge of its tokenizer makes no piece" : NULL;
}

int sl_index_ranks(sl_tokenizer *tokenizer, const char *path) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    uint32_t count = 64;
    while (count < 2 * (uint64_t)vocabulary->merge_count) count *= 2;
    tokenizer->ranks = sl_allocate(count, sizeof *tokenizer->ranks);
    tokenizer->rank_mask = count - 1;
    if (!tokenizer->ranks)
        return sl_fail(SL_ERROR_MEMORY, "not enough memory for %" PRIu32 " merges",
                       vocabulary->merge_count);
    memset(tokenizer->ranks, 0xff, count * sizeof *tokenizer->ranks);
    tokenizer->filter = calloc(FILTER_BITS * (size_t)count / 64, sizeof *tokenizer->filter);
    tokenizer->filter_mask = FILTER_BITS * count - 1;
    if (!tokenizer->filter)
        return sl_fail(SL_ERROR_MEMORY, "not enough memory for %" PRIu32 " merges",
                       vocabulary->merge_count);
    for (uint32_t rank = 0; rank < vocabulary->merge_count; rank++) {
        const sl_merge_pair pair = vocabulary->merges[rank];
        int32_t id = -1;
        const char *reason = check_merge(tokenizer, pair, &id);
        if (reason) return sl_reject_vocabulary(path, reason);
        sl_rank *slot = rank_slot(tokenizer, (int32_t)pair.left, (int32_t)pair.right);
        if (slot->key != NO_KEY)
            return sl_reject_vocabulary(path, "a merge of its tokenizer is there twice");
        *slot = (sl_rank){pair.left, pair.right, (uint64_t)rank << 32 | (uint32_t)id};
        const uint32_t bit = filter_bit(tokenizer, (int32_t)pair.left, (int32_t)pair.right);
        tokenizer->filter[bit / 64] |= UINT64_C(1) << bit % 64;
        if (vocabulary->kind == SL_BPE) sl_index_borders(tokenizer, id);
    }
    return SL_OK;
}

/* ---- Symbols --------------------------------------------------------------------------------- */

typedef struct {
    const sl_tokenizer *tokenizer;
    int32_t *ids;
    uint32_t count;
    bool after_unknown; /* the last symbol is an unknown piece */
} symbols;

static void add_symbol(symbols *s, int32_t id) {
    s->ids[s->count++] = id;
    s->after_unknown = false;
}

/* Add the unknown piece, if the vocabulary has one. */
static void add_unknown(symbols *s) {
    const sl_vocabulary *vocabulary = &s->tokenizer->vocabulary;
    if (vocabulary->unk_id < 0 || (s->after_unknown && vocabulary->fuse_unk)) return;
    add_symbol(s, vocabulary->unk_id);
    s->after_unknown = true;
}

static void add_character(symbols *s, const char *character, uint32_t length) {
    const sl_tokenizer *tokenizer = s->tokenizer;
    const int32_t id = length == 1 ? tokenizer->symbol_ids[(uint8_t)*character]
                                   : sl_find_piece(tokenizer, character, length);
    if (id >= 0)
        add_symbol(s, id);
    else if (!tokenizer->vocabulary.byte_fallback)
        add_unknown(s);
    else
        for (uint32_t i = 0; i < length; i++)
            add_symbol(s, tokenizer->byte_ids[(uint8_t)character[i]]);
}

static void add_characters(symbols *s, bool prefix, const char *word, size_t length) {
    if (prefix) add_character(s, SL_SPACE, SL_SPACE_BYTES);
    for (size_t at = 0, size; at < length; at += size) {
        size = (size_t)sl_utf8_character(word + at, length - at);
        if (word[at] == ' ')
            add_character(s, SL_SPACE, SL_SPACE_BYTES);
        else
            add_character(s, word + at, (uint32_t)size);
    }
}

static void add_bytes(symbols *s, const char *word, size_t length) {
    for (size_t i = 0; i < length; i++) {
        const int32_t id = s->tokenizer->symbol_ids[(uint8_t)word[i]];
        if (id >= 0)
            add_symbol(s, id);
        else
            add_unknown(s);
    }
}

static void add_word(symbols *s, bool prefix, const char *word, size_t length) {
    if (s->tokenizer->vocabulary.kind == SL_BYTE_LEVEL)
        add_bytes(s, word, length);
    else
        add_characters(s, prefix, word, length);
}

/* ---- Few symbols ----------------------------------------------------------------------------- */

/* Merge symbols in their array. */
static void merge_few(symbols *s) {
    uint64_t keys[FEW_SYMBOLS]; /* of each symbol and the next */
    int32_t *ids = s->ids;
    uint32_t pairs = s->count ? s->count - 1 : 0;
    for (uint32_t i = 0; i < pairs; i++) keys[i] = find_key(s->tokenizer, ids[i], ids[i + 1]);
    for (; pairs; pairs--) {
        uint64_t best = keys[0];
        uint32_t at = 0;
        for (uint32_t i = 1; i < pairs; i++) best = keys[i] < best ? keys[i] : best;
        if (best == NO_KEY) break;
        while (keys[at] != best) at++;
        ids[at] = merged_id(best);
        const size_t after = pairs - at - 1; /* pairs after the merged one */
        memmove(ids + at + 1, ids + at + 2, after * sizeof *ids);
        memmove(keys + at, keys + at + 1, after * sizeof *keys);
        if (after) keys[at] = find_key(s->tokenizer, ids[at], ids[at + 1]);
        if (at) keys[at - 1] = find_key(s->tokenizer, ids[at - 1], ids[at]);
    }
    s->count = s->count ? pairs + 1 : 0;
}

/* ---- Many symbols ---------------------------------------------------------------------------- */

/* A pair of neighbours that may merge. */
typedef struct {
    uint64_t key;
    uint32_t left;
} candidate;

typedef struct {
    const sl_tokenizer *tokenizer;
    int32_t *ids;       /* -1: merged into a symbol before it */
    uint32_t *previous; /* NO_PLACE before the first */
    uint32_t *next;     /* NO_PLACE after the last */
    candidate *heap;    /* heap[0] has the lowest key and is the leftmost with it */
    size_t heap_count;
} chain;

static bool is_candidate_better(candidate a, candidate b) {
    return a.key < b.key || (a.key == b.key && a.left < b.left);
}

static void push_candidate(chain *c, candidate pair) {
    size_t at = c->heap_count++;
    for (; at && is_candidate_better(pair, c->heap[(at - 1) / 2]); at = (at - 1) / 2)
        c->heap[at] = c->heap[(at - 1) / 2];
    c->heap[at] = pair;
}

static candidate pop_candidate(chain *c) {
    const candidate top = c->heap[0], last = c->heap[--c->heap_count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < c->heap_count; at = child) {
        if (child + 1 < c->heap_count && is_candidate_better(c->heap[child + 1], c->heap[child]))
            child++;
        if (!is_candidate_better(c->heap[child], last)) break;
        c->heap[at] = c->heap[child];
    }
    c->heap[at] = last;
    return top;
}

/* Return the key of a symbol and the next, or NO_KEY. */
static uint64_t key_of_pair(const chain *c, uint32_t left) {
    if (left == NO_PLACE || c->ids[left] < 0 || c->next[left] == NO_PLACE) return NO_KEY;
    return find_key(c->tokenizer, c->ids[left], c->ids[c->next[left]]);
}

/* Add a symbol and the next to the heap if they merge. */
static void consider(chain *c, uint32_t left) {
    const uint64_t key = key_of_pair(c, left);
    if (key != NO_KEY) push_candidate(c, (candidate){key, left});
}

/* Merge pairs until none is left. A pair that has changed since it entered the heap has another key
 * and is skipped. */
static void merge_chain(chain *c, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        c->previous[i] = i ? i - 1 : NO_PLACE;
        c->next[i] = i + 1 < count ? i + 1 : NO_PLACE;
    }
    for (uint32_t i = 0; i + 1 < count; i++) consider(c, i);
    while (c->heap_count) {
        const candidate pair = pop_candidate(c);
        if (key_of_pair(c, pair.left) != pair.key) continue;
        const uint32_t right = c->next[pair.left], after = c->next[right];
        c->ids[pair.left] = merged_id(pair.key);
        c->ids[right] = -1;
        c->next[pair.left] = after;
        if (after != NO_PLACE) c->previous[after] = pair.left;
        consider(c, c->previous[pair.left]);
        consider(c, pair.left);
    }
}

/* Merge symbols with a heap and a linked list. Returns false if there is not enough memory. */
static bool merge_many(symbols *s, sl_scratch *scratch) {
    chain c = {.tokenizer = s->tokenizer, .ids = s->ids};
    c.previous = sl_scratch_take(scratch, s->count, sizeof *c.previous);
    c.next = sl_scratch_take(scratch, s->count, sizeof *c.next);
    c.heap = sl_scratch_take(scratch, sl_size_multiply(2, s->count), sizeof *c.heap);
    const bool enough = c.previous && c.next && c.heap;
    if (enough) {
        merge_chain(&c, s->count);
        uint32_t kept = 0;
        for (uint32_t i = 0; i < s->count; i++)
            if (s->ids[i] >= 0) s->ids[kept++] = s->ids[i];
        s->count = kept;
    }
    sl_scratch_give(scratch, c.heap);
    sl_scratch_give(scratch, c.next);
    sl_scratch_give(scratch, c.previous);
    return enough;
}

/* ---- Words ----------------------------------------------------------------------------------- */

/* Merge the symbols and append their ids. Returns false if there is not enough memory. */
static bool put_merged(symbols *s, sl_id_list *list) {
    if (s->count <= FEW_SYMBOLS)
        merge_few(s);
    else if (!merge_many(s, list->scratch))
        return false;
    for (uint32_t i = 0; i < s->count; i++) sl_put(list, s->ids[i]);
    return true;
}

static bool put_large(symbols *s, bool prefix, const char *word, size_t length, sl_id_list *list) {
    const size_t max_count = s->tokenizer->vocabulary.kind == SL_BYTE_LEVEL
                                 ? length
                                 : sl_size_multiply(SL_SPACE_BYTES, length + 1);
    s->ids = sl_scratch_take(list->scratch, max_count, sizeof *s->ids);
    if (!s->ids) return false;
    add_word(s, prefix, word, length);
    const bool enough = put_merged(s, list);
    sl_scratch_give(list->scratch, s->ids);
    return enough;
}

static int merge_ranked_word(const sl_tokenizer *tokenizer, bool prefix, const char *word,
                             size_t length, sl_id_list *list) {
    symbols s = {.tokenizer = tokenizer};
    bool enough;
    if (length > SMALL_RANKED_WORD) {
        enough = put_large(&s, prefix, word, length, list);
    } else {
        int32_t ids[MAX_SYMBOLS];
        s.ids = ids;
        add_word(&s, prefix, word, length);
        enough = put_merged(&s, list);
    }
    if (enough) return SL_OK;
    return sl_reject_text_memory(length);
}

int sl_merge_ranked(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
                    sl_id_list *list) {
    if (tokenizer->vocabulary.ignore_merges) {
        const int32_t whole =
            length > UINT32_MAX ? -1 : sl_find_piece(tokenizer, word, (uint32_t)length);
        if (whole >= 0) {
            sl_put(list, whole);
            return SL_OK;
        }
    }
    return merge_ranked_word(tokenizer, prefix, word, length, list);
}
