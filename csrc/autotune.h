/* autotune.h: measures whether the thread pool is faster than one thread.
 *
 * The answer depends on the load of the machine, so it is measured regularly. */

#ifndef STORYLLAMAS_AUTOTUNE_H
#define STORYLLAMAS_AUTOTUNE_H

#include <stdbool.h>
#include <stdint.h>

/* Times steps of one kind, such as the forward passes of one token. Start with zeros and set
 * is_single to the more likely answer, which is tried first. */
typedef struct {
    bool is_single;   /* one thread is faster, as far as is known */
    uint32_t step;    /* within a cycle; a cycle begins with a trial of both */
    int64_t spent[2]; /* nanoseconds of the trial: with the pool, with one thread */
    int64_t start;    /* of the current step, in nanoseconds */
} sl_autotune;

/* Begin a step. Returns whether to run it on one thread. */
bool sl_autotune_begin(sl_autotune *tune);

/* End the step. */
void sl_autotune_end(sl_autotune *tune);

#endif
