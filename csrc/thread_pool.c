/* thread_pool.c: a pool of threads for parallel loops of a few microseconds.
 *
 * A loop is split into one part for each thread. Any thread takes the next free part, so a thread
 * that the system has suspended delays the loop only if it holds a part. Idle threads poll for the
 * next loop for a moment, then sleep. Threads that are not in use only sleep. */

#include "thread_pool.h"

#ifdef SL_HAS_THREADS

#include <stdatomic.h>

enum {
    CACHE_LINE = 64,
    PART_BITS = 8, /* low bits of a ticket: the part; the other bits: the loop's number */
    CLOSED = (1 << PART_BITS) - 1,
#ifdef __wasm__ /* it has no instruction for a pause, so that polls are short */
    POLLS = 16,
#else
    POLLS = 1,
#endif
    IDLE_SPINS = POLLS << 11, /* polls for a loop before a thread sleeps: about 50 microseconds */
    WAIT_SPINS = POLLS << 12, /* polls for the end of a loop before the thread yields */
};

struct sl_thread_pool {
    /* The next free part of the current loop. */
    _Alignas(CACHE_LINE) _Atomic uint64_t ticket;
    /* The current loop. */
    _Alignas(CACHE_LINE) _Atomic(sl_task) task;
    _Atomic(void *) context;
    atomic_size_t count, part_size;
    _Alignas(CACHE_LINE) atomic_size_t finished; /* parts that are done */
    _Alignas(CACHE_LINE) atomic_int sleepers;    /* threads in use that wait for a loop */
    atomic_bool is_closing;
    atomic_size_t used; /* threads 0 … used - 1 take parts */
    sl_mutex mutex;
    sl_condition wake;   /* a loop has begun */
    sl_condition rejoin; /* more threads are in use */

    int64_t process; /* the process that has the threads */
    size_t threads;
    struct sl_worker {
        sl_thread_pool *pool;
        sl_thread thread;
        size_t number;
    } workers[SL_MAX_THREADS];
};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Take and run parts of loop `number` until none is left.
 *
 * A ticket is valid only while its loop is open. A thread that reads a field of the next loop also
 * sees that this loop was closed before (release and acquire). So if the ticket is still valid
 * after the fields were read, all of them belong to its loop. */
static void take_parts(sl_thread_pool *pool, uint64_t number, size_t thread) {
    for (;;) {
        uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
        const size_t part = ticket & CLOSED;
        const sl_task task = atomic_load_explicit(&pool->task, memory_order_acquire);
        void *const context = atomic_load_explicit(&pool->context, memory_order_acquire);
        const size_t count = atomic_load_explicit(&pool->count, memory_order_acquire);
        const size_t part_size = atomic_load_explicit(&pool->part_size, memory_order_acquire);
        const size_t first = part * part_size, left = count - first;
        if (ticket >> PART_BITS != number || part == CLOSED || first >= count) return;
        if (!atomic_compare_exchange_strong_explicit(&pool->ticket, &ticket, ticket + 1,
                                                     memory_order_acq_rel, memory_order_relaxed))
            continue;
        task(context, first, first + (left < part_size ? left : part_size), thread);
        atomic_fetch_add_explicit(&pool->finished, 1, memory_order_release);
    }
}

static uint64_t current_loop(sl_thread_pool *pool) {
    return atomic_load(&pool->ticket) >> PART_BITS;
}

/* Wait for a loop later than number `seen`. Returns its number. */
static uint64_t await_loop(sl_thread_pool *pool, uint64_t seen) {
    for (int i = 0; i < IDLE_SPINS; i++) {
        const uint64_t number = atomic_load_explicit(&pool->ticket, memory_order_acquire);
        if (number >> PART_BITS != seen) return number >> PART_BITS;
        pause_briefly();
    }
    sl_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (current_loop(pool) == seen && !atomic_load(&pool->is_closing))
        sl_condition_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    sl_mutex_unlock(&pool->mutex);
    return current_loop(pool);
}

static bool is_used(const struct sl_worker *worker) {
    return worker->number < atomic_load_explicit(&worker->pool->used, memory_order_relaxed);
}

/* Sleep until the thread is in use. */
static void await_use(const struct sl_worker *worker) {
    sl_thread_pool *pool = worker->pool;
    sl_mutex_lock(&pool->mutex);
    while (!is_used(worker) && !atomic_load(&pool->is_closing))
        sl_condition_wait(&pool->rejoin, &pool->mutex);
    sl_mutex_unlock(&pool->mutex);
}

static void work(void *argument) {
    const struct sl_worker *worker = argument;
    uint64_t seen = 0;
    while (!atomic_load_explicit(&worker->pool->is_closing, memory_order_relaxed)) {
        seen = await_loop(worker->pool, seen);
        if (is_used(worker))
            take_parts(worker->pool, seen, worker->number);
        else
            await_use(worker);
    }
}

size_t sl_thread_pool_size(const sl_thread_pool *pool) {
    return pool->threads;
}

