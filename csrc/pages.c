/* pages.c: memory and files from the operating system, in pages. */

#define _DEFAULT_SOURCE /* madvise, MAP_ANONYMOUS */

#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "sizes.h"
#include "storyllamas.h"
#include "thread_pool.h"

enum { HUGE_PAGE = 1 << 21 };

/* ---- Memory ---------------------------------------------------------------------------------- */

void *sl_pages_new(size_t bytes, bool huge) {
    /* Reserve room for the alignment, then return the unused parts at both ends to the system. */
    const size_t extra = huge ? HUGE_PAGE : 0, page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t reserved = sl_size_add(bytes, extra);
    if (reserved == SL_TOO_LARGE) return NULL;
    uint8_t *memory =
        mmap(NULL, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    if (!huge) return memory;
    const size_t before = -(uintptr_t)memory & (HUGE_PAGE - 1);
    const size_t end = (before + bytes + page - 1) / page * page;
    if (before) munmap(memory, before);
    if (reserved > end) munmap(memory + end, reserved - end);
#ifdef MADV_HUGEPAGE
    madvise(memory + before, bytes, MADV_HUGEPAGE);
#endif
    return memory + before;
}

void sl_pages_make_small(void *start, size_t bytes) {
#ifdef MADV_NOHUGEPAGE
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t before = -(uintptr_t)start & (page - 1);
    if (bytes >= before + page)
        madvise((uint8_t *)start + before, (bytes - before) / page * page, MADV_NOHUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

void sl_pages_free(void *pages, size_t bytes) {
    if (pages) munmap(pages, bytes);
}

/* ---- Files ----------------------------------------------------------------------------------- */

static int reject_read(const char *path) {
    return sl_fail(SL_ERROR_FILE, "weight file %s cannot be read: %s", path, strerror(errno));
}

/* Find the length of an open file. Anything but a regular file that fits memory is an error. */
static int measure(int file, const char *path, size_t *bytes) {
    struct stat about;
    if (fstat(file, &about)) return reject_read(path);
    if (!S_ISREG(about.st_mode))
        return sl_fail(SL_ERROR_FILE,
                       "weight file %s is not a regular file: give the path of a .slm file", path);
    if (about.st_size == 0 || (uintmax_t)about.st_size > SIZE_MAX - HUGE_PAGE)
        return sl_fail(SL_ERROR_FORMAT, "weight file %s is %s: export it again", path,
                       about.st_size ? "larger than this machine's address space" : "empty");
    *bytes = (size_t)about.st_size;
    return SL_OK;
}

static int allocate_pages(const char *path, size_t bytes, void **pages) {
    *pages = sl_pages_new(bytes, true);
    if (!*pages)
        return sl_fail(SL_ERROR_MEMORY, "not enough memory for the %zu bytes of %s", bytes, path);
    return SL_OK;
}

/* Map the file at an address that suits huge pages, so that a migration can replace the mapping. */
static int map(int file, const char *path, size_t bytes, void **pages) {
    const int status = allocate_pages(path, bytes, pages);
    if (status) return status;
    if (mmap(*pages, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED)
        return sl_fail(SL_ERROR_FILE, "weight file %s cannot be mapped: %s", path, strerror(errno));
    return SL_OK;
}

/* A file that is loaded in parts of PART bytes. */
typedef struct {
    int file;
    uint8_t *target;       /* [bytes] memory to read the file into; NULL: it is in memory already */
    const uint8_t *memory; /* [bytes] the file in memory */
    size_t bytes;
    sl_checksum *sums;  /* [parts] */
    atomic_int failure; /* an error number of reading, or TOO_SHORT; 0: none */
} loading;

enum { PART = 1 << 18, TOO_SHORT = -1 };

static int read_part(const loading *l, size_t start, size_t end) {
    while (start < end) {
        const ssize_t count = pread(l->file, l->target + start, end - start, (off_t)start);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return errno;
        if (count == 0) return TOO_SHORT;
        start += (size_t)count;
    }
    return 0;
}

/* Read parts, and compute the checksum of each while it is in the processor's cache. */
static void load_parts(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    loading *l = context;
    for (size_t part = first; part < end; part++) {
        const size_t start = part * PART, left = l->bytes - start, size = left < PART ? left : PART;
        const int failure = l->target ? read_part(l, start, start + size) : 0;
        if (failure) {
            atomic_store(&l->failure, failure);
            return;
        }
        sl_checksum_update(&l->sums[part], l->memory + start, size);
    }
}

/* Read the file unless it is in memory, and compute its checksum. A large file takes several
 * threads, because the system maps, clears and copies pages for each thread in parallel. */
static int load_file(loading *l, const char *path, sl_checksum *sum) {
    enum { PARALLEL_FROM_BYTES = 1 << 22, MAX_THREADS = 8 };
    const size_t parts = (l->bytes + PART - 1) / PART, processors = sl_processor_count();
    l->sums = calloc(parts, sizeof *l->sums);
    if (!l->sums) return sl_fail(SL_ERROR_MEMORY, "not enough memory to open %s", path);
    sl_thread_pool *pool = NULL; /* NULL, after a failure too: the calling thread loads all parts */
    if (l->bytes >= PARALLEL_FROM_BYTES && processors > 1)
        pool = sl_thread_pool_new(1, processors < MAX_THREADS ? processors : MAX_THREADS);
    sl_parallel_for(pool, parts, 1, load_parts, l);
    sl_thread_pool_free(pool);
    for (size_t part = 0; part < parts; part++) {
        const size_t left = l->bytes - part * PART;
        sl_checksum_combine(sum, &l->sums[part], left < PART ? left : PART);
    }
    free(l->sums);
    if (l->failure == TOO_SHORT)
        return sl_fail(SL_ERROR_FILE,
                       "weight file %s became shorter while it was read: open it again", path);
    errno = l->failure;
    return errno ? reject_read(path) : SL_OK;
}

int sl_pages_open(const char *path, int32_t kind, void **pages, size_t *bytes, sl_checksum *sum) {
    if (kind < SL_PAGES_AUTO || kind > SL_PAGES_HUGE)
        return sl_fail(SL_ERROR_ARGUMENT, "pages is %" PRId32 " and must be one of SL_PAGES_…",
                       kind);
    /* With O_NONBLOCK, opening a FIFO does not wait for a writer. Regular files ignore it. */
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (file < 0 && errno == ENOENT)
        return sl_fail(SL_ERROR_FILE, "weight file %s does not exist: run `dvc repro` first", path);
    if (file < 0)
        return sl_fail(SL_ERROR_FILE, "weight file %s cannot be opened: %s", path, strerror(errno));
    const bool is_mapped = kind != SL_PAGES_HUGE;
    int status = measure(file, path, bytes);
    if (!status)
        status = is_mapped ? map(file, path, *bytes, pages) : allocate_pages(path, *bytes, pages);
    if (!status) {
        loading l = {file, is_mapped ? NULL : *pages, *pages, *bytes, NULL, 0};
        status = load_file(&l, path, sum);
    }
    close(file);
    return status;
}

int sl_pages_checksum(const void *data, size_t bytes, const char *name, sl_checksum *sum) {
    loading l = {-1, NULL, data, bytes, NULL, 0};
    return load_file(&l, name, sum);
}
