/* encode.c: encodes a text.
 *
 * The functions put_… append the ids of a text, in these steps:
 *
 *   1. put_text finds the added tokens that match the text as it is;
 *   2. put_segment finds, between these, the added tokens that match normalized text;
 *   3. put_plain cuts the text between added tokens into words: put_pretokenized at the ends of the
 *      pre-tokenizer's words, put_bordered at borders that no merge crosses;
 *   4. put_word takes the ids of a word from the cache, or merges its symbols. */

#include <string.h>

#include "../error.h"
#include "../platform.h"
#include "../sizes.h"
#include "pretokenize.h"
#include "tokenizer.h"
#include "utf8.h"
#include "word_cache.h"

enum {
    NO_ID = -2, /* never the last id of a list */
    MAX_TEXT_BYTES = 1 << 30,
    MAX_WORD_IDS = SL_SPACE_BYTES * (SL_WORD_BYTES + 1) /* of a word that fits the cache */
};

/* ---- Borders between words ------------------------------------------------------------------- */

/* Finds the borders that no merge crosses, in order. */
typedef struct {
    const sl_tokenizer *tokenizer;
    const char *text;
    size_t length;
    size_t block;     /* start of the current block of 64 bytes */
    uint64_t borders; /* bit i: a border before byte block + i, until next_border returns it */
} border_scan;

/* Return the borders in the current block. No branch depends on the text, because a misprediction
 * for each word would double the time. */
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
    const size_t found = scan->block + sl_lowest_bit(scan->borders);
    scan->borders &= scan->borders - 1;
    return found;
}

/* ---- Words and their ids --------------------------------------------------------------------- */

/* Append the ids of a word from the cache. If there is room, copy the whole array, which is faster;
 * the next ids overwrite the excess. */
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

static int merge_word(const sl_tokenizer *tokenizer, bool prefix, const char *word, size_t length,
                      sl_id_list *list) {
    if (tokenizer->ranks) return sl_merge_ranked(tokenizer, prefix, word, length, list);
    return sl_merge_scored(tokenizer, prefix, word, length, list);
}

/* The state of encoding a text. */
typedef struct {
    const sl_tokenizer *tokenizer;
    sl_word_cache *cache; /* NULL: none */
    bool special;         /* special tokens are found in the text */
    sl_id_list list;
} encoder;

/* Append the ids of a word that is not in the cache, and add it to the cache if its ids fit. */
static int put_uncached(encoder *e, const char *text, size_t length, sl_word_key key,
                        sl_word *slot) {
    int32_t ids[MAX_WORD_IDS];
    sl_id_list found = {ids, MAX_WORD_IDS, 0, -1, e->list.unk_id, e->list.scratch};
    const int status = merge_word(e->tokenizer, false, text, length, &found);
    if (status) return status;
    for (size_t i = 0; i < found.count; i++) sl_put(&e->list, ids[i]);
    if (found.count == 0 || found.count > SL_WORD_IDS) return SL_OK;
    *slot = (sl_word){.key = key, .count = (uint32_t)found.count};
    memcpy(slot->ids, ids, found.count * sizeof *ids);
    return SL_OK;
}

/* Append the ids of a word. `readable` bytes may be read from text, see sl_make_key. */
static inline int put_word(encoder *e, const char *text, size_t length, size_t readable) {
    if (!e->cache || length > SL_WORD_BYTES)
        return merge_word(e->tokenizer, false, text, length, &e->list);
    const sl_word_key key = sl_make_key(text, length, readable);
    sl_word *slot = sl_word_slot(e->cache, key);
    if (!sl_word_is(slot, key)) return put_uncached(e, text, length, key, slot);
    put_cached(&e->list, slot);
    return SL_OK;
}

/* Append the ids of the first word of a text, with a space in front. */
static int put_first_word(encoder *e, const char *text, size_t length) {
    if (length >= SL_WORD_BYTES) return merge_word(e->tokenizer, true, text, length, &e->list);
    char spaced[SL_WORD_BYTES] = " ";
    memcpy(spaced + 1, text, length);
    return put_word(e, spaced, length + 1, sizeof spaced);
}

/* ---- Texts ----------------------------------------------------------------------------------- */

/* Append the ids of a text, cut into words at borders. */
static int put_bordered(encoder *e, const char *text, size_t length, bool prefix) {
    border_scan scan = scan_borders(e->tokenizer, text, length);
    int status = SL_OK;
    size_t at = 0;
    e->list.last = -1;
    if (prefix) {
        at = next_border(&scan);
        status = put_first_word(e, text, at);
    }
    const bool split = e->tokenizer->vocabulary.pre_tokenizer == SL_PRE_SPACES;
    for (size_t end; at < length && !status; at = end) {
        end = next_border(&scan);
        if (split && text[at] == ' ') e->list.last = -1; /* unknown pieces fuse within a word */
        status = put_word(e, text + at, end - at, length - at);
    }
    return status;
}

