/* stories.c: this engine as a worker, see worker.h. */

#include "storyllamas.h"
#include "worker.h"

static sl_model *model;
static sl_session *session;

static void check(int status) {
    if (status) bench_fail(sl_error());
}

static void bench_load(const char *path, int threads) {
    (void)threads;
    check(sl_model_open(&model, path));
    check(sl_session_new(&session, model));
}

static int bench_vocab_size(void) {
    return (int)sl_model_info(model)->vocab_size;
}

static sl_options story_options(int steps, uint64_t seed) {
    sl_options options = SL_DEFAULTS;
    options.temperature = 1;
    options.top_p = bench_top_p;
    options.tokens = steps;
    options.seed = seed;
    options.ignore_end = 1;
    return options;
}

/* Tell a story after BOS to ids, which may be NULL. */
static void tell(int32_t *ids, const sl_options *options) {
    const int32_t bos = BENCH_BOS;
    check(sl_start_ids(session, &bos, 1, options));
    for (sl_piece piece = {0}; !piece.stop;) {
        check(sl_next(session, &piece));
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

static void bench_prompt(const int32_t *ids, int count) {
    const sl_options options = story_options(1, 0);
    check(sl_start_ids(session, ids, (size_t)count, &options));
}

static int bench_batch(int stories, int steps, uint64_t seed) {
    (void)stories, (void)steps, (void)seed;
    return 0;
}

static const char *bench_about(void) {
    return sl_model_info(model)->kernels;
}
