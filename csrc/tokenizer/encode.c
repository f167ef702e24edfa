/* encode.c: splits a text into words and encodes each. */

#include <stdlib.h>
#include <string.h>

#include "../error.h"
#include "tokenizer.h"
#include "word_cache.h"

enum {
    MAX_TEXT_BYTES = 1 << 30,
    MAX_WORD_IDS = SL_SPACE_BYTES * (SL_WORD_BYTES + 1) /* of a word that fits the cache */
};

/* ---- Borders between words ------------------------------------------------------------------- */

/* Finds the borders that no merge crosses, one after the other. */
typedef struct {
    const sl_tokenizer *tokenizer;
    const char *text;
    size_t length;
    size_t block;     /* start of the current block of 64 bytes */
    uint64_t borders; /* bit i: a border before byte block + i that is not returned yet */
} border_scan;

/* Return the borders in the current block. No branch depends on the text: one misprediction for
 * each word would take as long as all the rest. */
static uint64_t find_borders(const border_scan *scan) {
    const size_t left = scan->length - scan->block, count = left < 64 ? left : 64;
    uint64_t borders = 0;
    for (size_t i = scan->block == 0; i < count; i++) {
        uint16_t pair;
        memcpy(&pair, scan->text + scan->block + i - 1, sizeof pair);
        borders |= (uint64_t)scan->tokenizer->borders[pair] << i;
    }
    return borders;
}

static border_scan scan_borders(const sl_tokenizer *tokenizer, const char *text, size_t length) {
    border_scan scan = {.tokenizer = tokenizer, .text = text, .length = length};
    scan.borders = length ? find_borders(&scan) : 0;
    return scan;
}

/* Return the position of the next border, or the end of the text after the last one. */
static inline size_t next_border(border_scan *scan) {
    while (!scan->borders) {
        scan->block += 64;
        if (scan->block >= scan->length) return scan->length;
        scan->borders = find_borders(scan);
    }
    const size_t found = scan->block + (size_t)__builtin_ctzll(scan->borders);
    scan->borders &= scan->borders - 1;
    return found;
}

/* ---- Words and their ids --------------------------------------------------------------------- */

/* Append the ids of a word from the cache. If there is room the whole array is copied, which is
 * faster; the ids that follow overwrite the excess. */
static inline void put_cached(sl_id_list *list, const sl_word *word) {
    if (list->count + SL_WORD_IDS <= list->capacity &&
        (word->ids[0] != list->unk_id || word->ids[0] != list->last)) {
        memcpy(list->ids + list->count, word->ids, sizeof word->ids);
        list->count += word->count;
        list->last = word->ids[word->count - 1];
    } else {
        for (uint32_t i = 0; i < word->count; i++) sl_put(list, word->ids[i]);
    }
}

/* Encode a word that is not in the cache, and add it if its ids fit. */
static int put_new(const sl_tokenizer *tokenizer, const char *text, size_t length, sl_word_key key,
                   sl_word *slot, sl_id_list *list) {
    int32_t ids[MAX_WORD_IDS];
    sl_id_list found = {ids, MAX_WORD_IDS, 0, -1, list->unk_id};
    const int status = sl_merge(tokenizer, false, text, length, &found);
    if (status) return status;
    for (size_t i = 0; i < found.count; i++) sl_put(list, ids[i]);
    if (found.count > SL_WORD_IDS) return SL_OK;
    *slot = (sl_word){.key = key, .count = (uint32_t)found.count};
    memcpy(slot->ids, ids, found.count * sizeof *ids);
    return SL_OK;
}

/* Append the ids of a word. `readable` bytes may be read from text, see sl_make_key. */
static inline int put_word(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                           size_t length, size_t readable, sl_id_list *list) {
    if (!cache || length > SL_WORD_BYTES) return sl_merge(tokenizer, false, text, length, list);
    const sl_word_key key = sl_make_key(text, length, readable);
    sl_word *slot = sl_word_slot(cache, key);
    if (!sl_word_is(slot, key)) return put_new(tokenizer, text, length, key, slot, list);
    put_cached(list, slot);
    return SL_OK;
}

