/* session_memory.c: generates in the caller's memory and counts the allocations.
 *
 * usage: session_memory MODEL.slm CHUNK PROMPT…. The program is linked with --wrap for the
 * functions that allocate. It prints the bytes of the session and, for each prompt, the greedy text
 * of up to 30 tokens, each with a final NUL, or the error of starting it. */

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storyllamas.h"

enum { ALIGNMENT = 64, TOKENS = 30, MAX_PROMPTS = 16, MAX_TEXT = 4096 };

static bool is_counting;
static int calls;

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) {
    calls += is_counting;
    return __real_malloc(size);
}

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size) {
    calls += is_counting;
    return __real_calloc(count, size);
}

void *__real_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size) {
    calls += is_counting;
    return __real_realloc(memory, size);
}

void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    calls += is_counting;
    return __real_aligned_alloc(alignment, size);
}

void *__real_sl_pages_new(size_t bytes, bool huge);
void *__wrap_sl_pages_new(size_t bytes, bool huge);
void *__wrap_sl_pages_new(size_t bytes, bool huge) {
    calls += is_counting;
    return __real_sl_pages_new(bytes, huge);
}

static void check(int status) {
    if (!status) return;
    fprintf(stderr, "%s\n", sl_error());
    exit(EXIT_FAILURE);
}

/* Return `bytes` bytes of 0xff at a multiple of 64. */
static void *block_of(size_t bytes) {
    void *block = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    return block ? memset(block, 0xff, bytes) : NULL;
}

static void *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) return NULL;
    *bytes = (size_t)ftell(file);
    rewind(file);
    void *data = block_of(*bytes);
    if (data && fread(data, 1, *bytes, file) != *bytes) return NULL;
    fclose(file);
    return data;
}

/* Write the text after a prompt, or the error, with a final NUL. */
static void generate(sl_session *session, const char *prompt, char text[MAX_TEXT]) {
    sl_options options = SL_OPTIONS_DEFAULTS;
    options.temperature = 0;
    options.max_tokens = TOKENS;
    options.ignore_eos = 1;
    size_t length = 0;
    sl_piece piece = {0};
    if (sl_start(session, prompt, strlen(prompt), &options)) {
        snprintf(text, MAX_TEXT, "error: %s", sl_error());
        return;
    }
    while (!piece.stop) {
        check(sl_next(session, &piece));
        if (length + piece.length >= MAX_TEXT) exit(EXIT_FAILURE);
        memcpy(text + length, piece.text, piece.length);
        length += piece.length;
    }
    text[length] = '\0';
}

int main(int argc, char **argv) {
    static char texts[MAX_PROMPTS][MAX_TEXT];
    size_t bytes;
    sl_model *model;
    sl_session *session;
    if (argc < 3 || argc - 3 > MAX_PROMPTS) return EXIT_FAILURE;
    void *data = read_file(argv[1], &bytes);
    check(sl_model_open_memory(&model, data, bytes, NULL));
    sl_session_options options = SL_SESSION_OPTIONS_DEFAULTS;
    options.threads = 1;
    options.chunk = (uint32_t)strtoul(argv[2], NULL, 10);
    options.memory_bytes = sl_session_bytes(model, &options);
    options.memory = block_of(options.memory_bytes);
    is_counting = true;
    check(sl_session_new(&session, model, &options));
    for (int i = 3; i < argc; i++) generate(session, argv[i], texts[i - 3]);
    sl_session_free(session);
    is_counting = false;
    printf("%zu", options.memory_bytes);
    putchar('\0');
    for (int i = 3; i < argc; i++) fwrite(texts[i - 3], 1, strlen(texts[i - 3]) + 1, stdout);
    sl_model_close(model);
    free(options.memory);
    free(data);
    if (calls) fprintf(stderr, "%d allocations\n", calls);
    return calls ? EXIT_FAILURE : EXIT_SUCCESS;
}
