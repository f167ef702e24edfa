/* thread_pool.c: tests that a thread pool processes every item of every loop once, also while the
 * number of threads in use changes, and that threads that are not in use take no part.
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

enum { MAX_ITEMS = 64, MAX_THREADS = 8, PAUSE_EVERY = 1000 };

static uint32_t state = 1;

static size_t number(size_t below) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % below;
}

typedef struct {
    size_t counts[MAX_ITEMS];
    bool took[MAX_THREADS]; /* whether a thread took a part */
} loop_result;

static void count_items(void *context, size_t first, size_t end, size_t thread) {
    loop_result *result = context;
    result->took[thread] = true;
    for (size_t i = first; i < end; i++) result->counts[i]++;
}

/* Run a loop. Returns whether each item was processed once, by threads that are in use. */
static bool run_loop(sl_thread_pool *pool, size_t used, size_t count, size_t grain) {
    loop_result result = {0};
    sl_parallel_for(pool, count, grain, count_items, &result);
    for (size_t i = 0; i < MAX_ITEMS; i++)
        if (result.counts[i] != (i < count)) {
            printf("item %zu of %zu was processed %zu times\n", i, count, result.counts[i]);
            return false;
        }
    for (size_t thread = used; thread < MAX_THREADS; thread++)
        if (result.took[thread]) {
            printf("thread %zu took a part and %zu are in use\n", thread, used);
            return false;
        }
    return true;
}

int main(int argc, char **argv) {
    const size_t threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 2;
    const size_t loops = argc > 2 ? strtoul(argv[2], NULL, 10) : 10000;
    sl_thread_pool *pool = sl_thread_pool_new(threads, threads);
    if (!pool || sl_thread_pool_size(pool) != threads) return EXIT_FAILURE;
    size_t used = threads;
    for (size_t loop = 1; loop <= loops; loop++) {
        if (!run_loop(pool, used, number(MAX_ITEMS + 1), 1 + number(5))) return EXIT_FAILURE;
        if (number(8) == 0) sl_thread_pool_use(pool, used = 1 + number(threads));
        /* Long enough for the other threads to sleep. */
        if (loop % PAUSE_EVERY == 0) nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    sl_thread_pool_free(pool);
    printf("%zu threads, %zu loops\n", threads, loops);
    return EXIT_SUCCESS;
}
