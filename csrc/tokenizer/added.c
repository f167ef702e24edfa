/* added.c: finds added tokens in a text.
 *
 * The search goes from left to right. Where several tokens begin, the longest one matches. If that
 * is not accepted, such as a special token in plain text, the search continues behind it. */

#include "added.h"

#include <stdlib.h>

#include "../sizes.h"
#include "tokenizer.h"
#include "unicode.h"

/* ---- The matchers ---------------------------------------------------------------------------- */

/* Order needles by text, a special token first among equals. */
static int compare_needles(const void *first, const void *second) {
    const sl_needle *a = first, *b = second;
    const uint32_t shared = a->length < b->length ? a->length : b->length;
    const int order = memcmp(a->text, b->text, shared);
    if (order) return order;
    if (a->length != b->length) return a->length < b->length ? -1 : 1;
    const uint32_t special = SL_ADDED_SPECIAL;
    if ((a->flags ^ b->flags) & special) return a->flags & special ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

/* Write the text of a token, normalized if `normalized` is set. Returns its length. */
static uint32_t write_needle(const sl_tokenizer *tokenizer, int32_t id, bool normalized,
                             char *out) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    const char *text = sl_piece_text(tokenizer, id);
    const char *begin = out;
    const bool replaces = normalized && vocabulary->kind == SL_BPE && !vocabulary->metaspace;
    if (replaces && vocabulary->dummy_prefix) {
        memcpy(out, SL_SPACE, SL_SPACE_BYTES);
        out += SL_SPACE_BYTES;
    }
    for (uint32_t i = 0; i < sl_piece_length(tokenizer, id); i++) {
        if (replaces && text[i] == ' ') {
            memcpy(out, SL_SPACE, SL_SPACE_BYTES);
            out += SL_SPACE_BYTES;
        } else {
            *out++ = text[i];
        }
    }
    return (uint32_t)(out - begin);
}

/* Allocate a matcher for `count` tokens whose texts have `bytes` bytes. */
static bool allocate_matcher(sl_matcher *matcher, size_t count, size_t bytes) {
    matcher->needles = calloc(count + 1, sizeof *matcher->needles);
    matcher->text = sl_allocate(sl_size_add(sl_size_add(bytes, count), 1), SL_SPACE_BYTES);
    return matcher->needles && matcher->text;
}

static void add_needle(const sl_tokenizer *tokenizer, sl_matcher *matcher, sl_added_token token) {
    const sl_needle *before = matcher->count ? &matcher->needles[matcher->count - 1] : NULL;
    const size_t used = before ? (size_t)(before->text - matcher->text) + before->length : 0;
    char *text = matcher->text + used;
    const bool normalized = token.flags & SL_ADDED_NORMALIZED;
    const uint32_t length = write_needle(tokenizer, (int32_t)token.id, normalized, text);
    matcher->needles[matcher->count++] = (sl_needle){text, length, (int32_t)token.id, token.flags};
    matcher->begins[(uint8_t)*text] = true;
    if (!(token.flags & SL_ADDED_SPECIAL)) matcher->has_plain = true;
}

static bool index_all(sl_tokenizer *tokenizer, const sl_added_token *tokens, size_t count) {
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) bytes += sl_piece_length(tokenizer, (int32_t)tokens[i].id);
    sl_matcher *matchers[] = {&tokenizer->raw, &tokenizer->normalized};
    for (int i = 0; i < 2; i++)
        if (!allocate_matcher(matchers[i], count, bytes)) return false;
    for (size_t i = 0; i < count; i++)
        add_needle(tokenizer, matchers[(tokens[i].flags & SL_ADDED_NORMALIZED) != 0], tokens[i]);
    for (int i = 0; i < 2; i++)
        qsort(matchers[i]->needles, matchers[i]->count, sizeof(sl_needle), compare_needles);
    return true;
}

