/* engine.c: the functions that engine.js calls. `make -C csrc wasm` builds them, with the engine,
 * as engine.wasm and, with threads, as engine-threads.wasm: one model and one sequence at a time.
 *
 * A function that can fail returns 0 or an error code of storyllamas.h; error() then returns the
 * message. Texts end with NUL unless a length comes with them. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "platform.h"
#include "storyllamas.h"

/* The names in C have a prefix, because the C library has some of them, too. */
#define EXPORT(name) __attribute__((export_name(#name))) web_##name

enum { FILE_ALIGNMENT = 64 };

typedef struct {
    int32_t id;
    float probability;
} alternative;

/* A generated token, in words of 4 bytes, which engine.js reads. Probabilities are those of the
 * model, before any option of sampling, and 0 if there are no alternatives. */
static struct {
    const char *text;
    size_t length;
    int32_t id;
    int32_t stop;
    float probability;
    uint32_t alternatives_count;
    alternative alternatives[SL_MAX_LOGPROBS]; /* the most probable first */
} token;

static void *file;
static sl_model *model;
static sl_session *session;

/* Return memory for a weight file, or for a text; 0 if there is not enough. */
void *EXPORT(allocate)(size_t bytes) {
    const size_t padded = (bytes + FILE_ALIGNMENT) / FILE_ALIGNMENT * FILE_ALIGNMENT;
    return padded > bytes ? aligned_alloc(FILE_ALIGNMENT, padded) : NULL;
}

void EXPORT(release)(void *memory) {
    free(memory);
}

const char *EXPORT(error)(void) {
    return sl_error();
}

/* Close the model and free its file, before the next file takes memory. */
void EXPORT(close)(void) {
    sl_session_free(session);
    sl_model_close(model);
    free(file);
    session = NULL;
    model = NULL;
    file = NULL;
}

/* Open a weight file in memory of allocate(), which now belongs to the model. threads is that of
 * sl_session_options. There must be no model, and after an error there is none. */
int EXPORT(open)(void *data, size_t bytes, uint32_t threads) {
    sl_session_options options = SL_SESSION_OPTIONS_DEFAULTS;
    options.threads = threads;
    file = data;
    int status = sl_model_open_memory(&model, data, bytes, NULL);
    if (!status) status = sl_session_new(&session, model, &options);
    if (status) web_close();
    return status;
}

/* Return the shape and the types of the model as JSON. */
const char *EXPORT(info)(void) {
    static char json[256];
    const sl_info *i = sl_model_info(model);
    snprintf(json, sizeof json,
             "{\"parameters\": %llu, \"bytes\": %llu, \"type\": \"%s\", \"context\": %u, "
             "\"vocabulary\": %u, \"kernels\": \"%s\"}",
             (unsigned long long)i->parameters, (unsigned long long)i->file_bytes,
             sl_type_name(i->weight_type), (unsigned)i->context, (unsigned)i->vocab_size,
             i->kernels);
    return json;
}

/* Start a sequence. The options are those of sl_options, where `alternatives` is logprobs. */
int EXPORT(start)(const char *prompt, size_t length, float temperature, int32_t top_k, float top_p,
                  float min_p, float repetition_penalty, int32_t repetition_window, uint64_t seed,
                  int32_t max_tokens, int32_t alternatives) {
    sl_options options = SL_OPTIONS_DEFAULTS;
    options.temperature = temperature;
    options.top_k = top_k;
    options.top_p = top_p;
    options.min_p = min_p;
    options.repetition_penalty = repetition_penalty;
    options.repetition_window = repetition_window;
    options.seed = seed;
    options.max_tokens = max_tokens;
    options.logprobs = alternatives;
    return sl_start(session, prompt, length, &options);
}

/* Generate the next token; result() has it. */
int EXPORT(next)(void) {
    sl_piece piece;
    const int status = sl_next(session, &piece);
    token.text = piece.text;
    token.length = piece.length;
    token.id = piece.id;
    token.stop = piece.stop;
    token.probability = piece.top_count ? expf(piece.logprob) : 0;
    token.alternatives_count = (uint32_t)piece.top_count;
    for (size_t i = 0; i < piece.top_count; i++)
        token.alternatives[i] = (alternative){piece.top[i].id, expf(piece.top[i].logprob)};
    return status;
}

const void *EXPORT(result)(void) {
    return &token;
}

/* Return the number of tokens of the prompt, with BOS. */
size_t EXPORT(prompt_tokens)(void) {
    return sl_prompt_tokens(session);
}

/* Return a piece of the vocabulary; its length is in *length. */
const char *EXPORT(piece)(int32_t id, size_t *length) {
    return sl_token_text(sl_model_tokenizer(model), id, length);
}

const char *EXPORT(stop_name)(int32_t stop) {
    return sl_stop_name(stop);
}

#ifdef SL_WASM_THREADS

/* Set the number of workers that call run_worker(), before a model is opened. */
void EXPORT(set_workers)(size_t count) {
    sl_wasm_set_workers(count);
}

/* Run threads of the engine in a worker with a stack of its own. It does not return. */
void EXPORT(run_worker)(size_t number) {
    sl_wasm_run_worker(number);
}

#endif
