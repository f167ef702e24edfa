/* merge_scored.c: encodes one word of SentencePiece: merges pieces by their score.
 *
 * The symbols form a linked list and the possible merges a heap, so a word of n bytes takes
 * O(n log n) time. */

#include "merge.h"

#include <string.h>

#include "../error.h"
#include "../sizes.h"
#include "tokenizer.h"
#include "utf8.h"

#define NONE UINT32_MAX /* no symbol */

enum { SMALL_SCORED_WORD = 64 }; /* bytes of a word that is encoded on the stack */

/* A part of the normalized text. Its index is its first byte. Length 0: no symbol begins at this
 * byte, or it was merged into another. */
typedef struct {
    uint32_t length;
    uint32_t previous; /* NONE before the first */
    uint32_t next;     /* the end of the text after the last */
    bool frozen;       /* a user-defined piece, which does not merge */
} symbol;

/* Two neighbours that can merge, and their joint length when they entered the heap. */
typedef struct {
    float score;
    uint32_t left;
    uint32_t right;
    uint32_t length;
} merge;

typedef struct {
    const sl_tokenizer *tokenizer;
    char *text; /* normalized */
    uint32_t length;
    symbol *symbols; /* [length] */
    merge *heap;     /* heap[0] is the best */
    uint32_t heap_count;
    uint32_t *splits; /* [pieces] length of the left part of an unused piece; NULL: there is none */
} encoding;

/* ---- The heap -------------------------------------------------------------------------------- */