/* Append the ids of a text, cut into words as the pre-tokenizer says. */
static int put_pretokenized(encoder *e, const char *text, size_t length) {
    sl_word_scan scan = {text, length, e->tokenizer->vocabulary.pre_tokenizer, {0, 0, 0}};
    int status = SL_OK;
    for (size_t at = 0, end; at < length && !status; at = end) {
        end = sl_word_end(&scan, at);
        status = put_word(e, text + at, end - at, length - at);
    }
    return status;
}

int sl_reject_text_memory(size_t length) {
    return sl_fail(SL_ERROR_MEMORY, "not enough memory to encode %zu bytes of text: give less",
                   length);
}

/* Append the ids of a text for SL_BYTE_LEVEL with a space in front. */
static int put_spaced(encoder *e, const char *text, size_t length) {
    char *spaced = sl_scratch_take(e->list.scratch, length + 1, 1);
    if (!spaced) return sl_reject_text_memory(length);
    *spaced = ' ';
    memcpy(spaced + 1, text, length);
    const int status = put_pretokenized(e, spaced, length + 1);
    sl_scratch_give(e->list.scratch, spaced);
    return status;
}

static bool begins_with_space(const char *text, size_t length) {
    return *text == ' ' ||
           (length >= SL_SPACE_BYTES && memcmp(text, SL_SPACE, SL_SPACE_BYTES) == 0);
}

/* Append the ids of a text for SL_PRE_SPACES. U+2581 in the text counts as a space, and borders are
 * found at spaces, so replace it first. */
static int put_split_at_spaces(encoder *e, const char *text, size_t length, bool prefix) {
    char *copy = sl_scratch_take(e->list.scratch, length, 1);
    if (!copy) return sl_reject_text_memory(length);
    size_t count = 0;
    for (size_t at = 0; at < length;) {
        const bool space =
            length - at >= SL_SPACE_BYTES && memcmp(text + at, SL_SPACE, SL_SPACE_BYTES) == 0;
        copy[count++] = space ? ' ' : text[at];
        at += space ? SL_SPACE_BYTES : 1;
    }
    const int status = put_bordered(e, copy, count, prefix);
    sl_scratch_give(e->list.scratch, copy);
    return status;
}

/* Append the ids of a text between added tokens. `first`: it begins the whole text. */
static int put_plain(encoder *e, const char *text, size_t length, bool first) {
    const sl_vocabulary *vocabulary = &e->tokenizer->vocabulary;
    bool prefix = vocabulary->dummy_prefix && (first || !vocabulary->prefix_first);
    if (vocabulary->kind == SL_BYTE_LEVEL)
        return prefix && *text != ' ' ? put_spaced(e, text, length)
                                      : put_pretokenized(e, text, length);
    if (vocabulary->metaspace && begins_with_space(text, length)) prefix = false;
    if (vocabulary->pre_tokenizer == SL_PRE_SPACES)
        return put_split_at_spaces(e, text, length, prefix);
    return put_bordered(e, text, length, prefix);
}

/* Append the ids of a normalized text, which already has its prefix. */
static int put_normalized(encoder *e, const char *text, size_t length, bool first) {
    (void)first;
    return put_bordered(e, text, length, false);
}

static void put_token(sl_id_list *list, int32_t id) {
    list->last = -1;
    if (id >= 0) sl_put(list, id);
}

typedef int (*put_part)(encoder *e, const char *text, size_t length, bool first);

/* Append the ids of a text: those of its added tokens, and by `put` those of the text between. */
static int put_with_added(encoder *e, const sl_matcher *matcher, put_part put, const char *text,
                          size_t length, bool first) {
    sl_search search = {matcher, e->special, text, length, 0, 0, 0};
    sl_match match;
    size_t at = 0;
    int status = SL_OK;
    while (!status && sl_search_next(&search, &match)) {
        if (match.start > at) status = put(e, text + at, match.start - at, first && at == 0);
        /* A match is empty if all of it is whitespace that belongs to the match before. */
        if (match.end > match.start) put_token(&e->list, match.id);
        at = match.end;
    }
    if (!status && at < length) status = put(e, text + at, length - at, first && at == 0);
    return status;
}

