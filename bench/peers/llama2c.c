/* llama2c.c: llama2.c as a worker, see worker.h. Compile it with the user's checkout on the include
 * path. -DINT8 selects runq.c instead of run.c; -fopenmp makes it use threads. */

#define TESTING
#ifdef INT8
#include "runq.c"
#else
#include "run.c"
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../worker.h"

static Transformer transformer;

static void bench_load(const char *model, int threads) {
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    (void)threads;
    build_transformer(&transformer, (char *)model);
}

static int bench_vocab_size(void) {
    return transformer.config.vocab_size;
}

/* Generate a sequence after BOS and write it to ids, which may be NULL. */
static void generate_ids(int32_t *ids, int steps, float temperature, uint64_t seed) {
    Sampler sampler;
    build_sampler(&sampler, bench_vocab_size(), temperature, bench_top_p, seed);
    for (int position = 0, id = BENCH_BOS; position < steps; position++) {
        id = sample(&sampler, forward(&transformer, id, position));
        if (ids) ids[position] = id;
    }
    free_sampler(&sampler);
}

static void bench_story(int steps, uint64_t seed) {
    generate_ids(NULL, steps, 1, seed + 1); /* its random numbers are all 0 with seed 0 */
}

static void bench_greedy(int32_t *ids, int steps) {
    generate_ids(ids, steps, 0, 1);
}

static void bench_prompt(const int32_t *ids, int count) {
    for (int i = 0; i < count; i++) forward(&transformer, ids[i], i);
}

static int bench_batch(int sequences, int steps, uint64_t seed) {
    (void)sequences, (void)steps, (void)seed;
    return 0;
}

static const char *bench_about(void) {
    return "-Ofast -march=native";
}
