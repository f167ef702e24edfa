/* one_failure.c: makes each allocation, mapping and thread creation of a short run fail once.
 *
 * usage: one_failure MODEL.slm KINDS. KINDS is 1 … 8, the number of kinds of runs. The program is
 * linked with --wrap for these functions. A run must either report that there is not enough memory
 * or give the same ids as the run without a failure. The address sanitizer finds leaks. */

#define _GNU_SOURCE

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "storyllamas.h"

enum { IDS = 12 };

static atomic_int calls;  /* of all functions below, in this run */
static int target;        /* the call that fails; 0: none */
static bool is_all_after; /* the calls after it fail too */

static bool fails(void) {
    const int call = atomic_fetch_add(&calls, 1) + 1;
    return target && (call == target || (is_all_after && call > target));
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) {
    return fails() ? NULL : __real_malloc(size);
}

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size) {
    return fails() ? NULL : __real_calloc(count, size);
}

void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

void *__real_mmap(void *at, size_t size, int access, int flags, int file, off_t offset);
void *__wrap_mmap(void *at, size_t size, int access, int flags, int file, off_t offset);
void *__wrap_mmap(void *at, size_t size, int access, int flags, int file, off_t offset) {
    if (!fails()) return __real_mmap(at, size, access, flags, file, offset);
    errno = ENOMEM;
    return MAP_FAILED;
}

void *__real_mremap(void *from, size_t size, size_t new_size, int flags, void *to);
void *__wrap_mremap(void *from, size_t size, size_t new_size, int flags, void *to);
void *__wrap_mremap(void *from, size_t size, size_t new_size, int flags, void *to) {
    return fails() ? MAP_FAILED : __real_mremap(from, size, new_size, flags, to);
}

typedef void *thread_function(void *);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          thread_function *function, void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          thread_function *function, void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          thread_function *function, void *argument) {
    return fails() ? EAGAIN : __real_pthread_create(thread, attributes, function, argument);
}

/* Encode and decode a word that is too long for the stack, with a cache. */
static int use_tokenizer(const sl_tokenizer *tokenizer) {
    char text[300], back[600];
    int32_t ids[3 * sizeof text + 3];
    size_t count, length;
    memset(text, 'a', sizeof text);
    sl_word_cache *cache;
    int status = sl_word_cache_new(&cache, tokenizer);
    if (status) return status;
    status = sl_encode(tokenizer, cache, text, sizeof text, ids, sizeof ids / sizeof *ids, &count);
    if (!status) status = sl_decode(tokenizer, ids, count, back, sizeof back, &length);
    sl_word_cache_free(cache);
    if (!status && (length != sizeof text || memcmp(text, back, length) != 0)) abort();
    return status;
}

static int use_session(const sl_model *model, uint32_t threads, int32_t ids[IDS]) {
    const sl_session_options session_options = {.threads = threads, .slots = 2};
    sl_options options = SL_OPTIONS_DEFAULTS;
    options.ignore_eos = 1;
    sl_session *session;
    int status = sl_session_new(&session, model, &session_options);
    if (status) return status;
    status = sl_start(session, "a b", 3, &options);
    for (int i = 0; i < IDS && !status; i++) {
        sl_piece piece;
        status = sl_next(session, &piece);
        ids[i] = piece.id;
    }
    sl_session_free(session);
    return status;
}

/* Open a model, use its tokenizer, then a session. threads and pages are options. */
static int run(const char *path, uint32_t threads, int32_t pages, int32_t ids[IDS]) {
    const sl_model_options options = {.pages = pages};
    sl_model *model;
    int status = sl_model_open(&model, path, &options);
    if (status) return status;
    status = use_tokenizer(sl_model_tokenizer(model));
    if (!status) status = use_session(model, threads, ids);
    sl_model_close(model);
    return status;
}

/* Return whether a run with the failure ended as it must. */
static bool is_right(int status, const int32_t ids[IDS], const int32_t expected[IDS]) {
    const bool is_failure = status == SL_ERROR_MEMORY || status == SL_ERROR_FILE;
    if (is_failure ? *sl_error() : !status && memcmp(ids, expected, IDS * sizeof *ids) == 0)
        return true;
    printf("call %d fails: status %d, %s\n", target, status, sl_error());
    return false;
}

int main(int argc, char **argv) {
    int32_t expected[IDS], ids[IDS];
    int failures = 0;
    bool right = argc == 3 && !run(argv[1], 1, SL_PAGES_SHARED, expected);
    for (int kind = 0; kind < atoi(argv[2]) && right; kind++) {
        const uint32_t threads = kind & 1 ? 3 : 0;
        const int32_t pages = kind & 2 ? SL_PAGES_HUGE : SL_PAGES_AUTO;
        is_all_after = kind & 4;
        int last = 0;
        for (target = 1; target == 1 || last >= target - 1; target++) {
            atomic_store(&calls, 0);
            right &= is_right(run(argv[1], threads, pages, ids), ids, expected);
            last = atomic_load(&calls);
            if (last < target) break;
            failures++;
        }
        target = 0;
    }
    printf("%d failures\n", failures);
    return right ? EXIT_SUCCESS : EXIT_FAILURE;
}
