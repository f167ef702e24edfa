/* thread_pool.c: tests that a thread pool processes every item of every loop once, and that
 * autotuning tries the likely choice first and settles on the faster one.
 *
 * usage: thread_pool THREADS LOOPS. The counters are not atomic, so that the thread sanitizer
 * reports a race between two threads. */

#define _POSIX_C_SOURCE 200809L

#include "thread_pool.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "autotune.h"

enum { MAX_ITEMS = 64, PAUSE_EVERY = 1000 };

static uint32_t state = 1;

static size_t number(size_t below) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % below;
}

static void count_items(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    size_t *counts = context;
    for (size_t i = first; i < end; i++) counts[i]++;
}

/* Return whether autotuning tries the likely choice, then the other, then stays with the faster
 * one, which takes no time. A choice is whether to use a single thread. */
static bool settles(bool likely, bool faster) {
    enum { HALF = 4, STEPS = 4 * HALF };
    sl_autotune tune = {.is_single = likely};
    for (int step = 0; step < STEPS; step++) {
        const bool is_single = sl_autotune_begin(&tune);
        if (is_single != faster) nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        sl_autotune_end(&tune);
        const bool expected = step < HALF ? likely : step < 2 * HALF ? !likely : faster;
        if (is_single == expected) continue;
        printf("likely %d, faster %d: step %d was single: %d\n", likely, faster, step, is_single);
        return false;
    }
    return true;
}

int main(int argc, char **argv) {
    const size_t threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 2;
    const size_t loops = argc > 2 ? strtoul(argv[2], NULL, 10) : 10000;
    sl_thread_pool *pool = sl_thread_pool_new(threads, threads);
    size_t counts[MAX_ITEMS] = {0}, expected[MAX_ITEMS] = {0};
    if (!pool) return EXIT_FAILURE;
    for (size_t loop = 1; loop <= loops; loop++) {
        const size_t count = number(MAX_ITEMS + 1);
        sl_parallel_for(pool, count, 1 + number(5), count_items, counts);
        for (size_t i = 0; i < count; i++) expected[i]++;
        for (size_t i = 0; i < MAX_ITEMS; i++)
            if (counts[i] != expected[i]) {
                printf("loop %zu: item %zu was processed %zu times and not %zu\n", loop, i,
                       counts[i], expected[i]);
                return EXIT_FAILURE;
            }
        /* Long enough for the other threads to sleep. */
        if (loop % PAUSE_EVERY == 0) nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    sl_thread_pool_free(pool);
    for (int likely = 0; likely < 2; likely++)
        for (int faster = 0; faster < 2; faster++)
            if (!settles(likely, faster)) return EXIT_FAILURE;
    printf("%zu threads, %zu loops\n", threads, loops);
    return EXIT_SUCCESS;
}
