/* autotune.c: measures whether the thread pool is faster than one thread. */

#include "autotune.h"

#include "platform.h"

enum {
    WARM_UP = 1, /* steps that are not timed: threads wake up, caches change owners */
    TIMED = 3,   /* timed steps of each kind: with the pool, with one thread */
    HALF = WARM_UP + TIMED,
    TRIAL = 2 * HALF,
    /* Long enough that a trial costs little, even if one kind is twice as slow. */
    CYCLE = 40 * HALF,
};

/* The first half of a trial repeats the winner of the last trial, the second tries the other. */
static bool is_trial_single(const sl_autotune *tune) {
    return tune->is_single != (tune->step >= HALF);
}

bool sl_autotune_begin(sl_autotune *tune) {
    if (tune->step >= TRIAL) return tune->is_single;
    tune->start = sl_clock();
    return is_trial_single(tune);
}

void sl_autotune_end(sl_autotune *tune) {
    if (tune->step < TRIAL && tune->step % HALF >= WARM_UP)
        tune->spent[is_trial_single(tune)] += sl_clock() - tune->start;
    tune->step++;
    if (tune->step == TRIAL) {
        tune->is_single = tune->spent[true] < tune->spent[false];
        tune->spent[true] = tune->spent[false] = 0;
    }
    if (tune->step == CYCLE) tune->step = 0;
}
