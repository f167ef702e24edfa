/* seconds.h: the time, to measure speeds. */

#ifndef SL_PROGRAM_SECONDS_H
#define SL_PROGRAM_SECONDS_H

#include "../platform.h"

/* Return seconds from any fixed moment. */
static inline double seconds(void) {
    return 1e-9 * (double)sl_clock();
}

#endif
