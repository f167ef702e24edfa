/* migration.c: moves a mapped file onto huge pages while other threads read it.
 *
 * A thread copies the file to huge pages elsewhere, then asks the system to replace the mapping by
 * the copy. The system does that in one step for all threads, so a reader finds the same bytes at
 * the same addresses before and after. */

#define _GNU_SOURCE /* mremap */

#include "migration.h"

#include "platform.h"

#ifdef SL_PLATFORM_POSIX
#include <sys/mman.h>
#endif

#if defined(MREMAP_FIXED) && defined(MADV_HUGEPAGE)

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { START_PASS = 4 }; /* the forward pass that starts the migration */

struct sl_migration {
    pthread_t thread;
    pid_t process; /* that has the thread; a forked child inherits only the mapping */
    void *pages;
    size_t bytes;
    sem_t start;        /* wakes the thread */
    atomic_uint passes; /* counted up to START_PASS, by concurrent passes a little further */
    atomic_bool is_finished, is_cancelled;
};

/* Return whether the copy is complete; it stops when the migration is cancelled. */
static bool copy(const sl_migration *m, uint8_t *to) {
    enum { STEP = 1 << 20 };
    const uint8_t *from = m->pages;
    for (size_t at = 0; at < m->bytes; at += STEP) {
        const size_t left = m->bytes - at;
        if (atomic_load_explicit(&m->is_cancelled, memory_order_relaxed)) return false;
        memcpy(to + at, from + at, left < STEP ? left : STEP);
    }
    return true;
}

static void *migrate(void *argument) {
    sl_migration *m = argument;
    while (sem_wait(&m->start)) continue; /* interrupted by a signal */
    void *huge = atomic_load(&m->is_cancelled) ? NULL : sl_pages_new(m->bytes, true);
    if (huge && !(copy(m, huge) && mremap(huge, m->bytes, m->bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                                          m->pages) == m->pages))
        sl_pages_free(huge, m->bytes);
    atomic_store(&m->is_finished, true);
    return NULL;
}

sl_migration *sl_migration_new(void *pages, size_t bytes) {
    sl_migration *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->process = getpid();
    m->pages = pages;
    m->bytes = bytes;
    sem_init(&m->start, 0, 0);
    if (pthread_create(&m->thread, NULL, migrate, m) == 0) return m;
    sem_destroy(&m->start);
    free(m);
    return NULL;
}

void sl_migration_count_pass(sl_migration *migration) {
    if (!migration || atomic_load_explicit(&migration->passes, memory_order_relaxed) >= START_PASS)
        return;
    if (atomic_fetch_add(&migration->passes, 1) + 1 == START_PASS) sem_post(&migration->start);
}

bool sl_migration_is_running(const sl_migration *migration) {
    return migration && atomic_load(&migration->passes) >= START_PASS &&
           !atomic_load(&migration->is_finished) && migration->process == getpid();
}

void sl_migration_free(sl_migration *migration) {
    if (!migration) return;
    atomic_store(&migration->is_cancelled, true);
    sem_post(&migration->start);
    if (migration->process == getpid()) pthread_join(migration->thread, NULL);
    sem_destroy(&migration->start);
    free(migration);
}

#else /* the system has no mremap: the file stays where it is */

sl_migration *sl_migration_new(void *pages, size_t bytes) {
    (void)pages, (void)bytes;
    return NULL;
}

void sl_migration_count_pass(sl_migration *migration) {
    (void)migration;
}

bool sl_migration_is_running(const sl_migration *migration) {
    (void)migration;
    return false;
}

void sl_migration_free(sl_migration *migration) {
    (void)migration;
}

#endif
