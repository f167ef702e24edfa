/* open_files.c: opens each weight file and, if that succeeds, uses all of the library on it.
 *
 * usage: open_files [-m] FILE… Prints a line for each file: "ok" or the error message. With -m the
 * program reads each file into memory of exactly its size and opens that. */

#define _POSIX_C_SOURCE 200809L /* posix_memalign */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storyllamas.h"

static uint32_t state = 1;

static uint32_t integer(uint32_t below) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % below;
}

/* Encode and decode random bytes and letters. Each buffer has exactly the size that the call is
 * given, so that the sanitizer reports any access behind it. */
static void use_text(const sl_model *model) {
    const sl_tokenizer *tokenizer = sl_model_tokenizer(model);
    sl_word_cache *caches[2] = {NULL};
    if (sl_word_cache_new(&caches[1], tokenizer)) return;
    for (int round = 0; round < 20; round++) {
        const size_t length = integer(40);
        char *text = malloc(length), *back = malloc(16 * length + 64);
        const int is_letters = (int)integer(2);
        sl_word_cache *cache = caches[integer(2)];
        for (size_t i = 0; i < length; i++)
            text[i] = is_letters ? "ab \n"[integer(4)] : (char)integer(256);
        size_t capacity = integer(80), count, back_length;
        int32_t *ids = malloc(capacity * sizeof *ids);
        const int status = sl_encode(tokenizer, cache, text, length, ids, capacity, &count);
        if (!status && sl_decode(tokenizer, ids, count, back, 16 * length + 64, &back_length))
            abort();
        const uint64_t offsets[] = {0, length / 2, length};
        sl_encode_stories(tokenizer, cache, text, offsets, 2, 1, 2, ids, capacity, &count);
        for (size_t i = 0; i < capacity; i++)
            ids[i] = (int32_t)integer(sl_model_info(model)->vocab_size + 2) - 1;
        sl_decode(tokenizer, ids, capacity, back, 16 * length + 64, &back_length);
        free(text);
        free(back);
        free(ids);
    }
    sl_word_cache_free(caches[1]);
}

/* Read all of the chat section, and the spelling of every piece. */
static void use_chat(const sl_model *model) {
    const uint32_t vocab_size = sl_model_info(model)->vocab_size;
    size_t count, length;
    const uint32_t *ids = sl_extra_eos_ids(model, &count);
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= vocab_size) abort();
    const char *template = sl_chat_template(model, &length);
    if (!template != !length) abort();
    uint64_t sum = 0;
    for (size_t i = 0; i < length; i++) sum += (uint8_t)template[i];
    for (uint32_t id = 0; id < vocab_size; id++) {
        const char *text = sl_token_text(sl_model_tokenizer(model), (int32_t)id, &length);
        for (size_t i = 0; i < length; i++) sum += (uint8_t)text[i];
    }
    if (sum == 0 || sl_token_text(sl_model_tokenizer(model), -1, &length) || length) abort();
    if (sl_token_text(sl_model_tokenizer(model), (int32_t)vocab_size, &length)) abort();
}

static void use_session(const sl_model *model) {
    const sl_info *info = sl_model_info(model);
    sl_session *session;
    if (sl_session_new(&session, model, NULL)) return;
    for (int round = 0; round < 4; round++) {
        sl_options options = SL_OPTIONS_DEFAULTS;
        options.temperature = (float)integer(3);
        options.top_k = (int32_t)integer(2) * (int32_t)integer(1000);
        options.top_p = integer(2) ? 1.0f : 0.5f;
        options.min_p = integer(2) ? 0.0f : 0.1f;
        options.repetition_penalty = integer(2) ? 1.0f : 1.5f;
        options.repetition_window = (int32_t)integer(300);
        options.ignore_eos = (int32_t)integer(2);
        options.max_tokens = 1 + (int32_t)integer(50);
        const char *prompt = "a b\xc3\xa9";
        int status = sl_start(session, prompt, integer(2) * strlen(prompt), &options);
        for (sl_piece piece = {0}; !status && !piece.stop;) status = sl_next(session, &piece);
        sl_piece after;
        sl_next(session, &after);
        const size_t count = 2 + integer(40);
        int32_t ids[42];
        double scores[41];
        float *logits = malloc(count * info->vocab_size * sizeof *logits);
        for (size_t i = 0; i < count; i++) ids[i] = (int32_t)integer(info->vocab_size);
        sl_score(session, ids, count, scores);
        sl_logits(session, ids, count, logits);
        size_t kept;
        for (size_t n = 1 + integer(42); n; n /= 2)
            if (!sl_continue_ids(session, ids, n, &options, &kept) && kept >= n) abort();
        free(logits);
    }
    sl_session_free(session);
}

static void use_model(const sl_model *model) {
    use_text(model);
    use_chat(model);
    use_session(model);
}

static void open_file(const char *path) {
    sl_model *model;
    if (sl_model_open(&model, path, NULL)) {
        printf("%s\n", sl_error());
        return;
    }
    use_model(model);
    sl_model_close(model);
    printf("ok\n");
}

/* Read a whole file into memory of exactly its size, at a multiple of 64 bytes. */
static void *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) abort();
    *bytes = (size_t)ftell(file);
    rewind(file);
    void *data;
    if (posix_memalign(&data, 64, *bytes)) abort();
    if (fread(data, 1, *bytes, file) != *bytes) abort();
    fclose(file);
    return data;
}

static void open_memory(const char *path) {
    size_t bytes;
    void *data = read_file(path, &bytes);
    sl_model *model;
    if (sl_model_open_memory(&model, data, bytes, NULL)) {
        printf("%s\n", sl_error());
    } else {
        use_model(model);
        sl_model_close(model);
        printf("ok\n");
    }
    free(data);
}

int main(int argc, char **argv) {
    const int is_in_memory = argc > 1 && !strcmp(argv[1], "-m");
    for (int i = 1 + is_in_memory; i < argc; i++)
        if (is_in_memory)
            open_memory(argv[i]);
        else
            open_file(argv[i]);
    return EXIT_SUCCESS;
}
