/* worker.h: the main program of a worker, which runs an engine for the benchmarks.
 *
 *     worker MODEL THREADS
 *
 * loads a model once. Then it answers each request, a line on standard input, with a line of JSON
 * on standard output:
 *
 *     story STEPS SEED              generate STEPS tokens after BOS   {"seconds": 0.0123}
 *     prompt TOKENS SEED            compute the last token's logits   {"seconds": 0.0123}
 *     batch SEQUENCES STEPS SEED    generate a batch of sequences     {"seconds": 0.0123}
 *     greedy STEPS                  generate the most probable ids    {"ids": [5, 17]}
 *     about                         describe the engine               {"about": "version 1"}
 *
 * If the engine cannot do a request the answer is {}. THREADS 0 lets the engine choose.
 * Sampling has temperature 1 and top-p 0.9, and continues after EOS. peers/worker.py is the same in
 * Python. */

#ifndef STORYLLAMAS_BENCH_WORKER_H
#define STORYLLAMAS_BENCH_WORKER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BENCH_BOS = 1 };
static const float bench_top_p = 0.9f;

/* Each worker defines these functions. */
static void bench_load(const char *model, int threads);
static void bench_story(int steps, uint64_t seed);
static void bench_prompt(const int32_t *ids, int count);
static int bench_batch(int sequences, int steps, uint64_t seed); /* returns 0 if it cannot */
static void bench_greedy(int32_t *ids, int steps);
static const char *bench_about(void);
static int bench_vocab_size(void);

static double bench_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static _Noreturn void bench_fail(const char *message) {
    fprintf(stderr, "error: %s\n", message);
    exit(EXIT_FAILURE);
}

/* Fill ids[count] with tokens that depend on the seed, without control tokens. */
static void bench_prompt_ids(int32_t *ids, int count, uint64_t seed) {
    const uint64_t words = (uint64_t)bench_vocab_size() - 3;
    for (int i = 0; i < count; i++) ids[i] = 3 + (int32_t)((31 * (uint64_t)i + seed) % words);
}

static void bench_print_ids(const int32_t *ids, int count) {
    printf("{\"ids\": [");
    for (int i = 0; i < count; i++) printf(i ? ", %d" : "%d", ids[i]);
    printf("]}\n");
}

static void bench_answer(const char *line) {
    static int32_t ids[1 << 16];
    int a, b;
    unsigned long long seed;
    double start = bench_seconds();
    int done = 1;
    if (sscanf(line, "story %d %llu", &a, &seed) == 2) {
        bench_story(a, seed);
    } else if (sscanf(line, "prompt %d %llu", &a, &seed) == 2) {
        bench_prompt_ids(ids, a, seed);
        start = bench_seconds();
        bench_prompt(ids, a);
    } else if (sscanf(line, "batch %d %d %llu", &a, &b, &seed) == 3) {
        done = bench_batch(a, b, seed);
    } else if (sscanf(line, "greedy %d", &a) == 1) {
        bench_greedy(ids, a);
        bench_print_ids(ids, a);
        return;
    } else if (!strncmp(line, "about", 5)) {
        printf("{\"about\": \"%s\"}\n", bench_about());
        return;
    } else {
        bench_fail("unknown request: see worker.h");
    }
    printf(done ? "{\"seconds\": %.9f}\n" : "{}\n", bench_seconds() - start);
}

int main(int argc, char **argv) {
    if (argc != 3) bench_fail("usage: worker MODEL THREADS");
    bench_load(argv[1], atoi(argv[2]));
    for (char line[256]; fgets(line, sizeof line, stdin);) {
        bench_answer(line);
        fflush(stdout);
    }
    return EXIT_SUCCESS;
}

#endif
