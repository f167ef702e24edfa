/* added.h: finds added tokens in a text. */

#ifndef STORYLLAMAS_ADDED_H
#define STORYLLAMAS_ADDED_H

#include <stdbool.h>

#include "../storyllamas.h"

/* An added token, with the text that is searched for. */
typedef struct {
    const char *text;
    uint32_t length;
    int32_t id;
    uint32_t flags;
} sl_needle;

/* A set of added tokens, for searches. */
typedef struct {
    sl_needle *needles; /* [count], sorted by text */
    uint32_t count;
    bool has_plain;   /* some are not special */
    bool begins[256]; /* the first bytes of needles */
    char *text;       /* of all needles */
} sl_matcher;

/* Build the matchers of added tokens. Returns false if there is not enough memory. */
bool sl_index_added(sl_tokenizer *tokenizer);
void sl_matcher_free(sl_matcher *matcher);

/* A match of an added token: text[start … end - 1], with the whitespace that belongs to it. */
typedef struct {
    size_t start;
    size_t end;
    int32_t id;
} sl_match;

/* A search for added tokens in a text. */
typedef struct {
    const sl_matcher *matcher;
    bool special; /* special tokens are found too */
    const char *text;
    size_t length;
    size_t at;        /* where the search continues */
    size_t done;      /* the end of the last match */
    size_t white_end; /* the end of whitespace that belongs to a match */
} sl_search;

/* Find the next added token; returns whether there is one. */
bool sl_search_next(sl_search *search, sl_match *match);

/* Return whether a search can find anything. */
static inline bool sl_can_match(const sl_matcher *matcher, bool special) {
    return matcher->has_plain || (special && matcher->count);
}

#endif
