/* pages.c: memory and files straight from the system. */

#define _DEFAULT_SOURCE /* madvise, MAP_ANONYMOUS */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

enum { HUGE_PAGE = 1 << 21 };

/* ---- Memory ---------------------------------------------------------------------------------- */

void *sl_pages_new(size_t bytes, bool huge) {
    /* Room for alignment is reserved too, and what is before and behind is given back. */
    const size_t extra = huge ? HUGE_PAGE : 0, page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *memory =
        mmap(NULL, bytes + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    if (!huge) return memory;
    const size_t before = -(uintptr_t)memory & (HUGE_PAGE - 1);
    const size_t end = (before + bytes + page - 1) / page * page;
    if (before) munmap(memory, before);
    if (bytes + extra > end) munmap(memory + end, bytes + extra - end);
#ifdef MADV_HUGEPAGE
    madvise(memory + before, bytes, MADV_HUGEPAGE);
#endif
    return memory + before;
}

void sl_pages_free(void *pages, size_t bytes) {
    if (pages) munmap(pages, bytes);
}

/* ---- Files ----------------------------------------------------------------------------------- */

static int refuse_read(const char *path) {
    return sl_fail(SL_ERROR_FILE, "weight file %s cannot be read: %s", path, strerror(errno));
}

/* The length of an open file, if it is one that can hold weights. */
static int measure(int file, const char *path, size_t *bytes) {
    struct stat about;
    if (fstat(file, &about)) return refuse_read(path);
    if (!S_ISREG(about.st_mode))
        return sl_fail(SL_ERROR_FILE, "weight file %s is not a regular file", path);
    if (about.st_size == 0 || (uintmax_t)about.st_size > SIZE_MAX - HUGE_PAGE)
        return sl_fail(SL_ERROR_FORMAT, "weight file %s is %s", path,
                       about.st_size ? "larger than this machine's address space" : "empty");
    *bytes = (size_t)about.st_size;
    return SL_OK;
}

static int allocate(const char *path, size_t bytes, void **pages) {
    *pages = sl_pages_new(bytes, true);
    if (!*pages)
        return sl_fail(SL_ERROR_MEMORY, "not enough memory for the %zu bytes of %s", bytes, path);
    return SL_OK;
}

/* Where huge pages would lie, so that they can take its place. */
static int map(int file, const char *path, size_t bytes, void **pages) {
    const int status = allocate(path, bytes, pages);
    if (status) return status;
    if (mmap(*pages, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED)
        return sl_fail(SL_ERROR_FILE, "weight file %s cannot be mapped: %s", path, strerror(errno));
    return SL_OK;
}

/* A file that comes into memory in parts of PART bytes. */
typedef struct {
    int file;
    bool is_mapped; /* it is there */
    uint8_t *memory;
    size_t bytes;
    sl_checksum *sums;  /* [parts] */
    atomic_int failure; /* of reading: an error number or TOO_SHORT; 0: none */
} loading;

enum { PART = 1 << 18, TOO_SHORT = -1 };

static int read_part(const loading *l, size_t start, size_t end) {
    while (start < end) {
        const ssize_t count = pread(l->file, l->memory + start, end - start, (off_t)start);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return errno;
        if (count == 0) return TOO_SHORT;
        start += (size_t)count;
    }
    return 0;
}

/* The checksum of a part is computed while it is in the processor's cache. */
static void load_parts(void *context, size_t first, size_t end, size_t thread) {
    (void)thread;
    loading *l = context;
    for (size_t part = first; part < end; part++) {
        const size_t start = part * PART, left = l->bytes - start, size = left < PART ? left : PART;
        const int failure = l->is_mapped ? 0 : read_part(l, start, start + size);
        if (failure) {
            atomic_store(&l->failure, failure);
            return;
        }
        sl_checksum_add(&l->sums[part], l->memory + start, size);
    }
}

/* Read the file unless it is mapped, and compute its checksum, with as many threads as help: the
 * system finds the file's pages, clears fresh ones and copies for each thread apart. */
static int load(loading *l, const char *path, sl_checksum *sum) {
    enum { HELP_FROM = 1 << 22, MOST = 8 };
    const size_t parts = (l->bytes + PART - 1) / PART, processors = sl_processors();
    l->sums = calloc(parts, sizeof *l->sums);
    if (!l->sums) return sl_fail(SL_ERROR_MEMORY, "not enough memory to open %s", path);
    /* Without a team the work is done alone. */
    sl_team *team = l->bytes < HELP_FROM || processors < 2
                        ? NULL
                        : sl_team_new(processors < MOST ? processors : MOST);
    sl_share(team, parts, 1, load_parts, l);
    sl_team_free(team);
    for (size_t part = 0; part < parts; part++) {
        const size_t left = l->bytes - part * PART;
        sl_checksum_join(sum, &l->sums[part], left < PART ? left : PART);
    }
    free(l->sums);
    if (l->failure == TOO_SHORT)
        return sl_fail(SL_ERROR_FILE, "weight file %s became shorter", path);
    errno = l->failure;
    return errno ? refuse_read(path) : SL_OK;
}

int sl_pages_open(const char *path, int32_t kind, void **pages, size_t *bytes, sl_checksum *sum) {
    if (kind < SL_PAGES_AUTO || kind > SL_PAGES_HUGE)
        return sl_fail(SL_ERROR_ARGUMENT, "pages is %" PRId32 " and must be one of SL_PAGES_…",
                       kind);
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 && errno == ENOENT)
        return sl_fail(SL_ERROR_FILE, "weight file %s does not exist: run `dvc repro` first", path);
    if (file < 0)
        return sl_fail(SL_ERROR_FILE, "weight file %s cannot be opened: %s", path, strerror(errno));
    const bool is_mapped = kind != SL_PAGES_HUGE;
    int status = measure(file, path, bytes);
    if (!status)
        status = is_mapped ? map(file, path, *bytes, pages) : allocate(path, *bytes, pages);
    if (!status) {
        loading l = {file, is_mapped, *pages, *bytes, NULL, 0};
        status = load(&l, path, sum);
    }
    close(file);
    return status;
}
