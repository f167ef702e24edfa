/* autotune.h: measures how many threads of a pool are fastest for a kind of work.
 *
 * The answer depends on the model, the machine and its load, so that measuring never ends: now and
 * then a few steps try another number of threads. The time that they lose decides how long that
 * number is not tried again, so that trials take a few per cent of the time at most.
 *
 * If another program takes a processor, a step on several threads often is as fast as before, but
 * now and then waits milliseconds for a suspended thread. A short trial misses these waits. So the
 * winner's mean over all its steps is compared further with what the others took. */

#ifndef STORYLLAMAS_AUTOTUNE_H
#define STORYLLAMAS_AUTOTUNE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "thread_pool.h"

/* Choice 0 is all threads of the pool; each further one is half as many, down to one thread. */
enum { SL_MAX_CHOICES = SL_MAX_THREADS == 1 ? 1 : 7 };

typedef struct {
    double spent; /* nanoseconds */
    double units; /* of work */
} sl_work;

/* Times steps of one kind, such as the forward passes of one token. */
typedef struct {
    size_t threads; /* of the pool */
    size_t one;     /* the choice of one thread */
    size_t choice;  /* the fastest, as far as is known */
    size_t tried;   /* by the current steps: `choice`, or another during a trial */
    unsigned steps; /* since `tried` changed */
    unsigned wait;  /* steps until the next trial, at least */
    int64_t start;  /* of the current step, in nanoseconds */
    sl_work trial;  /* all of it */
    sl_work stay;   /* all work since the trial that `choice` won */
    struct sl_choice {
        sl_work recent; /* without the first step, which wakes threads up */
        int64_t retry;  /* when to try it again */
        double pause;   /* until then, times what it lost when another won */
    } choices[SL_MAX_CHOICES];
} sl_autotune;

/* Prepare for a pool of `threads`. The first choice is one thread or all of them, whichever is
 * likely faster. */
void sl_autotune_init(sl_autotune *tune, size_t threads, bool starts_with_one);

/* Begin a step at a time in nanoseconds. Returns the number of threads to run it on. */
size_t sl_autotune_begin(sl_autotune *tune, int64_t now);

/* End the step, which did `units` of work, such as tokens. */
void sl_autotune_end(sl_autotune *tune, int64_t now, size_t units);

#endif
