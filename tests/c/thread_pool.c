/* threads.c: a team does every item of every loop once, however many threads there are, and a pace
 * tries what is likely first and settles on what is faster.
 *
 * usage: threads THREADS LOOPS. The counters are plain, so a thread sanitizer sees what the team
 * does not keep apart. */

#define _POSIX_C_SOURCE 200809L

#include "threads.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "pace.h"

enum { MOST = 64, PAUSE_EVERY = 1000 };

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

/* Whether a pace tries what is likely, then the other kind, then stays with the one that takes no
 * time. */
static bool settles(bool likely, bool faster) {
    enum { HALF = 4, PIECES = 4 * HALF };
    sl_autotune pace = {.is_alone = likely};
    for (int piece = 0; piece < PIECES; piece++) {
        const bool is_alone = sl_autotune_begin(&pace);
        if (is_alone != faster) nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        sl_autotune_end(&pace);
        const bool expected = piece < HALF ? likely : piece < 2 * HALF ? !likely : faster;
        if (is_alone == expected) continue;
        printf("likely %d, faster %d: piece %d was alone: %d\n", likely, faster, piece, is_alone);
        return false;
    }
    return true;
}

int main(int argc, char **argv) {
    const size_t threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 2;
    const size_t loops = argc > 2 ? strtoul(argv[2], NULL, 10) : 10000;
    sl_thread_pool *team = sl_thread_pool_new(threads);
    size_t counts[MOST] = {0}, expected[MOST] = {0};
    if (!team) return EXIT_FAILURE;
    for (size_t loop = 1; loop <= loops; loop++) {
        const size_t count = number(MOST + 1);
        sl_parallel_for(team, count, 1 + number(5), count_items, counts);
        for (size_t i = 0; i < count; i++) expected[i]++;
        for (size_t i = 0; i < MOST; i++)
            if (counts[i] != expected[i]) {
                printf("loop %zu: item %zu was done %zu times and not %zu\n", loop, i, counts[i],
                       expected[i]);
                return EXIT_FAILURE;
            }
        /* Long enough for the others to fall asleep. */
        if (loop % PAUSE_EVERY == 0) nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    sl_thread_pool_free(team);
    for (int likely = 0; likely < 2; likely++)
        for (int faster = 0; faster < 2; faster++)
            if (!settles(likely, faster)) return EXIT_FAILURE;
    printf("%zu threads, %zu loops\n", threads, loops);
    return EXIT_SUCCESS;
}
