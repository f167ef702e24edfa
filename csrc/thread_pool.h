/* thread_pool.h: a pool of threads for parallel loops of a few microseconds. */

#ifndef STORYLLAMAS_THREAD_POOL_H
#define STORYLLAMAS_THREAD_POOL_H

#include "platform.h"

#ifdef SL_HAS_THREADS
enum { SL_MAX_THREADS = 64 };
#else
enum { SL_MAX_THREADS = 1 };
#endif

typedef struct sl_thread_pool sl_thread_pool;

/* Process items first … end - 1 of a loop. thread is below the pool's size; no two calls with the
 * same number run at the same time. */
typedef void (*sl_task)(void *context, size_t first, size_t end, size_t thread);

/* Make a pool of as many threads as the system starts, from min_threads to max_threads, with the
 * calling thread counted; max_threads is at most SL_MAX_THREADS. Returns NULL if the system starts
 * fewer than min_threads, has not enough memory or has no threads. */
sl_thread_pool *sl_thread_pool_new(size_t min_threads, size_t max_threads);

/* Free a pool, in the process that made it or in its forked child. NULL is a no-op. */
void sl_thread_pool_free(sl_thread_pool *pool);

/* Return whether this process made the pool. The child of a fork has a copy of the pool's memory
 * but none of its threads; it may only free it. */
bool sl_thread_pool_is_mine(const sl_thread_pool *pool);

/* Return the number of threads of a pool, with the calling thread counted. */
size_t sl_thread_pool_size(const sl_thread_pool *pool);

/* Use this number of threads for the next loops, 1 to the pool's size; the others sleep. Call it
 * between loops. A new pool uses all. */
void sl_thread_pool_use(sl_thread_pool *pool, size_t threads);

/* Process items 0 … count - 1 and return when all are done. The loop is split at multiples of
 * `grain`. If pool is NULL the calling thread processes all items. */
void sl_parallel_for(sl_thread_pool *pool, size_t count, size_t grain, sl_task task, void *context);

#endif
