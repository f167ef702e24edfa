/* stories.c: the StoryLlamas engine as a worker, see worker.h. */

#define _POSIX_C_SOURCE 200809L

#include "storyllamas.h"
#include "worker.h"

static sl_model *model;
static sl_session *single; /* one slot */
static sl_session *batch;  /* as many slots as the first batch needs */
static uint32_t thread_count;

static void check(int status) {
    if (status) bench_fail(sl_error());
}

static sl_session *new_session(int slots) {
    const sl_session_options options = {.threads = thread_count, .slots = (uint32_t)slots};
    sl_session *session;
    check(sl_session_new(&session, model, &options));
    return session;
}

static void bench_load(const char *path, int threads) {
    sl_model_options options = SL_MODEL_OPTIONS_DEFAULTS;
    options.kernels = getenv("SL_KERNELS");
    thread_count = (uint32_t)threads;
    check(sl_model_open(&model, path, &options));
    single = new_session(1);
}

static int bench_vocab_size(void) {
    return (int)sl_model_info(model)->vocab_size;
}

static sl_options make_options(int steps, uint64_t seed) {
    sl_options options = SL_OPTIONS_DEFAULTS;
    options.temperature = 1;
    options.top_p = bench_top_p;
    options.max_tokens = steps;
    options.seed = seed;
    options.ignore_eos = 1;
    return options;
}

/* Generate a sequence after BOS and write it to ids, which may be NULL. */
static void generate_ids(int32_t *ids, const sl_options *options) {
    const int32_t bos = BENCH_BOS;
    check(sl_start_ids(single, &bos, 1, options));
    for (sl_piece piece = {0}; !piece.stop;) {
        check(sl_next(single, &piece));
        if (ids && piece.id >= 0) *ids++ = piece.id;
    }
}

static void bench_story(int steps, uint64_t seed) {
    const sl_options options = make_options(steps, seed);
    generate_ids(NULL, &options);
}

static void bench_greedy(int32_t *ids, int steps) {
    sl_options options = make_options(steps, 0);
    options.temperature = 0;
    generate_ids(ids, &options);
}

/* Time to the first token, the most probable one. */
static void bench_prompt(const int32_t *ids, int count) {
    sl_options options = make_options(1, 0);
    sl_piece piece;
    options.temperature = 0;
    check(sl_start_ids(single, ids, (size_t)count, &options));
    check(sl_next(single, &piece));
}

static int bench_batch(int sequences, int steps, uint64_t seed) {
    const int32_t bos = BENCH_BOS;
    sl_piece *pieces = calloc((size_t)sequences, sizeof *pieces);
    if (!pieces) bench_fail("not enough memory");
    if (!batch) batch = new_session(sequences);
    for (int s = 0; s < sequences; s++) {
        const sl_options options = make_options(steps, seed + (uint64_t)s);
        check(sl_start_slot_ids(batch, (size_t)s, &bos, 1, &options));
    }
    for (int step = 0; step < steps; step++) check(sl_step(batch, pieces));
    free(pieces);
    return 1;
}

static const char *bench_about(void) {
    return sl_model_info(model)->kernels;
}
