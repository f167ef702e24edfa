/* threads.h: a team of threads that shares out loops. */

#ifndef STORYLLAMAS_THREADS_H
#define STORYLLAMAS_THREADS_H

#include <stddef.h>

enum { SL_MOST_THREADS = 64 };

typedef struct sl_team sl_team;

/* Do items first … end - 1 of a loop. `thread` is below the team's size and not used by two at a
 * time. */
typedef void (*sl_task)(void *context, size_t first, size_t end, size_t thread);

/* A team of `threads`, 1 … SL_MOST_THREADS, of which the caller's own is one; NULL where memory or
 * threads lack. */
sl_team *sl_team_new(size_t threads);

/* Also of NULL. */
void sl_team_free(sl_team *team);

/* Processors that this process may run on. */
size_t sl_processors(void);

/* Do items 0 … count - 1, in parts of whole grains, and return when all are done. team may be NULL:
 * the caller's thread does them alone. */
void sl_share(sl_team *team, size_t count, size_t grain, sl_task task, void *context);

#endif
