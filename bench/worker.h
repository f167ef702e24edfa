/* worker.h: what the measured programs have in common.
 *
 *     worker MODEL THREADS
 *
 * loads a model once and then answers requests, one a line on standard input, with a line of JSON
 * each on standard output:
 *
 *     story STEPS SEED            tell STEPS tokens after BOS   {"seconds": 0.0123}
 *     prompt TOKENS SEED          to the logits of the last     {"seconds": 0.0123}
 *     batch STORIES STEPS SEED    that many stories at once     {"seconds": 0.0123}
 *     greedy STEPS                the likeliest tokens          {"ids": [5, 17]}
 *     about                       what is measured              {"about": "version 1"}
 *
 * What a worker cannot do has no answer but {}. THREADS is 0 for as many as the program chooses
 * itself. Stories are sampled at temperature 1 from the likeliest tokens that together have
 * probability 0.9, and go on past their end. peers/worker.py is the same in Python. */

#ifndef STORYLLAMAS_BENCH_WORKER_H
#define STORYLLAMAS_BENCH_WORKER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BENCH_BOS = 1 };
static const float bench_top_p = 0.9f;

/* Each worker defines these. The first four return what is to be printed between the braces. */
static void bench_load(const char *model, int threads);
static void bench_story(int steps, uint64_t seed);
static void bench_prompt(const int32_t *ids, int count);
static int bench_batch(int stories, int steps, uint64_t seed); /* 0: cannot */
static void bench_greedy(int32_t *ids, int steps);
static const char *bench_about(void);
static int bench_vocab_size(void);

static double bench_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static _Noreturn void bench_fail(const char *what) {
    fprintf(stderr, "error: %s\n", what);
    exit(EXIT_FAILURE);
}

/* ids[count] without control tokens, others for another seed. */
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
        bench_fail("no such request");
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
