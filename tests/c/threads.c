/* threads.c: a team does every item of every loop once, however many threads there are.
 *
 * usage: threads THREADS LOOPS. The counters are plain, so a thread sanitizer sees what the team
 * does not keep apart. */

#define _POSIX_C_SOURCE 200809L

#include "threads.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

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

int main(int argc, char **argv) {
    const size_t threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 2;
    const size_t loops = argc > 2 ? strtoul(argv[2], NULL, 10) : 10000;
    sl_team *team = sl_team_new(threads);
    size_t counts[MOST] = {0}, expected[MOST] = {0};
    if (!team) return EXIT_FAILURE;
    for (size_t loop = 1; loop <= loops; loop++) {
        const size_t count = number(MOST + 1);
        sl_share(team, count, 1 + number(5), count_items, counts);
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
    sl_team_free(team);
    printf("%zu threads, %zu loops\n", threads, loops);
    return EXIT_SUCCESS;
}
