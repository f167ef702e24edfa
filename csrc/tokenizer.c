/* tokenizer.c: SentencePiece's byte-pair encoding, id for id.
 *
 * A text is normalized (a space in front, spaces to U+2581) and cut into symbols: user-defined
 * pieces where they stand, characters elsewhere. Neighbours whose joint text is a piece are merged,
 * the highest score first and the leftmost of equals, until none is left. A heap holds the
 * candidates and the symbols are a linked list, so a text of n bytes takes O(n log n).
 * (Sennrich et al. 2016, arXiv:1508.07909; Kudo & Richardson 2018, arXiv:1808.06226) */

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define SPACE "\xe2\x96\x81"       /* U+2581, how pieces write a space */
#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */
#define UNKNOWN " \xe2\x81\x87 "   /* U+2047, what the unknown piece decodes to */
#define NONE UINT32_MAX            /* no symbol */

enum { SPACE_BYTES = 3, REPLACEMENT_BYTES = 3, LARGEST_TEXT = 1 << 30 };

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

int sl_utf8_character(const char *text, size_t length) {
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) return 1;
    /* By the first byte: how long, and the range of the second, which rules out overlong forms,
     * surrogates and what lies beyond U+10FFFF. */
    int size = 0;
    uint8_t low = 0x80, high = 0xbf;
    if (s[0] >= 0xc2 && s[0] <= 0xdf) size = 2;
    if (s[0] >= 0xe0 && s[0] <= 0xef) size = 3;
    if (s[0] >= 0xf0 && s[0] <= 0xf4) size = 4;
    if (s[0] == 0xe0) low = 0xa0;
    if (s[0] == 0xed) high = 0x9f;
    if (s[0] == 0xf0) low = 0x90;
    if (s[0] == 0xf4) high = 0x8f;
    for (int i = 1; i < size; i++) {
        if ((size_t)i == length) return -1;
        if (s[i] < low || s[i] > high) return 0;
        low = 0x80;
        high = 0xbf;
    }
    return size;
}

static int check_utf8(const char *text, size_t length) {
    for (size_t at = 0; at < length;) {
        const int size = sl_utf8_character(text + at, length - at);
        if (size <= 0)
            return sl_fail(SL_ERROR_TEXT, "the text is not valid UTF-8 at byte %zu (0x%02x)", at,
                           (unsigned)(uint8_t)text[at]);
        at += (size_t)size;
    }
    return SL_OK;
}

/* ---- Pieces ---------------------------------------------------------------------------------- */

static const char *piece_text(const sl_tokenizer *tokenizer, int32_t id) {
    return tokenizer->text + tokenizer->offsets[id];
}

static uint32_t piece_length(const sl_tokenizer *tokenizer, int32_t id) {
    return tokenizer->offsets[id + 1] - tokenizer->offsets[id];
}

/* Whether text can become the piece; control, unknown and byte pieces come about otherwise. */
static bool is_mergeable(uint8_t type) {
    return type == SL_PIECE_NORMAL || type == SL_PIECE_USER_DEFINED || type == SL_PIECE_UNUSED;
}

/* FNV-1a, its high bits folded into the low ones. */
static uint32_t hash_text(const char *text, uint32_t length) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (uint32_t i = 0; i < length; i++)
        hash = (hash ^ (uint8_t)text[i]) * UINT64_C(0x100000001b3);
    return (uint32_t)(hash ^ hash >> 32);
}

/* The slot that holds the piece of that text, or the free one where it belongs. */
static uint32_t *find_slot(const sl_tokenizer *tokenizer, const char *text, uint32_t length) {
    for (uint32_t at = hash_text(text, length);; at++) {
        uint32_t *slot = &tokenizer->slots[at & tokenizer->slot_mask];
        if (*slot == 0) return slot;
        const int32_t id = (int32_t)*slot - 1;
        if (piece_length(tokenizer, id) == length &&
            memcmp(piece_text(tokenizer, id), text, length) == 0)
            return slot;
    }
}

