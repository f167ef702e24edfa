/* tokenizer.c: opens a tokenizer: builds the tables for encoding and finds pieces in them. */

#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "../error.h"
#include "../sizes.h"
#include "utf8.h"
#include "vocabulary.h"

static int reject_memory(const char *path) {
    return sl_fail(SL_ERROR_MEMORY, "not enough memory to open %s", path ? path : "the vocabulary");
}

/* ---- Pieces by their text -------------------------------------------------------------------- */

#define EMPTY_HASH UINT64_C(0xcbf29ce484222325)

/* Continue the FNV-1a hash of a text with more text. */
static uint64_t hash_more(uint64_t hash, const char *text, uint32_t length) {
    for (uint32_t i = 0; i < length; i++)
        hash = (hash ^ (uint8_t)text[i]) * UINT64_C(0x100000001b3);
    return hash;
}

/* Return a hash of 32 bits: the high bits folded into the low ones. */
static uint32_t fold_hash(uint64_t hash) {
    return (uint32_t)(hash ^ hash >> 32);
}

/* Return the slot of the piece with this text, or the free slot where it belongs. */
static uint32_t *find_slot(const sl_tokenizer *tokenizer, const char *text, uint32_t length) {
    for (uint32_t at = fold_hash(hash_more(EMPTY_HASH, text, length));; at++) {
        uint32_t *slot = &tokenizer->slots[at & tokenizer->slot_mask];
        if (*slot == 0) return slot;
        const int32_t id = (int32_t)*slot - 1;
        if (sl_piece_length(tokenizer, id) == length &&
            memcmp(sl_piece_text(tokenizer, id), text, length) == 0)
            return slot;
    }
}

int32_t sl_find_piece(const sl_tokenizer *tokenizer, const char *text, uint32_t length) {
    if (length > tokenizer->longest_mergeable) return -1;
    return (int32_t)*find_slot(tokenizer, text, length) - 1;
}

int32_t sl_find_joint(const sl_tokenizer *tokenizer, int32_t left, int32_t right) {
    const char *texts[2] = {sl_piece_text(tokenizer, left), sl_piece_text(tokenizer, right)};
    const uint32_t lengths[2] = {sl_piece_length(tokenizer, left),
                                 sl_piece_length(tokenizer, right)};
    const uint64_t joint = (uint64_t)lengths[0] + lengths[1];
    if (joint > tokenizer->longest_mergeable) return -1;
    const uint64_t first = hash_more(EMPTY_HASH, texts[0], lengths[0]);
    for (uint32_t at = fold_hash(hash_more(first, texts[1], lengths[1]));; at++) {
        const uint32_t slot = tokenizer->slots[at & tokenizer->slot_mask];
        const int32_t id = (int32_t)slot - 1;
        if (slot == 0) return -1;
        const char *text = sl_piece_text(tokenizer, id);
        if (sl_piece_length(tokenizer, id) == joint && memcmp(text, texts[0], lengths[0]) == 0 &&
            memcmp(text + lengths[0], texts[1], lengths[1]) == 0)
            return id;
    }
}

/* ---- Indexing -------------------------------------------------------------------------------- */

static int index_byte(sl_tokenizer *tokenizer, int32_t id, const char *path) {
    const int byte = sl_byte_of(sl_piece_text(tokenizer, id), sl_piece_length(tokenizer, id));
    if (byte < 0) return sl_reject_piece(path, id, "is a byte piece but does not spell a byte");
    if (tokenizer->byte_ids[byte] >= 0) return sl_reject_piece(path, id, "repeats a byte piece");
    tokenizer->byte_ids[byte] = id;
    return SL_OK;
}

static bool is_space(const char *character, uint32_t length) {
    return length == SL_SPACE_BYTES && memcmp(character, SL_SPACE, SL_SPACE_BYTES) == 0;
}

static uint8_t *border_between(sl_tokenizer *tokenizer, int a, int b) {
    const uint8_t bytes[2] = {(uint8_t)a, (uint8_t)b};
    uint16_t pair;
    memcpy(&pair, bytes, sizeof pair);
    return &tokenizer->borders[pair];
}

void sl_index_borders(sl_tokenizer *tokenizer, int32_t id) {
    const char *text = sl_piece_text(tokenizer, id);
    const uint32_t length = sl_piece_length(tokenizer, id);
    uint8_t ends[2] = {0}; /* last byte of the previous character, with U+2581 and with ' ' */
    for (uint32_t at = 0, size; at < length; at += size) {
        size = (uint32_t)sl_utf8_character(text + at, length - at);
        const bool space = is_space(text + at, size);
        const uint8_t begins[2] = {(uint8_t)text[at], space ? ' ' : (uint8_t)text[at]};
        for (int i = 0; at && i < 4; i++)
            *border_between(tokenizer, ends[i / 2], begins[i % 2]) = 0;
        ends[0] = (uint8_t)text[at + size - 1];
        ends[1] = space ? ' ' : ends[0];
    }
}

