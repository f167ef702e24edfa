/* vocabulary.c: checks a vocabulary and builds the tables for encoding. */

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../error.h"
#include "../sizes.h"
#include "tokenizer.h"

enum { MAX_SIZE = 1 << 20 };

/* ---- Errors ---------------------------------------------------------------------------------- */

static int reject(const char *path, const char *reason) {
    if (!path) return sl_fail(SL_ERROR_FORMAT, "the vocabulary is damaged: %s", reason);
    return sl_fail(SL_ERROR_FORMAT, "weight file %s is damaged: %s; export it again", path, reason);
}

static int reject_piece(const char *path, int32_t id, const char *reason) {
    if (!path)
        return sl_fail(SL_ERROR_FORMAT, "the vocabulary is damaged: piece %" PRId32 " %s", id,
                       reason);
    return sl_fail(SL_ERROR_FORMAT,
                   "weight file %s is damaged: piece %" PRId32
                   " of its tokenizer %s; export it again",
                   path, id, reason);
}

static int reject_memory(const char *path) {
    return sl_fail(SL_ERROR_MEMORY, "not enough memory to open %s", path ? path : "the vocabulary");
}

/* ---- Pieces by their text -------------------------------------------------------------------- */

/* FNV-1a, its high bits folded into the low ones. */
static uint32_t hash_text(const char *text, uint32_t length) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (uint32_t i = 0; i < length; i++)
        hash = (hash ^ (uint8_t)text[i]) * UINT64_C(0x100000001b3);
    return (uint32_t)(hash ^ hash >> 32);
}

