/* pace.h: whether a team of threads is faster than one, found out as the work goes on. */

#ifndef STORYLLAMAS_PACE_H
#define STORYLLAMAS_PACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Times pieces of work of one kind, such as the tokens of a story. Start with zeros, and `is_alone`
 * as is likely: what is likely is tried first. */
typedef struct {
    bool is_alone;    /* one thread is faster, as far as is known */
    uint32_t number;  /* of the present piece within a cycle, which begins with a trial of both */
    int64_t spent[2]; /* nanoseconds in the trial: in a team, alone */
    int64_t begun;
} sl_pace;

/* Begin a piece of work; returns whether to do it alone. */
bool sl_pace_begin(sl_pace *pace);

void sl_pace_end(sl_pace *pace);

#endif