/* Add a piece that text can merge to. */
static int add_piece(sl_tokenizer *tokenizer, int32_t id, const char *path) {
    const char *text = sl_piece_text(tokenizer, id);
    const uint32_t length = sl_piece_length(tokenizer, id);
    uint32_t *slot = find_slot(tokenizer, text, length);
    if (*slot) return sl_reject_piece(path, id, "repeats another piece");
    *slot = (uint32_t)id + 1;
    if (length > tokenizer->longest_mergeable) tokenizer->longest_mergeable = length;
    return SL_OK;
}

static int index_mergeable(sl_tokenizer *tokenizer, int32_t id, const char *path) {
    const int status = add_piece(tokenizer, id, path);
    if (status) return status;
    if (sl_piece_type(tokenizer, id) == SL_PIECE_UNUSED) tokenizer->has_unused = true;
    if (sl_piece_type(tokenizer, id) == SL_PIECE_USER_DEFINED)
        tokenizer->user_starts[(uint8_t)*sl_piece_text(tokenizer, id) + 1]++;
    sl_index_borders(tokenizer, id);
    return SL_OK;
}

static int index_scored(sl_tokenizer *tokenizer, int32_t id, const char *path) {
    switch (sl_piece_type(tokenizer, id)) {
    case SL_PIECE_BYTE:
        return index_byte(tokenizer, id, path);
    case SL_PIECE_NORMAL:
    case SL_PIECE_USER_DEFINED:
    case SL_PIECE_UNUSED:
        return index_mergeable(tokenizer, id, path);
    default:
        return SL_OK; /* no text merges to control and unknown pieces */
    }
}

/* Add a piece of a ranked kind. Its merges say what merges to it, whatever its type. */
static int index_ranked(sl_tokenizer *tokenizer, int32_t id, bool apart, const char *path) {
    const uint8_t type = sl_piece_type(tokenizer, id);
    int status = type == SL_PIECE_BYTE ? index_byte(tokenizer, id, path) : SL_OK;
    if (status || apart || type == SL_PIECE_UNUSED) return status;
    if (sl_piece_length(tokenizer, id) == 1)
        tokenizer->symbol_ids[(uint8_t)*sl_piece_text(tokenizer, id)] = id;
    return add_piece(tokenizer, id, path);
}

static int index_pieces(sl_tokenizer *tokenizer, const char *path) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    int status = SL_OK;
    uint32_t at = 0; /* in added tokens */
    for (int32_t id = 0; id < (int32_t)vocabulary->size && !status; id++) {
        if ((status = sl_check_piece(tokenizer, id, path))) return status;
        const uint32_t length = sl_piece_length(tokenizer, id);
        if (length > tokenizer->longest) tokenizer->longest = length;
        const bool added = at < vocabulary->added_count && vocabulary->added[at].id == (uint32_t)id;
        const bool apart = added && vocabulary->added[at].flags & SL_ADDED_APART;
        at += added;
        status = vocabulary->kind == SL_SENTENCEPIECE ? index_scored(tokenizer, id, path)
                                                      : index_ranked(tokenizer, id, apart, path);
    }
    return status;
}

/* A user-defined piece, with what it is sorted by. */
typedef struct {
    uint8_t byte; /* its first */
    uint32_t length;
    int32_t id;
} user_piece;