/* Return the slot of the piece with this text, or the free slot where it belongs. */
static uint32_t *find_slot(const sl_tokenizer *tokenizer, const char *text, uint32_t length) {
    for (uint32_t at = hash_text(text, length);; at++) {
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

/* ---- Checking and indexing ------------------------------------------------------------------- */

static int check_arrays(const sl_vocabulary *vocabulary, const char *path) {
    const uint32_t size = vocabulary->size, *offsets = vocabulary->offsets;
    if (size < 1 || size > MAX_SIZE) return reject(path, "it has no pieces or too many");
    if (vocabulary->unk_id < -1 || vocabulary->unk_id >= (int64_t)size)
        return reject(path, "unk_id is out of range");
    if (offsets[0] != 0) return reject(path, "its first piece is not at offset 0");
    for (uint32_t i = 0; i < size; i++)
        if (offsets[i] > offsets[i + 1])
            return reject(path, "the offsets of its pieces run backwards");
    if (offsets[size] != vocabulary->text_bytes)
        return reject(path, "its pieces do not end with the tokenizer");
    return SL_OK;
}

/* Check what every piece must fulfil, whatever its type. */
static int check_piece(const sl_tokenizer *tokenizer, int32_t id, const char *path) {
    const uint32_t length = sl_piece_length(tokenizer, id);
    const uint8_t type = sl_piece_type(tokenizer, id);
    if (!isfinite(tokenizer->vocabulary.scores[id]))
        return reject_piece(path, id, "has no finite score");
    if (length == 0) return reject_piece(path, id, "is empty");
    if (sl_utf8_valid(sl_piece_text(tokenizer, id), length) < length)
        return reject_piece(path, id, "is not valid UTF-8");
    if (type < SL_PIECE_NORMAL || type > SL_PIECE_BYTE)
        return reject_piece(path, id, "has an unknown type");
    if (type == SL_PIECE_UNKNOWN && id != tokenizer->vocabulary.unk_id)
        return reject_piece(path, id, "is of type unknown but is not unk_id");
    return SL_OK;
}

static int index_byte(sl_tokenizer *tokenizer, int32_t id, const char *path) {
    const int byte = sl_byte_of(sl_piece_text(tokenizer, id), sl_piece_length(tokenizer, id));
    if (byte < 0) return reject_piece(path, id, "is a byte piece but does not spell a byte");
    if (tokenizer->byte_ids[byte] >= 0) return reject_piece(path, id, "repeats a byte piece");
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

/* Remove the borders between characters that are neighbours in a piece. */
static void index_borders(sl_tokenizer *tokenizer, const char *text, uint32_t length) {
    uint8_t ends[2] = {0}; /* last byte of the previous character, in the piece and in text */
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
static int index_mergeable(sl_tokenizer *tokenizer, int32_t id, const char *path) {
    const char *text = sl_piece_text(tokenizer, id);
    const uint32_t length = sl_piece_length(tokenizer, id);
    uint32_t *slot = find_slot(tokenizer, text, length);
    if (*slot) return reject_piece(path, id, "repeats another piece");
    *slot = (uint32_t)id + 1;
    if (length > tokenizer->longest_mergeable) tokenizer->longest_mergeable = length;
    if (sl_piece_type(tokenizer, id) == SL_PIECE_UNUSED) tokenizer->has_unused = true;
    if (sl_piece_type(tokenizer, id) == SL_PIECE_USER_DEFINED)
        tokenizer->user_starts[(uint8_t)text[0] + 1]++;
    index_borders(tokenizer, text, length);
    return SL_OK;
}

static int index_piece(sl_tokenizer *tokenizer, int32_t id, const char *path) {
    const int status = check_piece(tokenizer, id, path);
    if (status) return status;
    const uint32_t length = sl_piece_length(tokenizer, id);
    if (length > tokenizer->longest) tokenizer->longest = length;
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

/* Sort the user-defined pieces: counting sort by first byte, then insertion sort by length. */
static bool index_user_defined(sl_tokenizer *tokenizer) {
    uint32_t filled[256] = {0};
    for (int byte = 0; byte < 256; byte++)
        tokenizer->user_starts[byte + 1] += tokenizer->user_starts[byte];
    const uint32_t count = tokenizer->user_starts[256];
    if (count == 0) return true;
    tokenizer->user_defined = calloc(count, sizeof *tokenizer->user_defined);
    if (!tokenizer->user_defined) return false;
    for (int32_t id = 0; id < (int32_t)tokenizer->vocabulary.size; id++) {
        if (sl_piece_type(tokenizer, id) != SL_PIECE_USER_DEFINED) continue;
        const uint8_t byte = (uint8_t)*sl_piece_text(tokenizer, id);
        int32_t *first = tokenizer->user_defined + tokenizer->user_starts[byte];
        uint32_t at = filled[byte]++;
        for (; at && sl_piece_length(tokenizer, first[at - 1]) < sl_piece_length(tokenizer, id);
             at--)
            first[at] = first[at - 1];
        first[at] = id;
    }
    return true;
}

/* Check that every character can be encoded: by byte fallback or the unknown piece. */
static int check_fallback(const sl_tokenizer *tokenizer, const char *path) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    const int32_t unk_id = vocabulary->unk_id;
    if (unk_id >= 0 && vocabulary->types[unk_id] != SL_PIECE_UNKNOWN)
        return reject_piece(path, unk_id, "is unk_id but not of type unknown");
    if (!vocabulary->byte_fallback && unk_id < 0)
        return reject(path, "its tokenizer has neither an unknown piece nor byte fallback");
    for (int byte = 0; byte < 256; byte++)
        if (vocabulary->byte_fallback && tokenizer->byte_ids[byte] < 0) {
            char reason[] = "its tokenizer has byte fallback but no piece <0x00>";
            char *digits = strstr(reason, "00>");
            digits[0] = "0123456789ABCDEF"[byte / 16];
            digits[1] = "0123456789ABCDEF"[byte % 16];
            return reject(path, reason);
        }
    return SL_OK;
}

/* Remove the borders within characters. If the vocabulary has unused pieces remove all borders: an
 * unused piece is split as it was last merged anywhere in the text. */
static void complete_borders(sl_tokenizer *tokenizer) {
    for (int a = 0; a < 256; a++)
        for (int b = 0; b < 256; b++)
            if (tokenizer->has_unused || (b & 0xc0) == 0x80) *border_between(tokenizer, a, b) = 0;
}

int sl_tokenizer_index(sl_tokenizer *tokenizer, const sl_vocabulary *vocabulary, const char *path) {
    int status = check_arrays(vocabulary, path);
    if (status) return status;
    tokenizer->vocabulary = *vocabulary;
    uint32_t slot_count = 2;
    while (slot_count < 2 * (uint64_t)vocabulary->size) slot_count *= 2;
    tokenizer->slots = calloc(slot_count, sizeof *tokenizer->slots);
    tokenizer->slot_mask = slot_count - 1;
    if (!tokenizer->slots) return reject_memory(path);
    for (int byte = 0; byte < 256; byte++) tokenizer->byte_ids[byte] = -1;
    memset(tokenizer->borders, 1, sizeof tokenizer->borders);
    for (int32_t id = 0; id < (int32_t)vocabulary->size; id++)
        if ((status = index_piece(tokenizer, id, path))) return status;
    if ((status = check_fallback(tokenizer, path))) return status;
    complete_borders(tokenizer);
    if (!index_user_defined(tokenizer) || !sl_index_decoded(tokenizer)) return reject_memory(path);
    return SL_OK;
}

/* ---- Opening --------------------------------------------------------------------------------- */

/* Replace the caller's arrays by copies. */
static bool copy_arrays(sl_tokenizer *tokenizer) {
    sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    const size_t scores = vocabulary->size * sizeof *vocabulary->scores;
    const size_t offsets = (vocabulary->size + (size_t)1) * sizeof *vocabulary->offsets;
    const size_t tables = scores + offsets + vocabulary->size;
    char *copy = tokenizer->copy = sl_allocate(sl_size_add(tables, vocabulary->text_bytes), 1);
    if (!copy) return false;
    vocabulary->scores = memcpy(copy, vocabulary->scores, scores);
    vocabulary->offsets = memcpy(copy + scores, vocabulary->offsets, offsets);
    vocabulary->types = memcpy(copy + scores + offsets, vocabulary->types, vocabulary->size);
    vocabulary->text = memcpy(copy + scores + offsets + vocabulary->size, vocabulary->text,
                              vocabulary->text_bytes);
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
    free(tokenizer->decoded);
    free(tokenizer->decoded_text);
}

void sl_tokenizer_close(sl_tokenizer *tokenizer) {
    if (!tokenizer) return;
    sl_tokenizer_free(tokenizer);
    free(tokenizer);
}
