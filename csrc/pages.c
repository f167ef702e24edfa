/* pages.c: loads a weight file and computes its checksum. */

#include "pages.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "storyllamas.h"
#include "thread_pool.h"

static int reject_read(const char *path, int failure) {
    return sl_fail(SL_ERROR_FILE, "weight file %s cannot be read: %s", path, strerror(failure));
}

/* Open a weight file. Anything but a regular file that fits memory is an error. */
static int open_file(sl_file *file, const char *path) {
    enum { RESERVE = 1 << 21 }; /* for the alignment of huge pages */
    const int failure = sl_file_open(file, path);
    if (failure == SL_FILE_UNSUPPORTED)
        return sl_fail(SL_ERROR_FILE,
                       "weight file %s cannot be opened, because this build has no files: use "
                       "sl_model_open_memory",
                       path);
    if (failure == ENOENT)
        return sl_fail(
            SL_ERROR_FILE,
            "weight file %s does not exist: name another file, or train a model with `dvc repro`",
            path);
    if (failure)
        return sl_fail(SL_ERROR_FILE, "weight file %s cannot be opened: %s", path,
                       strerror(failure));
    int status = SL_OK;
    if (!file->is_regular)
        status =
            sl_fail(SL_ERROR_FILE,
                    "weight file %s is not a regular file: give the path of a .slm file", path);
    else if (file->bytes == 0 || file->bytes > SIZE_MAX - RESERVE)
        status = sl_fail(SL_ERROR_FORMAT, "weight file %s is %s: export it again", path,
                         file->bytes ? "larger than this machine's address space" : "empty");
    if (status) sl_file_close(file);
    return status;
}

static int reject_bytes(const char *path, size_t bytes) {
    return sl_fail(SL_ERROR_MEMORY, "not enough memory for the %zu bytes of %s", bytes, path);
}

static int map(const sl_file *file, const char *path, size_t bytes, void **pages) {
    const int failure = sl_file_map(file, bytes, pages);
    if (failure && !*pages) return reject_bytes(path, bytes);
    if (failure)
        return sl_fail(SL_ERROR_FILE, "weight file %s cannot be mapped: %s", path,
                       strerror(failure));
    return SL_OK;
}

/* A part of a file. */
typedef struct {
    sl_checksum sum;
    int failure; /* an error number of reading it, or SL_FILE_TOO_SHORT; 0: none */
} file_part;

/* A file that is loaded in parts of PART bytes. */
typedef struct {
    const sl_file *file;
    uint8_t *target;       /* [bytes] memory to read the file into; NULL: it is in memory already */
    const uint8_t *memory; /* [bytes] the file in memory */
    size_t bytes;
    file_part *parts;
} loading;

enum { PART = 1 << 18 };

/* Read parts, and compute the checksum of each while it is in the processor's cache. */
static void load_parts(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    const loading *l = context;
    for (size_t i = first; i < end; i++) {
        const size_t start = i * PART, left = l->bytes - start, size = left < PART ? left : PART;
        file_part *part = &l->parts[i];
        if (l->target)
            part->failure = sl_file_read(l->file, l->target + start, start, start + size);
        if (part->failure) return;
        sl_checksum_update(&part->sum, l->memory + start, size);
    }
}

/* Combine the checksums of all parts. Returns the first failure. */
static int combine_parts(const loading *l, size_t count, sl_checksum *sum) {
    for (size_t i = 0; i < count; i++) {
        const size_t left = l->bytes - i * PART;
        if (l->parts[i].failure) return l->parts[i].failure;
        sl_checksum_combine(sum, &l->parts[i].sum, left < PART ? left : PART);
    }
    return 0;
}

/* Read the file unless it is in memory, and compute its checksum. A large file takes several
 * threads, because the system maps, clears and copies pages for each thread in parallel. */
static int load_file(loading *l, const char *path, sl_checksum *sum) {
    enum { PARALLEL_FROM_BYTES = 1 << 22, MAX_THREADS = 8 };
    const size_t parts = (l->bytes - 1) / PART + 1, processors = sl_processor_count();
    l->parts = calloc(parts, sizeof *l->parts);
    if (!l->parts) return sl_fail(SL_ERROR_MEMORY, "not enough memory to open %s", path);
    sl_thread_pool *pool = NULL; /* NULL, after a failure too: the calling thread loads all parts */
    if (l->bytes >= PARALLEL_FROM_BYTES && processors > 1)
        pool = sl_thread_pool_new(1, processors < MAX_THREADS ? processors : MAX_THREADS);
    sl_parallel_for(pool, parts, 1, load_parts, l);
    sl_thread_pool_free(pool);
    const int failure = combine_parts(l, parts, sum);
    free(l->parts);
    if (failure == SL_FILE_TOO_SHORT)
        return sl_fail(SL_ERROR_FILE,
                       "weight file %s became shorter while it was read: open it again", path);
    return failure ? reject_read(path, failure) : SL_OK;
}

int sl_pages_open(const char *path, int32_t kind, void **pages, size_t *bytes, sl_checksum *sum) {
    if (kind < SL_PAGES_AUTO || kind > SL_PAGES_HUGE)
        return sl_fail(SL_ERROR_ARGUMENT, "pages is %" PRId32 " and must be one of SL_PAGES_…",
                       kind);
    sl_file file;
    int status = open_file(&file, path);
    if (status) return status;
    *bytes = (size_t)file.bytes;
    const bool is_mapped = kind != SL_PAGES_HUGE;
    if (is_mapped)
        status = map(&file, path, *bytes, pages);
    else if (!(*pages = sl_pages_new(*bytes, true)))
        status = reject_bytes(path, *bytes);
    if (!status) {
        loading l = {&file, is_mapped ? NULL : *pages, *pages, *bytes, NULL};
        status = load_file(&l, path, sum);
    }
    sl_file_close(&file);
    return status;
}

int sl_pages_checksum(const void *data, size_t bytes, const char *name, sl_checksum *sum) {
    loading l = {NULL, NULL, data, bytes, NULL};
    return load_file(&l, name, sum);
}
