/* autotune.c: tests on a simulated machine that autotuning takes little more time than the best
 * fixed number of threads does.
 *
 * A step takes work / threads, and with several threads some time to start and end its loops. If
 * another program runs and there are as many threads as processors, the last thread shares its
 * processor: for some milliseconds it runs, then it is suspended and the step waits for it. */

#include "autotune.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    size_t threads;     /* processors */
    double work;        /* nanoseconds of a step on one thread */
    double start;       /* of the loops of a step on several threads */
    bool is_shared;     /* another program runs */
    double until_pause; /* time of the last thread before it is suspended */
} machine;

static uint32_t state = 1;

/* Return a random number from 0 to 1. */
static double uniform(void) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) / 16777216.0;
}

static double slice(void) {
    return 3e6 * (0.5 + uniform());
}

/* Return the nanoseconds of a step. */
static double step(machine *m, size_t threads) {
    const double noise = 0.95 + 0.1 * uniform(), work = m->work / (double)threads;
    if (threads == 1) return noise * work;
    double time = noise * (work + m->start * (1 + 0.1 * (double)threads));
    if (m->is_shared && threads == m->threads && (m->until_pause -= time) < 0) {
        time += slice();
        m->until_pause = slice();
    }
    return time;
}

/* Return the mean time of a step in `total` nanoseconds, with a fixed number of threads. */
static double fixed(machine *m, size_t threads, double total) {
    double spent = 0, steps = 0;
    for (; spent < total; steps++) spent += step(m, threads);
    return spent / steps;
}

static double best_fixed(machine *m, double total) {
    double best = INFINITY;
    for (size_t threads = m->threads; threads; threads /= 2)
        best = fmin(best, fixed(m, threads, total));
    return best;
}

static double tuned(machine *m, sl_autotune *tune, double total) {
    static int64_t now;
    double spent = 0, steps = 0;
    for (; spent < total; steps++) {
        const size_t threads = sl_autotune_begin(tune, now);
        const double time = step(m, threads);
        now += (int64_t)time;
        spent += time;
        sl_autotune_end(tune, now, 1);
    }
    return spent / steps;
}

/* Return whether autotuning is at most `limit` times as slow as the best number of threads, on an
 * idle machine, then with another program, then idle again. */
static bool is_fast(machine m, bool starts_with_one, const double limits[2]) {
    sl_autotune tune;
    sl_autotune_init(&tune, m.threads, starts_with_one);
    for (int part = 0; part < 3; part++) {
        m.is_shared = part == 1;
        const double total = fmax(1000 * m.work, 3e8);
        tuned(&m, &tune, 1e9); /* settle */
        const double best = best_fixed(&m, total), ours = tuned(&m, &tune, total);
        if (ours <= limits[m.is_shared] * best) continue;
        printf("%zu threads, %g ns of work, %g ns to start, shared %d: %g ns and not %g\n",
               m.threads, m.work, m.start, m.is_shared, ours, best);
        return false;
    }
    return true;
}

int main(void) {
    static const double limits[2] = {1.05, 1.15};
    int runs = 0;
    for (size_t threads = 2; threads <= 8; threads *= 2)
        for (double work = 1e4; work < 2e7; work *= 9)
            for (double start = 1e3; start < 1e5; start *= 9)
                for (int one = 0; one < 2; one++, runs++) {
                    const machine m = {.threads = threads, .work = work, .start = start};
                    if (!is_fast(m, one, limits)) return EXIT_FAILURE;
                }
    printf("%d machines\n", runs);
    return EXIT_SUCCESS;
}
