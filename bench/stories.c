/* stories.c: this engine as a worker, see worker.h. */

#define _POSIX_C_SOURCE 200809L

#include "storyllamas.h"
#include "worker.h"

static sl_model *model;
static sl_session *one;  /* tells one story at a time */
static sl_session *many; /* made for as many stories as are first asked for */
static uint32_t thread_count;

static void check(int status) {
    if (status) bench_fail(sl_error());
}

static sl_session *new_session(int stories) {
    const sl_session_options options = {.threads = thread_count, .stories = (uint32_t)stories};
    sl_session *session;
    check(sl_session_new(&session, model, &options));
    return session;
}

static void bench_load(const char *path, int threads) {
    thread_count = (uint32_t)threads;
    check(sl_model_open(&model, path, NULL));
    one = new_session(1);
}

static int bench_vocab_size(void) {
    return (int)sl_model_info(model)->vocab_size;
}

static sl_options story_options(int steps, uint64_t seed) {
    sl_options options = SL_OPTIONS_DEFAULTS;
    options.temperature = 1;
    options.top_p = bench_top_p;
    options.max_tokens = steps;
    options.seed = seed;
    options.ignore_eos = 1;
    return options;
}

/* Tell a story after BOS to ids, which may be NULL. */
static void tell(int32_t *ids, const sl_options *options) {
    const int32_t bos = BENCH_BOS;
    check(sl_start_ids(one, &bos, 1, options));
    for (sl_piece piece = {0}; !piece.stop;) {
        check(sl_next(one, &piece));
        if (ids && piece.id >= 0) *ids++ = piece.id;
    }
}

static void bench_story(int steps, uint64_t seed) {
    const sl_options options = story_options(steps, seed);
    tell(NULL, &options);
}

static void bench_greedy(int32_t *ids, int steps) {
    sl_options options = story_options(steps, 0);
    options.temperature = 0;
    tell(ids, &options);
}

/* To the first token, the likeliest. */
static void bench_prompt(const int32_t *ids, int count) {
    sl_options options = story_options(1, 0);
    sl_piece piece;
    options.temperature = 0;
    check(sl_start_ids(one, ids, (size_t)count, &options));
    check(sl_next(one, &piece));
}

static int bench_batch(int stories, int steps, uint64_t seed) {
    const int32_t bos = BENCH_BOS;
    sl_piece *pieces = calloc((size_t)stories, sizeof *pieces);
    if (!pieces) bench_fail("there is not enough memory");
    if (!many) many = new_session(stories);
    for (int s = 0; s < stories; s++) {
        const sl_options options = story_options(steps, seed + (uint64_t)s);
        check(sl_start_slot_ids(many, (size_t)s, &bos, 1, &options));
    }
    for (int step = 0; step < steps; step++) check(sl_step(many, pieces));
    free(pieces);
    return 1;
}

static const char *bench_about(void) {
    return sl_model_info(model)->kernels;
}
