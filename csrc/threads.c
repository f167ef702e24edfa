/* threads.c: a team of threads that shares out loops of a few microseconds.
 *
 * A loop is cut into one part for each thread, and whoever is there takes the next part, so that a
 * thread which the system keeps from running is not waited for unless it holds one. Idle threads
 * watch for the next loop for a moment and then sleep. */

#define _GNU_SOURCE /* sched_getaffinity */

#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    LINE = 64,
    PART_BITS = 8, /* of a ticket: the part; the rest is the loop's number */
    CLOSED = (1 << PART_BITS) - 1,
    IDLE_SPINS = 1 << 11, /* looks for a loop before sleeping: some 50 microseconds */
    LATE_SPINS = 1 << 12, /* looks for the end of a loop before others are let in between */
};

struct sl_team {
    /* The next part to take of the present loop. */
    _Alignas(LINE) _Atomic uint64_t ticket;
    /* The present loop. */
    _Alignas(LINE) _Atomic(sl_task) task;
    _Atomic(void *) context;
    atomic_size_t count, part_size;
    _Alignas(LINE) atomic_size_t finished; /* parts of it that are done */
    _Alignas(LINE) atomic_int sleepers;
    atomic_bool ends;
    pthread_mutex_t mutex;
    pthread_cond_t wake;

    size_t threads;
    struct sl_worker {
        sl_team *team;
        pthread_t thread;
        size_t number;
    } workers[SL_MOST_THREADS];
};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Take and do parts of loop `number` until none is left.
 *
 * A ticket is good only while its loop is open. Whoever reads a field of the next loop knows that
 * this one was closed before (release and acquire), so a ticket that is still good afterwards says
 * that all fields read belong to it. */
static void take_parts(sl_team *team, uint64_t number, size_t thread) {
    for (;;) {
        uint64_t ticket = atomic_load_explicit(&team->ticket, memory_order_acquire);
        const size_t part = ticket & CLOSED;
        const sl_task task = atomic_load_explicit(&team->task, memory_order_acquire);
        void *const context = atomic_load_explicit(&team->context, memory_order_acquire);
        const size_t count = atomic_load_explicit(&team->count, memory_order_acquire);
        const size_t part_size = atomic_load_explicit(&team->part_size, memory_order_acquire);
        const size_t first = part * part_size, left = count - first;
        if (ticket >> PART_BITS != number || part == CLOSED || first >= count) return;
        if (!atomic_compare_exchange_strong_explicit(&team->ticket, &ticket, ticket + 1,
                                                     memory_order_acq_rel, memory_order_relaxed))
            continue;
        task(context, first, first + (left < part_size ? left : part_size), thread);
        atomic_fetch_add_explicit(&team->finished, 1, memory_order_release);
    }
}

static uint64_t present_loop(sl_team *team) {
    return atomic_load(&team->ticket) >> PART_BITS;
}

/* Wait for a loop after number `seen`; returns its number. */
static uint64_t await_loop(sl_team *team, uint64_t seen) {
    for (int i = 0; i < IDLE_SPINS; i++) {
        const uint64_t number = atomic_load_explicit(&team->ticket, memory_order_acquire);
        if (number >> PART_BITS != seen) return number >> PART_BITS;
        pause_briefly();
    }
    pthread_mutex_lock(&team->mutex);
    atomic_fetch_add(&team->sleepers, 1);
    while (present_loop(team) == seen && !atomic_load(&team->ends))
        pthread_cond_wait(&team->wake, &team->mutex);
    atomic_fetch_sub(&team->sleepers, 1);
    pthread_mutex_unlock(&team->mutex);
    return present_loop(team);
}

static void *work(void *argument) {
    const struct sl_worker *worker = argument;
    uint64_t seen = 0;
    while (!atomic_load_explicit(&worker->team->ends, memory_order_relaxed)) {
        seen = await_loop(worker->team, seen);
        take_parts(worker->team, seen, worker->number);
    }
    return NULL;
}

static void wake_sleepers(sl_team *team) {
    if (atomic_load(&team->sleepers) == 0) return;
    pthread_mutex_lock(&team->mutex);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->mutex);
}

/* Wait for the parts that other threads took. */
static void await_end(sl_team *team, size_t parts) {
    for (int i = 0; atomic_load_explicit(&team->finished, memory_order_acquire) != parts; i++) {
        if (i < LATE_SPINS)
            pause_briefly();
        else
            sched_yield();
    }
}

void sl_share(sl_team *team, size_t count, size_t grain, sl_task task, void *context) {
    const size_t grains = (count + grain - 1) / grain;
    if (!team || grains <= 1) {
        if (count) task(context, 0, count, 0);
        return;
    }
    const size_t part_size = (grains + team->threads - 1) / team->threads * grain;
    const size_t parts = (count + part_size - 1) / part_size;
    const uint64_t number = present_loop(team) + 1;
    atomic_store_explicit(&team->ticket, number << PART_BITS | CLOSED, memory_order_release);
    atomic_store_explicit(&team->task, task, memory_order_release);
    atomic_store_explicit(&team->context, context, memory_order_release);
    atomic_store_explicit(&team->count, count, memory_order_release);
    atomic_store_explicit(&team->part_size, part_size, memory_order_release);
    atomic_store_explicit(&team->finished, 0, memory_order_relaxed);
    atomic_store(&team->ticket, (number + 1) << PART_BITS);
    wake_sleepers(team);
    take_parts(team, number + 1, 0);
    await_end(team, parts);
}

sl_team *sl_team_new(size_t threads) {
    sl_team *team = aligned_alloc(LINE, (sizeof *team + LINE - 1) / LINE * LINE);
    if (!team) return NULL;
    *team = (sl_team){.threads = 1};
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->wake, NULL);
    for (; team->threads < threads; team->threads++) {
        struct sl_worker *worker = &team->workers[team->threads];
        worker->team = team;
        worker->number = team->threads;
        if (pthread_create(&worker->thread, NULL, work, worker)) {
            sl_team_free(team);
            return NULL;
        }
    }
    return team;
}

void sl_team_free(sl_team *team) {
    if (!team) return;
    pthread_mutex_lock(&team->mutex);
    atomic_store(&team->ends, true);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->mutex);
    for (size_t i = 1; i < team->threads; i++) pthread_join(team->workers[i].thread, NULL);
    pthread_cond_destroy(&team->wake);
    pthread_mutex_destroy(&team->mutex);
    free(team);
}

size_t sl_processors(void) {
#ifdef __linux__
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) return (size_t)CPU_COUNT(&set);
#endif
    const long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (size_t)count : 1;
}