/* The piece of that text, or -1. */
static int32_t find_piece(const sl_tokenizer *tokenizer, const char *text, uint32_t length) {
    if (length > tokenizer->longest_mergeable) return -1;
    return (int32_t)*find_slot(tokenizer, text, length) - 1;
}

/* The byte that a piece spelt "<0xNN>" stands for, or -1. */
static int byte_of(const char *text, uint32_t length) {
    static const char digits[] = "0123456789ABCDEF";
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    const char *high = memchr(digits, text[3], 16), *low = memchr(digits, text[4], 16);
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

static int refuse_piece(const char *path, int32_t id, const char *reason) {
    return sl_fail(SL_ERROR_FORMAT,
                   "weight file %s is damaged: piece %" PRId32
                   " of its tokenizer %s; export it again",
                   path, id, reason);
}

/* Check one piece and enter it into the tables. */
static int index_piece(sl_tokenizer *tokenizer, int32_t id, const char *path) {
    const char *text = piece_text(tokenizer, id);
    const uint32_t length = piece_length(tokenizer, id);
    const uint8_t type = tokenizer->types[id];
    if (!isfinite(tokenizer->scores[id])) return refuse_piece(path, id, "has no finite score");
    if (length == 0) return refuse_piece(path, id, "is empty");
    for (uint32_t at = 0; at < length;) {
        const int size = sl_utf8_character(text + at, length - at);
        if (size <= 0) return refuse_piece(path, id, "is not valid UTF-8");
        at += (uint32_t)size;
    }
    if (length > tokenizer->longest) tokenizer->longest = length;
    if (type < SL_PIECE_NORMAL || type > SL_PIECE_BYTE)
        return refuse_piece(path, id, "has an unknown type");
    if (type == SL_PIECE_UNKNOWN && id != tokenizer->unk_id)
        return refuse_piece(path, id, "is of type unknown but is not unk_id");
    if (type == SL_PIECE_BYTE) {
        const int byte = byte_of(text, length);
        if (byte < 0) return refuse_piece(path, id, "is a byte piece but does not spell a byte");
        if (tokenizer->byte_ids[byte] >= 0) return refuse_piece(path, id, "repeats a byte piece");
        tokenizer->byte_ids[byte] = id;
    }
    if (!is_mergeable(type)) return SL_OK;
    uint32_t *slot = find_slot(tokenizer, text, length);
    if (*slot) return refuse_piece(path, id, "repeats another piece");
    *slot = (uint32_t)id + 1;
    if (length > tokenizer->longest_mergeable) tokenizer->longest_mergeable = length;
    if (type == SL_PIECE_UNUSED) tokenizer->has_unused = true;
    if (type == SL_PIECE_USER_DEFINED) tokenizer->user_starts[(uint8_t)text[0] + 1]++;
    return SL_OK;
}

/* Sort the user-defined pieces, by counting into first bytes and then by insertion. */
static void index_user_defined(sl_tokenizer *tokenizer) {
    uint32_t filled[256] = {0};
    for (int byte = 0; byte < 256; byte++)
        tokenizer->user_starts[byte + 1] += tokenizer->user_starts[byte];
    for (int32_t id = 0; id < (int32_t)tokenizer->size; id++) {
        if (tokenizer->types[id] != SL_PIECE_USER_DEFINED) continue;
        const uint8_t byte = (uint8_t)*piece_text(tokenizer, id);
        int32_t *first = tokenizer->user_defined + tokenizer->user_starts[byte];
        uint32_t at = filled[byte]++;
        for (; at && piece_length(tokenizer, first[at - 1]) < piece_length(tokenizer, id); at--)
            first[at] = first[at - 1];
        first[at] = id;
    }
}

/* Whether there is something for every character that no piece covers. */
static int check_fallback(const sl_tokenizer *tokenizer, const char *path) {
    const int32_t unk_id = tokenizer->unk_id;
    if (unk_id >= 0 && tokenizer->types[unk_id] != SL_PIECE_UNKNOWN)
        return refuse_piece(path, unk_id, "is unk_id but not of type unknown");
    if (!tokenizer->byte_fallback && unk_id < 0)
        return sl_fail(SL_ERROR_FORMAT,
                       "weight file %s is damaged: its tokenizer has neither an unknown piece nor "
                       "byte fallback; export it again",
                       path);
    for (int byte = 0; byte < 256; byte++)
        if (tokenizer->byte_fallback && tokenizer->byte_ids[byte] < 0)
            return sl_fail(SL_ERROR_FORMAT,
                           "weight file %s is damaged: its tokenizer has byte fallback but no "
                           "piece <0x%02X>; export it again",
                           path, (unsigned)byte);
    return SL_OK;
}

int sl_tokenizer_index(sl_tokenizer *tokenizer, const char *path) {
    uint32_t slot_count = 2;
    while (slot_count < 2 * (uint64_t)tokenizer->size) slot_count *= 2;
    tokenizer->slots = calloc(slot_count, sizeof *tokenizer->slots);
    tokenizer->slot_mask = slot_count - 1;
    for (int byte = 0; byte < 256; byte++) tokenizer->byte_ids[byte] = -1;
    if (!tokenizer->slots) return sl_fail(SL_ERROR_MEMORY, "not enough memory to open %s", path);
    int status = SL_OK;
    for (int32_t id = 0; id < (int32_t)tokenizer->size; id++)
        if ((status = index_piece(tokenizer, id, path))) return status;
    if ((status = check_fallback(tokenizer, path))) return status;
    uint32_t user_count = 0;
    for (int byte = 0; byte < 256; byte++) user_count += tokenizer->user_starts[byte + 1];
    if (user_count) {
        tokenizer->user_defined = calloc(user_count, sizeof *tokenizer->user_defined);
        if (!tokenizer->user_defined)
            return sl_fail(SL_ERROR_MEMORY, "not enough memory to open %s", path);
        index_user_defined(tokenizer);
    }
    return SL_OK;
}

void sl_tokenizer_free(sl_tokenizer *tokenizer) {
    free(tokenizer->slots);
    free(tokenizer->user_defined);
}

/* ---- Merging --------------------------------------------------------------------------------- */

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

static size_t count_spaces(const char *text, size_t length) {
    size_t count = 0;
    for (size_t i = 0; i < length; i++) count += text[i] == ' ';
    return count;
}

/* Copy the text, with a space in front if the tokenizer wants it, and spaces as U+2581. */
static void normalize(encoding *e, const char *text, size_t length) {
    char *out = e->text;
    if (e->tokenizer->dummy_prefix) out = (char *)memcpy(out, SPACE, SPACE_BYTES) + SPACE_BYTES;
    for (size_t i = 0; i < length; i++) {
        if (text[i] == ' ')
            out = (char *)memcpy(out, SPACE, SPACE_BYTES) + SPACE_BYTES;
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
        const uint32_t length = piece_length(tokenizer, id);
        if (length <= e->length - at &&
            memcmp(piece_text(tokenizer, id), e->text + at, length) == 0)
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

/* Enter a pair of neighbours into the heap if it can merge; either may lie outside the text. */
static void consider(encoding *e, uint32_t left, uint32_t right) {
    if (left == NONE || right == e->length) return;
    if (e->symbols[left].frozen || e->symbols[right].frozen) return;
    const uint32_t length = e->symbols[left].length + e->symbols[right].length;
    const int32_t id = find_piece(e->tokenizer, e->text + left, length);
    if (id < 0) return;
    heap_push(e, (merge){e->tokenizer->scores[id], left, right, length});
    if (e->tokenizer->types[id] == SL_PIECE_UNUSED) e->splits[id] = e->symbols[left].length;
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
    if (id < 0 || e->tokenizer->types[id] != SL_PIECE_UNUSED || !e->splits[id]) return false;
    symbol *left = &e->symbols[at];
    const uint32_t middle = at + e->splits[id];
    e->symbols[middle] = (symbol){left->length - e->splits[id], at, left->next, false};
    left->length = e->splits[id];
    left->next = middle;
    return true;
}

/* ---- Encoding -------------------------------------------------------------------------------- */

typedef struct {
    int32_t *ids;
    size_t capacity;
    size_t count; /* may pass capacity */
} id_list;

static void put(id_list *list, int32_t id) {
    if (list->count < list->capacity) list->ids[list->count] = id;
    list->count++;
}

/* A symbol that is no piece becomes its bytes, or joins the unknown piece before it. */
static void put_symbols(encoding *e, id_list *list) {
    const sl_tokenizer *tokenizer = e->tokenizer;
    bool after_unknown = false;
    for (uint32_t at = 0; at < e->length; at = e->symbols[at].next) {
        int32_t id;
        do id = find_piece(tokenizer, e->text + at, e->symbols[at].length);
        while (split_unused(e, at, id));
        if (id >= 0)
            put(list, id);
        else if (tokenizer->byte_fallback)
            for (uint32_t i = 0; i < e->symbols[at].length; i++)
                put(list, tokenizer->byte_ids[(uint8_t)e->text[at + i]]);
        else if (!after_unknown)
            put(list, tokenizer->unk_id);
        after_unknown = id < 0;
    }
}

static int encode(encoding *e, const char *text, size_t length, id_list *list) {
    const size_t spaces = count_spaces(text, length) + e->tokenizer->dummy_prefix;
    const size_t normalized = length + spaces * SPACE_BYTES;
    const size_t merges = 2 * (length + 1); /* one for every pair, one more for every merge */
    e->text = malloc(normalized);
    e->symbols = malloc(normalized * sizeof *e->symbols);
    e->heap = malloc(merges * sizeof *e->heap);
    if (e->tokenizer->has_unused) e->splits = calloc(e->tokenizer->size, sizeof *e->splits);
    if (!e->text || !e->symbols || !e->heap || (e->tokenizer->has_unused && !e->splits))
        return sl_fail(SL_ERROR_MEMORY, "not enough memory to encode %zu bytes of text", length);
    normalize(e, text, length);
    split_into_symbols(e);
    merge_all(e);
    put_symbols(e, list);
    return SL_OK;
}

int sl_encode(const sl_model *model, const char *text, size_t length, int32_t *ids, size_t capacity,
              size_t *count) {
    *count = 0;
    if (length > LARGEST_TEXT)
        return sl_fail(SL_ERROR_ARGUMENT, "the text has %zu bytes: give at most %d at once", length,
                       LARGEST_TEXT);
    int status = check_utf8(text, length);
    if (status || length == 0) return status;
    encoding e = {.tokenizer = &model->tokenizer};
    id_list list = {ids, capacity, 0};
    status = encode(&e, text, length, &list);
    free(e.text);
    free(e.symbols);
    free(e.heap);
    free(e.splits);
    *count = list.count;
    if (!status && list.count > capacity)
        status = sl_fail(SL_ERROR_ARGUMENT, "the text has %zu ids and there is room for %zu",
                         list.count, capacity);
    return status;
}

/* ---- Decoding -------------------------------------------------------------------------------- */

size_t sl_decoder_bound(const sl_tokenizer *tokenizer) {
    const size_t unknown = sizeof UNKNOWN - 1;
    const size_t longest = tokenizer->longest > unknown ? tokenizer->longest : unknown;
    return longest + sizeof(((sl_decoder *)0)->pending) * REPLACEMENT_BYTES;
}

/* Write the characters that the pending bytes complete, and U+FFFD for bytes that no further one
 * can save. */
static size_t write_pending(sl_decoder *decoder, char *text) {
    char *out = text;
    while (decoder->pending_count) {
        const int size = sl_utf8_character(decoder->pending, decoder->pending_count);
        if (size < 0) break;
        const size_t taken = size ? (size_t)size : 1;
        if (size)
            out = (char *)memcpy(out, decoder->pending, taken) + taken;
        else
            out = (char *)memcpy(out, REPLACEMENT, REPLACEMENT_BYTES) + REPLACEMENT_BYTES;
        decoder->pending_count -= (uint32_t)taken;
        memmove(decoder->pending, decoder->pending + taken, decoder->pending_count);
    }
    return (size_t)(out - text);
}

size_t sl_decoder_end(sl_decoder *decoder, char *text) {
    const size_t length = decoder->pending_count * (size_t)REPLACEMENT_BYTES;
    for (uint32_t i = 0; i < decoder->pending_count; i++)
        memcpy(text + i * REPLACEMENT_BYTES, REPLACEMENT, REPLACEMENT_BYTES);
    decoder->pending_count = 0;
    return length;
}

/* Write a piece with its U+2581 as spaces. */
static size_t write_piece(const char *piece, size_t length, char *text) {
    char *out = text;
    for (size_t i = 0; i < length;) {
        if (length - i >= SPACE_BYTES && memcmp(piece + i, SPACE, SPACE_BYTES) == 0) {
            *out++ = ' ';
            i += SPACE_BYTES;
        } else {
            *out++ = piece[i++];
        }
    }
    return (size_t)(out - text);
}

size_t sl_decoder_next(sl_decoder *decoder, const sl_tokenizer *tokenizer, int32_t id, char *text) {
    const uint8_t type = tokenizer->types[id];
    const char *piece = piece_text(tokenizer, id);
    size_t length = piece_length(tokenizer, id);
    if (type == SL_PIECE_BYTE) {
        decoder->pending[decoder->pending_count++] = (char)byte_of(piece, (uint32_t)length);
        decoder->begun = true; /* whatever comes next, the byte's text comes before it */
        return write_pending(decoder, text);
    }
    const size_t pending = sl_decoder_end(decoder, text);
    if (type == SL_PIECE_CONTROL) return pending;
    if (type == SL_PIECE_UNKNOWN) {
        piece = UNKNOWN;
        length = sizeof UNKNOWN - 1;
    } else if (!decoder->begun && tokenizer->dummy_prefix && length >= SPACE_BYTES &&
               memcmp(piece, SPACE, SPACE_BYTES) == 0) {
        piece += SPACE_BYTES;
        length -= SPACE_BYTES;
    }
    decoder->begun = true;
    return pending + write_piece(piece, length, text + pending);
}

int sl_decode(const sl_model *model, const int32_t *ids, size_t count, char *text, size_t capacity,
              size_t *length) {
    const sl_tokenizer *tokenizer = &model->tokenizer;
    *length = 0;
    char *part = malloc(sl_decoder_bound(tokenizer));
    if (!part) return sl_fail(SL_ERROR_MEMORY, "not enough memory to decode");
    sl_decoder decoder = {0};
    int status = SL_OK;
    for (size_t i = 0; i <= count && !status; i++) {
        size_t size = 0;
        if (i == count)
            size = sl_decoder_end(&decoder, part);
        else if (ids[i] < 0 || (uint32_t)ids[i] >= tokenizer->size)
            status = sl_fail(SL_ERROR_ARGUMENT, "token id %" PRId32 " is not in 0 … %" PRIu32,
                             ids[i], tokenizer->size - 1);
        else
            size = sl_decoder_next(&decoder, tokenizer, ids[i], part);
        if (*length + size <= capacity) memcpy(text + *length, part, size);
        *length += size;
    }
    free(part);
    if (!status && *length > capacity)
        status = sl_fail(SL_ERROR_ARGUMENT, "the text has %zu bytes and there is room for %zu",
                         *length, capacity);
    return status;
}
