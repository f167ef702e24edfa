/* thread_pool.h: a pool of threads for parallel loops of a few microseconds. */

#ifndef STORYLLAMAS_THREAD_POOL_H
#define STORYLLAMAS_THREAD_POOL_H

#include <stddef.h>

enum { SL_MAX_THREADS = 64 };

typedef struct sl_thread_pool sl_thread_pool;

/* Process items first … end - 1 of a loop. thread is below the pool's size; no two calls with the
 * same number run at the same time. */
typedef void (*sl_task)(void *context, size_t first, size_t end, size_t thread);

/* Make a pool of 1 … SL_MAX_THREADS threads, the calling thread included. Returns NULL if the
 * system has not enough memory or threads. */
sl_thread_pool *sl_thread_pool_new(size_t threads);

/* NULL is a no-op. */
void sl_thread_pool_free(sl_thread_pool *pool);

/* Return the number of processors that this process may run on. */
size_t sl_processor_count(void);

/* Process items 0 … count - 1 and return when all are done. The loop is split at multiples of
 * `grain`. If pool is NULL the calling thread processes all items. */
void sl_parallel_for(sl_thread_pool *pool, size_t count, size_t grain, sl_task task, void *context);

#endif
