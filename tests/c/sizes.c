/* sizes.c: tests that sizes which do not fit size_t are errors.
 *
 * usage: sizes MODEL.slm. The model's key-value cache has 2^33 bytes, too many for a program of 32
 * bits. Its vocabulary has a piece of two NUL bytes, so that a text of NUL bytes is one word. */

#include "sizes.h"

#include <stdbool.h>
#include <stdio.h>

#include "storyllamas.h"

static bool check(const char *name, bool is_right) {
    if (!is_right) printf("%s is wrong: %s\n", name, sl_error());
    return is_right;
}

static bool is_saturated(void) {
    const size_t half = SIZE_MAX / 2 + 1;
    return sl_size_add(3, 4) == 7 && sl_size_multiply(3, 4) == 12 &&
           sl_size_add(half, half) == SL_TOO_LARGE && sl_size_multiply(half, 2) == SL_TOO_LARGE &&
           sl_size_multiply(SL_TOO_LARGE, 0) == SL_TOO_LARGE &&
           sl_size_add(SL_TOO_LARGE, 0) == SL_TOO_LARGE && sl_size_round_up(65, 64) == 128 &&
           sl_size_round_up(SIZE_MAX - 3, 64) == SL_TOO_LARGE && !sl_allocate(half, 2);
}

/* Encode a word whose symbols and heap have 2^32 bytes or more. Zeros from calloc that are only
 * read take up no memory. */
static bool is_long_word_rejected(const sl_tokenizer *tokenizer) {
    const size_t length = (size_t)1 << 28;
    char *word = calloc(length, 1);
    size_t count;
    if (!word) return false;
    const int status = sl_encode(tokenizer, NULL, word, length, NULL, 0, &count);
    free(word);
    return status == SL_ERROR_MEMORY;
}

int main(int argc, char **argv) {
    sl_model *model;
    sl_session *session;
    if (argc != 2 || sl_model_open(&model, argv[1], NULL)) return EXIT_FAILURE;
    bool is_right = check("saturation", is_saturated());
    if (sizeof(size_t) == 4) {
        const int status = sl_session_new(&session, model, NULL);
        is_right &= check("the cache", status == SL_ERROR_MEMORY && !session);
        is_right &= check("a long word", is_long_word_rejected(sl_model_tokenizer(model)));
    }
    sl_model_close(model);
    return is_right ? EXIT_SUCCESS : EXIT_FAILURE;
}