/* Append the ids of a text for SL_BPE without metaspace: normalize it, then find added tokens. */
static int put_after_normalizing(encoder *e, const char *text, size_t length) {
    size_t spaces = 1;
    for (size_t i = 0; i < length; i++) spaces += text[i] == ' ';
    const size_t bytes = sl_size_add(length, sl_size_multiply(spaces, SL_SPACE_BYTES));
    char *copy = sl_scratch_take(e->list.scratch, bytes, 1);
    char *out = copy;
    if (!copy) return sl_reject_text_memory(length);
    if (e->tokenizer->vocabulary.dummy_prefix)
        out = (char *)memcpy(out, SL_SPACE, SL_SPACE_BYTES) + SL_SPACE_BYTES;
    for (size_t i = 0; i < length; i++) {
        if (text[i] == ' ')
            out = (char *)memcpy(out, SL_SPACE, SL_SPACE_BYTES) + SL_SPACE_BYTES;
        else
            *out++ = text[i];
    }
    const int status = put_with_added(e, &e->tokenizer->normalized, put_normalized, copy,
                                      (size_t)(out - copy), true);
    sl_scratch_give(e->list.scratch, copy);
    return status;
}

/* Append the ids of a text between the added tokens that are found before normalization. */
static int put_segment(encoder *e, const char *text, size_t length, bool first) {
    const sl_vocabulary *vocabulary = &e->tokenizer->vocabulary;
    const sl_matcher *matcher = &e->tokenizer->normalized;
    if (!sl_can_match(matcher, e->special)) return put_plain(e, text, length, first);
    if (vocabulary->kind == SL_BPE && !vocabulary->metaspace)
        return put_after_normalizing(e, text, length);
    return put_with_added(e, matcher, put_plain, text, length, first);
}

static int put_text(encoder *e, const char *text, size_t length) {
    const sl_matcher *matcher = &e->tokenizer->raw;
    e->list.last = -1;
    if (length == 0) return SL_OK;
    if (!sl_can_match(matcher, e->special)) return put_segment(e, text, length, true);
    return put_with_added(e, matcher, put_segment, text, length, true);
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

static encoder make_encoder(const sl_tokenizer *tokenizer, sl_word_cache *cache,
                            sl_scratch *scratch, bool special, int32_t *ids, size_t capacity) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    const bool fuse = vocabulary->kind == SL_SENTENCEPIECE ||
                      (vocabulary->kind == SL_BPE && vocabulary->fuse_unk);
    const int32_t unk_id = fuse ? vocabulary->unk_id : NO_ID;
    return (encoder){tokenizer, cache, special, {ids, capacity, 0, -1, unk_id, scratch}};
}

static int check_room(const sl_id_list *list) {
    if (list->count > list->capacity)
        return sl_fail(SL_ERROR_ARGUMENT, "the text has %zu ids and there is room for %zu",
                       list->count, list->capacity);
    return SL_OK;
}

static int encode(const sl_tokenizer *tokenizer, sl_word_cache *cache, sl_scratch *scratch,
                  bool special, const char *text, size_t length, int32_t *ids, size_t capacity,
                  size_t *count) {
    *count = 0;
    int status = check_cache(tokenizer, cache);
    if (status || (status = check_text(text, length))) return status;
    encoder e = make_encoder(tokenizer, cache, scratch, special, ids, capacity);
    status = put_text(&e, text, length);
    *count = e.list.count;
    return status ? status : check_room(&e.list);
}

int sl_encode(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text, size_t length,
              int32_t *ids, size_t capacity, size_t *count) {
    sl_scratch scratch = {0};
    return encode(tokenizer, cache, &scratch, false, text, length, ids, capacity, count);
}

int sl_encode_prompt(const sl_tokenizer *tokenizer, sl_scratch *scratch, const char *text,
                     size_t length, int32_t *ids, size_t capacity, size_t *count) {
    return encode(tokenizer, NULL, scratch, false, text, length, ids, capacity, count);
}

int sl_encode_special(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                      size_t length, int32_t *ids, size_t capacity, size_t *count) {
    sl_scratch scratch = {0};
    return encode(tokenizer, cache, &scratch, true, text, length, ids, capacity, count);
}

int sl_encode_stories(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                      const uint64_t *offsets, size_t stories, int32_t bos_id, int32_t eos_id,
                      int32_t *ids, size_t capacity, size_t *count) {
    *count = 0;
    int status = check_cache(tokenizer, cache);
    sl_scratch scratch = {0};
    encoder e = make_encoder(tokenizer, cache, &scratch, false, ids, capacity);
    for (size_t i = 0; i < stories && !status; i++) {
        if (offsets[i] > offsets[i + 1])
            return sl_fail(SL_ERROR_ARGUMENT, "the offsets of the stories run backwards at %zu", i);
        const char *story = text + offsets[i];
        const size_t length = (size_t)(offsets[i + 1] - offsets[i]);
        put_token(&e.list, bos_id);
        status = check_text(story, length);
        if (!status) status = put_text(&e, story, length);
        put_token(&e.list, eos_id);
    }
    *count = e.list.count;
    return status ? status : check_room(&e.list);
}
