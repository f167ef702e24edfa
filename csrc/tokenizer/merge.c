/* merge.c: the ids of one word, by merging.
 *
 * A heap holds the candidates and the symbols are a linked list, so that a word of n bytes takes
 * O(n log n), however long it is. */

#include <stdlib.h>
#include <string.h>

#include "../internal.h"

#define NONE UINT32_MAX /* no symbol */

enum { SMALL_WORD = 64 }; /* bytes of text that need no memory but the stack */

/* A symbol is the run of normalized text that starts where the symbol stands in the array; an entry
 * of length 0 is not one (any more). */
typedef struct {
    uint32_t length;
    uint32_t previous; /* NONE before the first */
    uint32_t next;     /* the end of the text after the last */
    bool frozen;       /* user-defined: does not merge */
} symbol;

/* Two neighbours that could merge, and how long they were when that was found out. */
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
    merge *heap;     /* the best on top */
    uint32_t heap_count;
    uint32_t *splits; /* [pieces] how long the left part of an unused piece is; NULL: has none */
} encoding;

/* ---- The heap -------------------------------------------------------------------------------- */

static bool is_better(const merge *a, const merge *b) {
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void heap_push(encoding *e, merge pair) {
    uint32_t at = e->heap_count++;
    for (; at && is_better(&pair, &e->heap[(at - 1) / 2]); at = (at - 1) / 2)
        e->heap[at] = e->heap[(at - 1) / 2];
    e->heap[at] = pair;
}

static merge heap_pop(encoding *e) {
    const merge top = e->heap[0], last = e->heap[--e->heap_count];
    uint32_t at = 0;
    for (uint32_t child; (child = 2 * at + 1) < e->heap_count; at = child) {
        if (child + 1 < e->heap_count && is_better(&e->heap[child + 1], &e->heap[child])) child++;
        if (!is_better(&e->heap[child], &last)) break;
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

/* Copy the text with spaces as U+2581, and one in front if so said. */
static void normalize(encoding *e, bool prefix, const char *text, size_t length) {
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

/* Length of the longest user-defined piece that stands at the byte, or 0. */
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

/* Enter a pair of neighbours into the heap if it can merge; either may lie outside the text. */
static void consider(encoding *e, uint32_t left, uint32_t right) {
    if (left == NONE || right == e->length) return;
    if (e->symbols[left].frozen || e->symbols[right].frozen) return;
    const uint32_t length = e->symbols[left].length + e->symbols[right].length;
    const int32_t id = sl_find_piece(e->tokenizer, e->text + left, length);
    if (id < 0) return;
    heap_push(e, (merge){e->tokenizer->vocabulary.scores[id], left, right, length});
    if (sl_piece_type(e->tokenizer, id) == SL_PIECE_UNUSED) e->splits[id] = e->symbols[left].length;
}

/* A pair that has changed since it entered the heap is passed over. */
static void merge_all(encoding *e) {
    for (uint32_t at = 0; at < e->length; at = e->symbols[at].next)
        consider(e, at, e->symbols[at].next);
    while (e->heap_count) {
        const merge pair = heap_pop(e);
        symbol *left = &e->symbols[pair.left], *right = &e->symbols[pair.right];
        if (!left->length || !right->length || left->length + right->length != pair.length)
            continue;
        left->length = pair.length;
        left->next = right->next;
        right->length = 0;
        if (left->next < e->length) e->symbols[left->next].previous = pair.left;
        consider(e, left->previous, pair.left);
        consider(e, pair.left, left->next);
    }
}

/* Take an unused piece apart again, as it was last put together anywhere in the text; returns
 * whether the symbol was one. */
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

/* A symbol that is no piece becomes its bytes or the unknown piece. */
static void put_symbols(encoding *e, sl_id_list *list) {
    const sl_tokenizer *tokenizer = e->tokenizer;
    for (uint32_t at = 0; at < e->length; at = e->symbols[at].next) {
        int32_t id;
        do id = sl_find_piece(tokenizer, e->text + at, e->symbols[at].length);
        while (split_unused(e, at, id));
        if (id >= 0)
            sl_put(list, id);
        else if (!tokenizer->vocabulary.byte_fallback)
            sl_put(list, tokenizer->vocabulary.unk_id);
        else
            for (uint32_t i = 0; i < e->symbols[at].length; i++)
                sl_put(list, tokenizer->byte_ids[(uint8_t)e->text[at + i]]);
    }
}

static void run(encoding *e, bool prefix, const char *word, size_t length, sl_id_list *list) {
    normalize(e, prefix, word, length);
    split_into_symbols(e);
    merge_all(e);
    put_symbols(e, list);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* Of a heap: an entry for every pair of neighbours, and one more for every merge. */
#define MERGES(length) (2 * ((length) + 1))

static void merge_small(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
                        sl_id_list *list) {
    char text[SL_SPACE_BYTES * (SMALL_WORD + 1)];
    symbol symbols[SL_SPACE_BYTES * (SMALL_WORD + 1)];
    merge heap[MERGES(SMALL_WORD)];
    encoding e = {.tokenizer = tokenizer, .text = text, .symbols = symbols, .heap = heap};
    run(&e, prefix, word, length, list);
}

static int merge_large(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
                       sl_id_list *list) {
    const size_t normalized =
        length + (SL_SPACE_BYTES - 1) * count_spaces(word, length) + (prefix ? SL_SPACE_BYTES : 0);
    encoding e = {.tokenizer = tokenizer};
    e.text = malloc(normalized);
    e.symbols = malloc(normalized * sizeof *e.symbols);
    e.heap = malloc(MERGES(length) * sizeof *e.heap);
    if (tokenizer->has_unused) e.splits = calloc(tokenizer->vocabulary.size, sizeof *e.splits);
    const bool is_short = !e.text || !e.symbols || !e.heap || (tokenizer->has_unused && !e.splits);
    if (!is_short) run(&e, prefix, word, length, list);
    free(e.text);
    free(e.symbols);
    free(e.heap);
    free(e.splits);
    if (is_short)
        return sl_fail(SL_ERROR_MEMORY, "not enough memory to encode %zu bytes of text", length);
    return SL_OK;
}

int sl_merge(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
             sl_id_list *list) {
    if (length > SMALL_WORD || tokenizer->has_unused)
        return merge_large(tokenizer, prefix, word, length, list);
    merge_small(tokenizer, prefix, word, length, list);
    return SL_OK;
}