/* Append the ids of the first word of a text, with a space in front. */
static int put_first(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                     size_t length, sl_id_list *list) {
    if (length >= SL_WORD_BYTES) return sl_merge(tokenizer, true, text, length, list);
    char spaced[SL_WORD_BYTES] = " ";
    memcpy(spaced + 1, text, length);
    return put_word(tokenizer, cache, spaced, length + 1, sizeof spaced, list);
}

static int put_text(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                    size_t length, sl_id_list *list) {
    border_scan scan = scan_borders(tokenizer, text, length);
    int status = SL_OK;
    size_t at = 0;
    list->last = -1;
    if (tokenizer->vocabulary.dummy_prefix && length) {
        at = next_border(&scan);
        status = put_first(tokenizer, cache, text, at, list);
    }
    for (size_t end; at < length && !status; at = end) {
        end = next_border(&scan);
        status = put_word(tokenizer, cache, text + at, end - at, length - at, list);
    }
    return status;
}

/* ---- The functions of storyllamas.h ---------------------------------------------------------- */

static int check_cache(const sl_tokenizer *tokenizer, const sl_word_cache *cache) {
    if (cache && cache->tokenizer != tokenizer)
        return sl_fail(SL_ERROR_ARGUMENT,
                       "the word cache belongs to another tokenizer: make one for this tokenizer");
    return SL_OK;
}

static int check_text(const char *text, size_t length) {
    if (length > MAX_TEXT_BYTES)
        return sl_fail(SL_ERROR_ARGUMENT, "the text has %zu bytes: give at most %d at once", length,
                       MAX_TEXT_BYTES);
    const size_t valid = sl_utf8_valid(text, length);
    if (valid < length)
        return sl_fail(SL_ERROR_TEXT, "the text is not valid UTF-8 at byte %zu (0x%02x)", valid,
                       (unsigned)(uint8_t)text[valid]);
    return SL_OK;
}

static sl_id_list empty_list(const sl_tokenizer *tokenizer, int32_t *ids, size_t capacity) {
    return (sl_id_list){ids, capacity, 0, -1, tokenizer->vocabulary.unk_id};
}

static int check_room(const sl_id_list *list) {
    if (list->count > list->capacity)
        return sl_fail(SL_ERROR_ARGUMENT, "the text has %zu ids and there is room for %zu",
                       list->count, list->capacity);
    return SL_OK;
}

int sl_encode(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text, size_t length,
              int32_t *ids, size_t capacity, size_t *count) {
    *count = 0;
    int status = check_cache(tokenizer, cache);
    if (status || (status = check_text(text, length))) return status;
    sl_id_list list = empty_list(tokenizer, ids, capacity);
    status = put_text(tokenizer, cache, text, length, &list);
    *count = list.count;
    return status ? status : check_room(&list);
}

static void put_special(sl_id_list *list, int32_t id) {
    list->last = -1;
    if (id >= 0) sl_put(list, id);
}

int sl_encode_stories(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                      const uint64_t *offsets, size_t stories, int32_t bos_id, int32_t eos_id,
                      int32_t *ids, size_t capacity, size_t *count) {
    *count = 0;
    int status = check_cache(tokenizer, cache);
    sl_id_list list = empty_list(tokenizer, ids, capacity);
    for (size_t i = 0; i < stories && !status; i++) {
        if (offsets[i] > offsets[i + 1])
            return sl_fail(SL_ERROR_ARGUMENT, "the offsets of the stories run backwards at %zu", i);
        const char *story = text + offsets[i];
        const size_t length = (size_t)(offsets[i + 1] - offsets[i]);
        put_special(&list, bos_id);
        status = check_text(story, length);
        if (!status) status = put_text(tokenizer, cache, story, length, &list);
        put_special(&list, eos_id);
    }
    *count = list.count;
    return status ? status : check_room(&list);
}