void sl_thread_pool_use(sl_thread_pool *pool, size_t threads) {
    const size_t before = atomic_load_explicit(&pool->used, memory_order_relaxed);
    if (threads == before) return;
    sl_mutex_lock(&pool->mutex);
    atomic_store(&pool->used, threads);
    if (threads > before) sl_condition_wake_all(&pool->rejoin);
    sl_mutex_unlock(&pool->mutex);
}

static void wake_sleepers(sl_thread_pool *pool) {
    if (atomic_load(&pool->sleepers) == 0) return;
    sl_mutex_lock(&pool->mutex);
    sl_condition_wake_all(&pool->wake);
    sl_mutex_unlock(&pool->mutex);
}

/* Wait for the parts that other threads have taken. */
static void await_end(sl_thread_pool *pool, size_t parts) {
    for (int i = 0; atomic_load_explicit(&pool->finished, memory_order_acquire) != parts; i++) {
        if (i < WAIT_SPINS)
            pause_briefly();
        else
            sl_thread_yield();
    }
}

void sl_parallel_for(sl_thread_pool *pool, size_t count, size_t grain, sl_task task,
                     void *context) {
    const size_t grains = (count + grain - 1) / grain;
    const size_t used = pool ? atomic_load_explicit(&pool->used, memory_order_relaxed) : 1;
    if (used == 1 || grains <= 1) {
        if (count) task(context, 0, count, 0);
        return;
    }
    const size_t part_size = (grains + used - 1) / used * grain;
    const size_t parts = (count + part_size - 1) / part_size;
    const uint64_t number = current_loop(pool) + 1;
    atomic_store_explicit(&pool->ticket, number << PART_BITS | CLOSED, memory_order_release);
    atomic_store_explicit(&pool->task, task, memory_order_release);
    atomic_store_explicit(&pool->context, context, memory_order_release);
    atomic_store_explicit(&pool->count, count, memory_order_release);
    atomic_store_explicit(&pool->part_size, part_size, memory_order_release);
    atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
    atomic_store(&pool->ticket, (number + 1) << PART_BITS);
    wake_sleepers(pool);
    take_parts(pool, number + 1, 0);
    await_end(pool, parts);
}

static void end_threads(sl_thread_pool *pool) {
    sl_mutex_lock(&pool->mutex);
    atomic_store(&pool->is_closing, true);
    sl_condition_wake_all(&pool->wake);
    sl_condition_wake_all(&pool->rejoin);
    sl_mutex_unlock(&pool->mutex);
    for (size_t i = 1; i < pool->threads; i++) sl_thread_join(&pool->workers[i].thread);
    sl_condition_destroy(&pool->rejoin);
    sl_condition_destroy(&pool->wake);
    sl_mutex_destroy(&pool->mutex);
}

sl_thread_pool *sl_thread_pool_new(size_t min_threads, size_t max_threads) {
    sl_thread_pool *pool = sl_pages_new(sizeof *pool, false);
    if (!pool) return NULL;
    pool->process = sl_process();
    pool->threads = 1;
    sl_mutex_init(&pool->mutex);
    sl_condition_init(&pool->wake);
    sl_condition_init(&pool->rejoin);
    atomic_init(&pool->used, max_threads);
    for (; pool->threads < max_threads; pool->threads++) {
        struct sl_worker *worker = &pool->workers[pool->threads];
        worker->pool = pool;
        worker->number = pool->threads;
        if (!sl_thread_start(&worker->thread, work, worker)) break;
    }
    sl_thread_pool_use(pool, pool->threads);
    if (pool->threads >= min_threads) return pool;
    sl_thread_pool_free(pool);
    return NULL;
}

bool sl_thread_pool_is_mine(const sl_thread_pool *pool) {
    return pool->process == sl_process();
}

void sl_thread_pool_free(sl_thread_pool *pool) {
    if (!pool) return;
    /* The child of a fork has no threads to wait for, and one of them may have held the mutex. */
    if (sl_thread_pool_is_mine(pool)) end_threads(pool);
    sl_pages_free(pool, sizeof *pool);
}

#else /* the platform has no threads: the caller processes all items */

size_t sl_thread_pool_size(const sl_thread_pool *pool) {
    (void)pool;
    return 1;
}

void sl_thread_pool_use(sl_thread_pool *pool, size_t threads) {
    (void)pool, (void)threads;
}

void sl_parallel_for(sl_thread_pool *pool, size_t count, size_t grain, sl_task task,
                     void *context) {
    (void)pool, (void)grain;
    if (count) task(context, 0, count, 0);
}

sl_thread_pool *sl_thread_pool_new(size_t min_threads, size_t max_threads) {
    (void)min_threads, (void)max_threads;
    return NULL;
}

bool sl_thread_pool_is_mine(const sl_thread_pool *pool) {
    (void)pool;
    return true;
}

void sl_thread_pool_free(sl_thread_pool *pool) {
    (void)pool;
}

#endif
