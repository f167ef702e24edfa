/* pace.c: whether a team of threads is faster than one, found out as the work goes on.
 *
 * It depends on what the machine is doing besides, and so it changes. */

#define _POSIX_C_SOURCE 200809L /* clock_gettime */

#include "pace.h"

#include <time.h>

enum {
    WARM_UP = 1, /* pieces that are not counted: threads wake up, caches change hands */
    TRIAL = 3,   /* pieces that are, of either kind */
    HALF = WARM_UP + TRIAL,
    CYCLE = 40 * HALF, /* a trial costs little even where one kind takes twice the time */
};

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The trial's first half is of the kind that was best, its second of the other. */
static bool is_trial_alone(const sl_pace *pace) {
    return pace->is_alone != (pace->number >= HALF);
}

bool sl_pace_begin(sl_pace *pace) {
    if (pace->number >= 2 * HALF) return pace->is_alone;
    pace->begun = nanoseconds();
    return is_trial_alone(pace);
}

void sl_pace_end(sl_pace *pace) {
    if (pace->number < 2 * HALF && pace->number % HALF >= WARM_UP)
        pace->spent[is_trial_alone(pace)] += nanoseconds() - pace->begun;
    pace->number++;
    if (pace->number == 2 * HALF) {
        pace->is_alone = pace->spent[true] < pace->spent[false];
        pace->spent[true] = pace->spent[false] = 0;
    }
    if (pace->number == CYCLE) pace->number = 0;
}
