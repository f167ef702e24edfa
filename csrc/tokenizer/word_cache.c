/* word_cache.c: a cache of words and their ids. */

#include "word_cache.h"

#include <stdlib.h>

#include "../error.h"
#include "tokenizer.h"

int sl_word_cache_new(sl_word_cache **cache, const sl_tokenizer *tokenizer) {
    sl_word_cache *made = *cache = calloc(1, sizeof **cache);
    if (made) made->memory = calloc(SL_WORD_SLOTS + 1, sizeof *made->words);
    if (!made || !made->memory) {
        sl_word_cache_free(made);
        *cache = NULL;
        return sl_fail(SL_ERROR_MEMORY, "not enough memory for a word cache");
    }
    const uintptr_t start = (uintptr_t)made->memory;
    made->words = (sl_word *)((char *)made->memory + (-start & (sizeof *made->words - 1)));
    made->tokenizer = tokenizer;
    return SL_OK;
}

void sl_word_cache_free(sl_word_cache *cache) {
    if (!cache) return;
    free(cache->memory);
    free(cache);
}
