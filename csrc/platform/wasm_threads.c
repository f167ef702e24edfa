/* wasm_threads.c: threads of WebAssembly with shared memory, in addition to none.c.
 *
 * A module cannot start a thread. The program that loads it starts workers beforehand, each with an
 * instance of the module, a stack of its own and the same memory. Every worker calls
 * sl_wasm_run_worker, which runs one thread of the engine after the other and never returns.
 *
 * The C library knows nothing of threads, so only the thread that loads the module may call the
 * engine and allocate memory. Workers run parts of loops, which allocate nothing. */

#include "../platform.h"

#ifdef SL_WASM_THREADS

enum {
    MAX_WORKERS = 63,
    YIELD_NANOSECONDS = 10000,
    UNLOCKED = 0,
    LOCKED = 1,
    CONTENDED = 2, /* locked, and another thread may wait for it */
};

/* Nanoseconds since some moment: the program that loads the module has the clock. */
__attribute__((import_module("env"), import_name("clock"))) double sl_wasm_clock(void);

/* The thread that each worker runs, and 1 while it runs it. */
static struct {
    sl_thread *thread;
    sl_futex is_busy;
} workers[MAX_WORKERS];

static size_t worker_count;

/* Sleep while *futex is `value`, for at most so many nanoseconds; -1: without a limit. */
static void futex_wait(sl_futex *futex, int value, int64_t nanoseconds) {
    __builtin_wasm_memory_atomic_wait32((int *)futex, value, nanoseconds);
}

static void futex_wake(sl_futex *futex, unsigned threads) {
    __builtin_wasm_memory_atomic_notify((int *)futex, threads);
}

void sl_wasm_set_workers(size_t count) {
    worker_count = count < MAX_WORKERS ? count : MAX_WORKERS;
}

void sl_wasm_run_worker(size_t number) {
    sl_futex *is_busy = &workers[number].is_busy;
    for (;;) {
        while (!atomic_load(is_busy)) futex_wait(is_busy, false, -1);
        const sl_thread *thread = workers[number].thread;
        thread->run(thread->argument);
        atomic_store(is_busy, false);
        futex_wake(is_busy, UINT32_MAX);
    }
}

size_t sl_processor_count(void) {
    return worker_count + 1;
}

int64_t sl_clock(void) {
    return (int64_t)sl_wasm_clock();
}

bool sl_thread_start(sl_thread *thread, void (*run)(void *argument), void *argument) {
    for (size_t i = 0; i < worker_count; i++) {
        if (atomic_load(&workers[i].is_busy)) continue;
        *thread = (sl_thread){i, run, argument};
        workers[i].thread = thread;
        atomic_store(&workers[i].is_busy, true);
        futex_wake(&workers[i].is_busy, 1);
        return true;
    }
    return false;
}

void sl_thread_join(const sl_thread *thread) {
    sl_futex *is_busy = &workers[thread->handle].is_busy;
    while (atomic_load(is_busy)) futex_wait(is_busy, true, -1);
}

void sl_thread_yield(void) {
    sl_futex never_changes = 0;
    futex_wait(&never_changes, 0, YIELD_NANOSECONDS);
}

void sl_mutex_init(sl_mutex *mutex) {
    atomic_init(mutex, UNLOCKED);
}

void sl_mutex_destroy(sl_mutex *mutex) {
    (void)mutex;
}

void sl_mutex_lock(sl_mutex *mutex) {
    int state = UNLOCKED;
    if (atomic_compare_exchange_strong(mutex, &state, LOCKED)) return;
    while (atomic_exchange(mutex, CONTENDED) != UNLOCKED) futex_wait(mutex, CONTENDED, -1);
}

void sl_mutex_unlock(sl_mutex *mutex) {
    if (atomic_exchange(mutex, UNLOCKED) == CONTENDED) futex_wake(mutex, 1);
}

/* A condition counts how often it was woken. */
void sl_condition_init(sl_condition *condition) {
    atomic_init(condition, 0);
}

void sl_condition_destroy(sl_condition *condition) {
    (void)condition;
}

void sl_condition_wait(sl_condition *condition, sl_mutex *mutex) {
    const int count = atomic_load(condition);
    sl_mutex_unlock(mutex);
    futex_wait(condition, count, -1);
    sl_mutex_lock(mutex);
}

void sl_condition_wake_all(sl_condition *condition) {
    atomic_fetch_add(condition, 1);
    futex_wake(condition, UINT32_MAX);
}

#endif
