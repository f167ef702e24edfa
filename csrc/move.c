/* move.c: a mapped file's way onto huge pages, while it is read.
 *
 * A thread copies the file elsewhere and then has the system put the copy in the place of the
 * mapping, which is one step for all threads: whoever reads finds the same bytes at the same
 * addresses, before and after. */

#define _GNU_SOURCE /* mremap */

#include <sys/mman.h>

#include "internal.h"

#if defined(MREMAP_FIXED) && defined(MADV_HUGEPAGE)

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FIRST = 4 }; /* pass with which the move begins */

struct sl_move {
    pthread_t thread;
    pid_t process; /* whose thread that is: a fork has only the mapping */
    void *pages;
    size_t bytes;
    sem_t turn;         /* the thread's */
    atomic_uint passes; /* that began, up to FIRST and a few */
    atomic_bool is_over, is_unwanted;
};

/* Whether the copy was finished. */
static bool copy(const sl_move *m, uint8_t *to) {
    enum { PART = 1 << 20 };
    const uint8_t *from = m->pages;
    for (size_t at = 0; at < m->bytes; at += PART) {
        const size_t left = m->bytes - at;
        if (atomic_load_explicit(&m->is_unwanted, memory_order_relaxed)) return false;
        memcpy(to + at, from + at, left < PART ? left : PART);
    }
    return true;
}

static void *work(void *argument) {
    sl_move *m = argument;
    while (sem_wait(&m->turn)) continue; /* a signal came */
    void *huge = atomic_load(&m->is_unwanted) ? NULL : sl_pages_new(m->bytes, true);
    if (huge && !(copy(m, huge) && mremap(huge, m->bytes, m->bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                                          m->pages) == m->pages))
        sl_pages_free(huge, m->bytes);
    atomic_store(&m->is_over, true);
    return NULL;
}

sl_move *sl_move_new(void *pages, size_t bytes) {
    sl_move *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->process = getpid();
    m->pages = pages;
    m->bytes = bytes;
    sem_init(&m->turn, 0, 0);
    if (pthread_create(&m->thread, NULL, work, m) == 0) return m;
    sem_destroy(&m->turn);
    free(m);
    return NULL;
}

void sl_move_pass(sl_move *move) {
    if (!move || atomic_load_explicit(&move->passes, memory_order_relaxed) >= FIRST) return;
    if (atomic_fetch_add(&move->passes, 1) + 1 == FIRST) sem_post(&move->turn);
}

bool sl_move_is_under_way(const sl_move *move) {
    return move && atomic_load(&move->passes) >= FIRST && !atomic_load(&move->is_over) &&
           move->process == getpid();
}

void sl_move_end(sl_move *move) {
    if (!move) return;
    atomic_store(&move->is_unwanted, true);
    sem_post(&move->turn);
    if (move->process == getpid()) pthread_join(move->thread, NULL);
    sem_destroy(&move->turn);
    free(move);
}

#else /* no such step: files stay where they are */

sl_move *sl_move_new(void *pages, size_t bytes) {
    (void)pages, (void)bytes;
    return NULL;
}

void sl_move_pass(sl_move *move) {
    (void)move;
}

bool sl_move_is_under_way(const sl_move *move) {
    (void)move;
    return false;
}

void sl_move_end(sl_move *move) {
    (void)move;
}

#endif