/* Index the control pieces of SentencePiece, which has no added tokens, as special tokens. */
static bool index_controls(sl_tokenizer *tokenizer) {
    size_t count = 0;
    sl_added_token *tokens = calloc(tokenizer->vocabulary.size, sizeof *tokens);
    if (!tokens) return false;
    for (uint32_t id = 0; id < tokenizer->vocabulary.size; id++)
        if (sl_piece_type(tokenizer, (int32_t)id) == SL_PIECE_CONTROL)
            tokens[count++] = (sl_added_token){id, SL_ADDED_SPECIAL};
    const bool enough = index_all(tokenizer, tokens, count);
    free(tokens);
    return enough;
}

bool sl_index_added(sl_tokenizer *tokenizer) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    if (vocabulary->kind == SL_SENTENCEPIECE) return index_controls(tokenizer);
    return index_all(tokenizer, vocabulary->added, vocabulary->added_count);
}

void sl_matcher_free(sl_matcher *matcher) {
    free(matcher->needles);
    free(matcher->text);
}

/* ---- The search ------------------------------------------------------------------------------ */

/* Return the first of needles first … last - 1 whose byte number `depth` is at least this byte. All
 * of them have the same bytes before it. */
static uint32_t lower_bound(const sl_matcher *matcher, uint32_t first, uint32_t last,
                            uint32_t depth, uint32_t byte) {
    while (first < last) {
        const uint32_t middle = first + (last - first) / 2;
        if ((uint8_t)matcher->needles[middle].text[depth] < byte)
            first = middle + 1;
        else
            last = middle;
    }
    return first;
}

/* Return the longest needle that text[at …] begins with, or NULL. */
static const sl_needle *needle_at(const sl_search *search, size_t at) {
    const sl_matcher *matcher = search->matcher;
    const sl_needle *longest = NULL;
    uint32_t first = 0, last = matcher->count;
    for (uint32_t depth = 0; first < last; depth++) {
        if (matcher->needles[first].length == depth) {
            longest = &matcher->needles[first];
            while (first < last && matcher->needles[first].length == depth) first++;
        }
        if (at + depth == search->length) break;
        const uint32_t byte = (uint8_t)search->text[at + depth];
        first = lower_bound(matcher, first, last, depth, byte);
        last = lower_bound(matcher, first, last, depth, byte + 1);
    }
    return longest;
}

static bool has_class(const char *character, uint32_t classes) {
    return sl_unicode_range_of(sl_code_point(character)).classes & classes;
}

/* Return whether a needle at text[start … end - 1] is a match. */
static bool is_accepted(const sl_search *search, const sl_needle *needle, size_t start,
                        size_t end) {
    const char *text = search->text;
    if (needle->flags & SL_ADDED_SPECIAL && !search->special) return false;
    if (!(needle->flags & SL_ADDED_SINGLE_WORD)) return true;
    if (start && has_class(text + sl_code_before(text, start), SL_WORD_CHARACTER)) return false;
    return end == search->length || !has_class(text + end, SL_WORD_CHARACTER);
}

/* Return the match of a needle, with the whitespace that belongs to it: on the left as far as the
 * last match, on the right as far as it goes. */
static sl_match make_match(sl_search *search, const sl_needle *needle, size_t start, size_t end) {
    const char *text = search->text;
    if (needle->flags & SL_ADDED_LSTRIP) {
        for (size_t left; start > search->done; start = left) {
            left = sl_code_before(text, start);
            if (!has_class(text + left, SL_WHITE)) break;
        }
        if (start < search->done) start = search->done; /* the last match includes some of it */
    }
    if (needle->flags & SL_ADDED_RSTRIP) {
        if (end < search->white_end) end = search->white_end;
        while (end < search->length && has_class(text + end, SL_WHITE))
            end += sl_code_bytes(text[end]);
        search->white_end = end;
    }
    return (sl_match){start, end, needle->id};
}

bool sl_search_next(sl_search *search, sl_match *match) {
    while (search->at < search->length) {
        const size_t at = search->at;
        const sl_needle *needle = NULL;
        if (search->matcher->begins[(uint8_t)search->text[at]]) needle = needle_at(search, at);
        search->at += needle ? needle->length : 1;
        if (!needle || !is_accepted(search, needle, at, search->at)) continue;
        *match = make_match(search, needle, at, search->at);
        search->done = match->end;
        return true;
    }
    return false;
}
