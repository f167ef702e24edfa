/* pages.c: memory and files straight from the system. */

#define _DEFAULT_SOURCE /* madvise, MAP_ANONYMOUS */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

enum {
    HUGE_PAGE = 1 << 21,
    /* Files from here on are copied onto huge pages: the first level that translates addresses
     * reaches less far than this with small ones. */
    COPY_FROM = 1 << 23
};

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

static int map(int file, const char *path, size_t bytes, void **pages) {
    void *mapped = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        return sl_fail(SL_ERROR_FILE, "weight file %s cannot be mapped: %s", path, strerror(errno));
    *pages = mapped;
    return SL_OK;
}

static int copy(int file, const char *path, size_t bytes, void **pages) {
    uint8_t *memory = sl_pages_new(bytes, true);
    if (!memory)
        return sl_fail(SL_ERROR_MEMORY, "not enough memory for the %zu bytes of %s", bytes, path);
    *pages = memory;
    for (size_t done = 0; done < bytes;) {
        const ssize_t count = read(file, memory + done, bytes - done);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return refuse_read(path);
        if (count == 0) return sl_fail(SL_ERROR_FILE, "weight file %s became shorter", path);
        done += (size_t)count;
    }
    return SL_OK;
}

int sl_pages_open(const char *path, int32_t kind, void **pages, size_t *bytes) {
    if (kind < SL_PAGES_AUTO || kind > SL_PAGES_HUGE)
        return sl_fail(SL_ERROR_ARGUMENT, "pages is %" PRId32 " and must be one of SL_PAGES_…",
                       kind);
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 && errno == ENOENT)
        return sl_fail(SL_ERROR_FILE, "weight file %s does not exist: run `dvc repro` first", path);
    if (file < 0)
        return sl_fail(SL_ERROR_FILE, "weight file %s cannot be opened: %s", path, strerror(errno));
    int status = measure(file, path, bytes);
    if (!status) {
        if (kind == SL_PAGES_AUTO) kind = *bytes < COPY_FROM ? SL_PAGES_SHARED : SL_PAGES_HUGE;
        status = (kind == SL_PAGES_SHARED ? map : copy)(file, path, *bytes, pages);
    }
    close(file);
    return status;
}