static bool is_merge_better(const merge *a, const merge *b) {
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void push_merge(encoding *e, merge pair) {
    uint32_t at = e->heap_count++;
    for (; at && is_merge_better(&pair, &e->heap[(at - 1) / 2]); at = (at - 1) / 2)
        e->heap[at] = e->heap[(at - 1) / 2];
    e->heap[at] = pair;
}

static merge pop_merge(encoding *e) {
    const merge top = e->heap[0], last = e->heap[--e->heap_count];
    uint32_t at = 0;
    for (uint32_t child; (child = 2 * at + 1) < e->heap_count; at = child) {
        if (child + 1 < e->heap_count && is_merge_better(&e->heap[child + 1], &e->heap[child]))
            child++;
        if (!is_merge_better(&e->heap[child], &last)) break;
        e->heap[at] = e->heap[child];
    }
    e->heap[at] = last;
    return top;
}

/* ---- Symbols --------------------------------------------------------------------------------- */

static size_t count_spaces(const char *text, size_t length) {
    size_t count = 0;
    for (size_t i = 0; i < length; i++) count += text[i] == ' ';
    return count;
}

/* Copy the text with U+2581 for spaces, and one in front if `prefix` is set. */
static void normalize_word(encoding *e, bool prefix, const char *text, size_t length) {
    char *out = e->text;
    if (prefix) out = (char *)memcpy(out, SL_SPACE, SL_SPACE_BYTES) + SL_SPACE_BYTES;
    for (size_t i = 0; i < length; i++) {
        if (text[i] == ' ')
            out = (char *)memcpy(out, SL_SPACE, SL_SPACE_BYTES) + SL_SPACE_BYTES;
        else
            *out++ = text[i];
    }
    e->length = (uint32_t)(out - e->text);
}

/* Return the length of the longest user-defined piece at this byte, or 0. */
static uint32_t match_user_defined(const encoding *e, uint32_t at) {
    const sl_tokenizer *tokenizer = e->tokenizer;
    const uint8_t byte = (uint8_t)e->text[at];
    for (uint32_t i = tokenizer->user_starts[byte]; i < tokenizer->user_starts[byte + 1]; i++) {
        const int32_t id = tokenizer->user_defined[i];
        const uint32_t length = sl_piece_length(tokenizer, id);
        if (length <= e->length - at &&
            memcmp(sl_piece_text(tokenizer, id), e->text + at, length) == 0)
            return length;
    }
    return 0;
}

static void split_into_symbols(encoding *e) {
    uint32_t previous = NONE;
    for (uint32_t at = 0; at < e->length;) {
        uint32_t length = match_user_defined(e, at);
        const bool frozen = length > 0;
        if (!frozen) length = (uint32_t)sl_utf8_character(e->text + at, e->length - at);
        e->symbols[at] = (symbol){length, previous, at + length, frozen};
        previous = at;
        at += length;
    }
}

/* ---- Merging --------------------------------------------------------------------------------- */

/* Add a pair of neighbours to the heap if both are in the text and can merge. */
static void add_pair(encoding *e, uint32_t left, uint32_t right) {
    if (left == NONE || right == e->length) return;
    if (e->symbols[left].frozen || e->symbols[right].frozen) return;
    const uint32_t length = e->symbols[left].length + e->symbols[right].length;
    const int32_t id = sl_find_piece(e->tokenizer, e->text + left, length);
    if (id < 0) return;
    push_merge(e, (merge){e->tokenizer->vocabulary.scores[id], left, right, length});
    if (sl_piece_type(e->tokenizer, id) == SL_PIECE_UNUSED) e->splits[id] = e->symbols[left].length;
}

/* Merge pairs until none is left. A pair that has changed since it entered the heap is skipped. */
static void merge_all(encoding *e) {
    for (uint32_t at = 0; at < e->length; at = e->symbols[at].next)
        add_pair(e, at, e->symbols[at].next);
    while (e->heap_count) {
        const merge pair = pop_merge(e);
        symbol *left = &e->symbols[pair.left], *right = &e->symbols[pair.right];
        if (!left->length || !right->length || left->length + right->length != pair.length)
            continue;
        left->length = pair.length;
        left->next = right->next;
        right->length = 0;
        if (left->next < e->length) e->symbols[left->next].previous = pair.left;
        add_pair(e, left->previous, pair.left);
        add_pair(e, pair.left, left->next);
    }
}

/* Split an unused piece again, as it was last merged anywhere in the text. Returns whether the
 * symbol was an unused piece. */
static bool split_unused(encoding *e, uint32_t at, int32_t id) {
    if (id < 0 || sl_piece_type(e->tokenizer, id) != SL_PIECE_UNUSED || !e->splits[id])
        return false;
    symbol *left = &e->symbols[at];
    const uint32_t middle = at + e->splits[id];
    e->symbols[middle] = (symbol){left->length - e->splits[id], at, left->next, false};
    left->length = e->splits[id];
    left->next = middle;
    return true;
}

/* Append the ids of all symbols. A symbol without a piece, or with an unused piece that cannot be
 * split, becomes byte pieces or the unknown piece. */
static void put_symbols(encoding *e, sl_id_list *list) {
    const sl_tokenizer *tokenizer = e->tokenizer;
    for (uint32_t at = 0; at < e->length; at = e->symbols[at].next) {
        int32_t id;
        do id = sl_find_piece(tokenizer, e->text + at, e->symbols[at].length);
        while (split_unused(e, at, id));
        if (id >= 0 && sl_piece_type(tokenizer, id) != SL_PIECE_UNUSED)
            sl_put(list, id);
        else if (!tokenizer->vocabulary.byte_fallback)
            sl_put(list, tokenizer->vocabulary.unk_id);
        else
            for (uint32_t i = 0; i < e->symbols[at].length; i++)
                sl_put(list, tokenizer->byte_ids[(uint8_t)e->text[at + i]]);
    }
}

static void encode_word(encoding *e, bool prefix, const char *word, size_t length,
                        sl_id_list *list) {
    normalize_word(e, prefix, word, length);
    split_into_symbols(e);
    merge_all(e);
    put_symbols(e, list);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* Entries of the heap: one for every pair of neighbours, and one more for every merge. */
#define MERGES(length) (2 * ((length) + 1))

static void merge_small(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
                        sl_id_list *list) {
    char text[SL_SPACE_BYTES * (SMALL_SCORED_WORD + 1)];
    symbol symbols[SL_SPACE_BYTES * (SMALL_SCORED_WORD + 1)];
    merge heap[MERGES(SMALL_SCORED_WORD)];
    encoding e = {.tokenizer = tokenizer, .text = text, .symbols = symbols, .heap = heap};
    encode_word(&e, prefix, word, length, list);
}

static uint32_t *take_splits(const sl_tokenizer *tokenizer, sl_scratch *scratch) {
    const size_t size = tokenizer->vocabulary.size;
    uint32_t *splits = sl_scratch_take(scratch, size, sizeof *splits);
    return splits ? memset(splits, 0, size * sizeof *splits) : NULL;
}

static int merge_large(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
                       sl_id_list *list) {
    const size_t spaces = count_spaces(word, length);
    const size_t normalized =
        sl_size_add(length - spaces, sl_size_multiply(SL_SPACE_BYTES, spaces + prefix));
    encoding e = {.tokenizer = tokenizer};
    e.text = sl_scratch_take(list->scratch, normalized, 1);
    e.symbols = sl_scratch_take(list->scratch, normalized, sizeof *e.symbols);
    e.heap = sl_scratch_take(list->scratch, MERGES(length), sizeof *e.heap);
    if (tokenizer->has_unused) e.splits = take_splits(tokenizer, list->scratch);
    const bool is_out_of_memory =
        !e.text || !e.symbols || !e.heap || (tokenizer->has_unused && !e.splits);
    if (!is_out_of_memory) encode_word(&e, prefix, word, length, list);
    sl_scratch_give(list->scratch, e.splits);
    sl_scratch_give(list->scratch, e.heap);
    sl_scratch_give(list->scratch, e.symbols);
    sl_scratch_give(list->scratch, e.text);
    if (is_out_of_memory) return sl_reject_text_memory(length);
    return SL_OK;
}

int sl_merge_scored(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
                    sl_id_list *list) {
    if (length > SMALL_SCORED_WORD || tokenizer->has_unused)
        return merge_large(tokenizer, prefix, word, length, list);
    merge_small(tokenizer, prefix, word, length, list);
    return SL_OK;
}
