/* main.c: generates a story with the model in flash, and prints how much RAM that took.
 *
 * The arguments are SEED TEMPERATURE MAX_TOKENS CONTEXT PROMPT. */

#include <inttypes.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "board.h"
#include "storyllamas.h"

static char arguments[512] = "";

static void print_text(const char *text) {
    board_write(text, strlen(text));
}

/* Print as printf does, a line of at most 159 bytes. Give a size_t as %u, since newlib's printf may
 * be without %zu. */
__attribute__((format(printf, 1, 2))) static void print(const char *format, ...) {
    char line[160];
    va_list values;
    va_start(values, format);
    const int length = vsnprintf(line, sizeof line, format, values);
    va_end(values);
    board_write(line, length < (int)sizeof line ? (size_t)length : sizeof line - 1);
}

static int fail(void) {
    print_text("error: ");
    print_text(sl_error());
    print_text("\n");
    return 1;
}

/* Return the bytes of the heap that are in use. */
static size_t allocated(void) {
    return mallinfo().uordblks;
}

static size_t stack_bytes(void) {
    const uint8_t *lowest = stack_start;
    while (lowest < stack_end && *lowest == STACK_PAINT) lowest++;
    return (size_t)(stack_end - lowest);
}

/* Set the options and the context that the arguments name. Returns the prompt. */
static const char *read_arguments(sl_options *options, uint32_t *context) {
    if (board_arguments(arguments, sizeof arguments)) return "Once upon a time";
    char *next = strchr(arguments, ' ');
    if (!next) return "Once upon a time";
    options->seed = strtoull(next, &next, 10);
    options->temperature = strtof(next, &next);
    options->max_tokens = (int32_t)strtol(next, &next, 10);
    *context = strtoul(next, &next, 10);
    return *next == ' ' ? next + 1 : next;
}

/* Make a session whose memory is small: one thread, a cache of 8 bits, one token in each forward
 * pass, and a context no longer than this. Returns it, or NULL after an error. */
static sl_session *new_session(const sl_model *model, uint32_t context, size_t *bytes) {
    const uint32_t max = sl_model_info(model)->context;
    sl_session *session;
    sl_session_options options = {.threads = 1, .slots = 1, .cache = SL_CACHE_Q8, .chunk = 1};
    options.context = context < max ? context : max;
    options.memory_bytes = *bytes = sl_session_bytes(model, &options);
    options.memory = memalign(64, options.memory_bytes);
    if (!options.memory) {
        print("error: the heap has too little room for a session of %u bytes\n", *bytes);
        return NULL;
    }
    if (!sl_session_new(&session, model, &options)) return session;
    fail();
    return NULL;
}

/* Print the story. Returns 0, or 1 after an error. */
static int generate(sl_session *session, const char *prompt, const sl_options *options) {
    sl_piece piece;
    if (sl_start(session, prompt, strlen(prompt), options)) return fail();
    const size_t prompt_tokens = sl_prompt_tokens(session), calls = heap_calls();
    const uint64_t start = board_ticks();
    print_text(prompt);
    do {
        if (sl_next(session, &piece)) return fail();
        board_write(piece.text, piece.length);
    } while (!piece.stop);
    const size_t tokens = sl_sequence_tokens(session) - prompt_tokens;
    const uint64_t ticks = board_ticks() - start;
    print("\n\ntokens: %u after a prompt of %u\n", tokens, prompt_tokens);
    print("timer ticks a token: %" PRIu32 "\n", (uint32_t)(ticks / (tokens ? tokens : 1)));
    print("heap calls while generating: %u\n", heap_calls() - calls);
    return 0;
}

static void print_memory(size_t model_bytes, size_t session_bytes) {
    const size_t variables = (size_t)(bss_end - data_start), stack = stack_bytes();
    print("model: %u bytes in flash, %u bytes of RAM\n", (size_t)(model_end - model_start),
          model_bytes);
    print("session: %u bytes of RAM\n", session_bytes);
    print("heap: %u of %u bytes\n", heap_bytes(), (size_t)(heap_end - heap_start));
    print("stack: %u of %u bytes\n", stack, (size_t)(stack_end - stack_start));
    print("variables: %u bytes\n", variables);
    print("RAM in all: %u bytes\n", heap_bytes() + stack + variables);
}

int main(void) {
    sl_model *model;
    sl_options options = SL_OPTIONS_DEFAULTS;
    uint32_t context = 256;
    const char *prompt = read_arguments(&options, &context);
    const size_t before = allocated();
    if (sl_model_open_memory(&model, model_start, (size_t)(model_end - model_start), NULL))
        return fail();
    const size_t model_bytes = allocated() - before;
    size_t session_bytes;
    sl_session *session = new_session(model, context, &session_bytes);
    if (!session || generate(session, prompt, &options)) return 1;
    print_memory(model_bytes, session_bytes);
    return 0;
}