/* Compare by first byte, then longest first, then by id. */
static int compare_user_pieces(const void *a, const void *b) {
    const user_piece *x = a, *y = b;
    if (x->byte != y->byte) return x->byte < y->byte ? -1 : 1;
    if (x->length != y->length) return x->length > y->length ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* Sort the user-defined pieces, which user_starts has counted. */
static bool index_user_defined(sl_tokenizer *tokenizer) {
    for (int byte = 0; byte < 256; byte++)
        tokenizer->user_starts[byte + 1] += tokenizer->user_starts[byte];
    const uint32_t count = tokenizer->user_starts[256];
    if (count == 0) return true;
    tokenizer->user_defined = calloc(count, sizeof *tokenizer->user_defined);
    user_piece *pieces = calloc(count, sizeof *pieces), *next = pieces;
    if (!tokenizer->user_defined || !pieces) {
        free(pieces);
        return false;
    }
    for (int32_t id = 0; id < (int32_t)tokenizer->vocabulary.size; id++) {
        if (sl_piece_type(tokenizer, id) != SL_PIECE_USER_DEFINED) continue;
        const uint8_t byte = (uint8_t)*sl_piece_text(tokenizer, id);
        *next++ = (user_piece){byte, sl_piece_length(tokenizer, id), id};
    }
    qsort(pieces, count, sizeof *pieces, compare_user_pieces);
    for (uint32_t i = 0; i < count; i++) tokenizer->user_defined[i] = pieces[i].id;
    free(pieces);
    return true;
}

/* Remove the borders within characters. If the vocabulary has unused pieces, remove all borders:
 * the split of an unused piece depends on merges anywhere in the text. If words are split at
 * spaces, add a border before every space. */
static void complete_borders(sl_tokenizer *tokenizer) {
    for (int a = 0; a < 256; a++)
        for (int b = 0; b < 256; b++)
            if (tokenizer->has_unused || (b & 0xc0) == 0x80) *border_between(tokenizer, a, b) = 0;
    if (tokenizer->vocabulary.pre_tokenizer == SL_PRE_SPACES)
        for (int a = 0; a < 256; a++) *border_between(tokenizer, a, ' ') = 1;
}

static bool allocate_slots(sl_tokenizer *tokenizer) {
    uint32_t count = 2;
    while (count < 2 * (uint64_t)tokenizer->vocabulary.size) count *= 2;
    tokenizer->slots = calloc(count, sizeof *tokenizer->slots);
    tokenizer->slot_mask = count - 1;
    for (int byte = 0; byte < 256; byte++)
        tokenizer->byte_ids[byte] = tokenizer->symbol_ids[byte] = -1;
    memset(tokenizer->borders, 1, sizeof tokenizer->borders);
    return tokenizer->slots != NULL;
}

int sl_tokenizer_index(sl_tokenizer *tokenizer, const sl_vocabulary *vocabulary, const char *path) {
    int status = sl_check_vocabulary(vocabulary, path);
    if (status) return status;
    tokenizer->vocabulary = *vocabulary;
    if ((status = sl_check_added(tokenizer, path))) return status;
    if (!allocate_slots(tokenizer)) return reject_memory(path);
    if ((status = index_pieces(tokenizer, path))) return status;
    if ((status = sl_check_fallback(tokenizer, path))) return status;
    if (vocabulary->kind != SL_SENTENCEPIECE && (status = sl_index_ranks(tokenizer, path)))
        return status;
    complete_borders(tokenizer);
    if (!index_user_defined(tokenizer) || !sl_index_added(tokenizer) ||
        !sl_index_decoded(tokenizer))
        return reject_memory(path);
    return SL_OK;
}

/* ---- Opening --------------------------------------------------------------------------------- */

/* Copy an array to *copy and move *copy behind it. */
static const void *copy_array(char **copy, const void *array, size_t bytes) {
    char *to = *copy;
    if (bytes) memcpy(to, array, bytes);
    *copy += bytes;
    return to;
}

/* Replace the caller's arrays by copies. */
static bool copy_arrays(sl_tokenizer *tokenizer) {
    sl_vocabulary *v = &tokenizer->vocabulary;
    const bool scored = v->kind == SL_SENTENCEPIECE;
    const size_t scores = scored * v->size * sizeof *v->scores;
    const size_t offsets = (v->size + (size_t)1) * sizeof *v->offsets;
    const size_t merges = sl_size_multiply(v->merge_count, sizeof *v->merges);
    const size_t added = sl_size_multiply(v->added_count, sizeof *v->added);
    const size_t tables = sl_size_add(scores + offsets + v->size, sl_size_add(merges, added));
    char *copy = tokenizer->copy = sl_allocate(sl_size_add(tables, v->text_bytes), 1);
    if (!copy) return false;
    v->scores = copy_array(&copy, v->scores, scores);
    v->offsets = copy_array(&copy, v->offsets, offsets);
    v->merges = copy_array(&copy, v->merges, merges);
    v->added = copy_array(&copy, v->added, added);
    v->types = copy_array(&copy, v->types, v->size);
    v->text = copy_array(&copy, v->text, v->text_bytes);
    return true;
}

int sl_tokenizer_open(sl_tokenizer **tokenizer, const sl_vocabulary *vocabulary) {
    sl_tokenizer *made = *tokenizer = calloc(1, sizeof **tokenizer);
    if (!made) return reject_memory(NULL);
    int status = sl_tokenizer_index(made, vocabulary, NULL);
    if (!status && !copy_arrays(made)) status = reject_memory(NULL);
    if (status) {
        sl_tokenizer_close(made);
        *tokenizer = NULL;
    }
    return status;
}

void sl_tokenizer_free(sl_tokenizer *tokenizer) {
    free(tokenizer->copy);
    free(tokenizer->slots);
    free(tokenizer->user_defined);
    free(tokenizer->ranks);
    free(tokenizer->filter);
    sl_matcher_free(&tokenizer->raw);
    sl_matcher_free(&tokenizer->normalized);
    free(tokenizer->decoded);
    free(tokenizer->decoded_text);
}

const char *sl_token_text(const sl_tokenizer *tokenizer, int32_t id, size_t *length) {
    *length = 0;
    if (id < 0 || (uint32_t)id >= tokenizer->vocabulary.size) return NULL;
    *length = sl_piece_length(tokenizer, id);
    return sl_piece_text(tokenizer, id);
}

void sl_tokenizer_close(sl_tokenizer *tokenizer) {
    if (!tokenizer) return;
    sl_tokenizer_free(tokenizer);
    free(tokenizer);
}
