/* posix.c: Linux, macOS and other systems with the functions of POSIX. */

#define _GNU_SOURCE /* madvise, MAP_ANONYMOUS, sched_getaffinity */

#include "../platform.h"

#ifdef SL_PLATFORM_POSIX

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../sizes.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#endif

/* ---- Memory ---------------------------------------------------------------------------------- */

enum { HUGE_PAGE = 1 << 21 };

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

int sl_file_open(sl_file *file, const char *path) {
    /* With O_NONBLOCK, opening a FIFO does not wait for a writer. Regular files ignore it. */
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (descriptor < 0) return errno;
    struct stat about;
    if (fstat(descriptor, &about)) {
        const int failure = errno;
        close(descriptor);
        return failure;
    }
    *file = (sl_file){descriptor, (uint64_t)about.st_size, S_ISREG(about.st_mode)};
    return 0;
}

void sl_file_close(const sl_file *file) {
    close((int)file->handle);
}

int sl_file_read(const sl_file *file, uint8_t *target, size_t start, size_t end) {
    while (start < end) {
        const ssize_t count = pread((int)file->handle, target, end - start, (off_t)start);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return errno;
        if (count == 0) return SL_FILE_TOO_SHORT;
        start += (size_t)count;
        target += count;
    }
    return 0;
}

int sl_file_map(const sl_file *file, size_t bytes, void **pages) {
    const int flags = MAP_SHARED | MAP_FIXED;
    *pages = sl_pages_new(bytes, true);
    if (!*pages) return ENOMEM;
    return mmap(*pages, bytes, PROT_READ, flags, (int)file->handle, 0) == MAP_FAILED ? errno : 0;
}

/* ---- Threads --------------------------------------------------------------------------------- */

size_t sl_processor_count(void) {
#ifdef __linux__
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) return (size_t)CPU_COUNT(&set);
#endif
    const long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (size_t)count : 1;
}

int64_t sl_process(void) {
    return getpid();
}

static void *run_thread(void *argument) {
    const sl_thread *thread = argument;
    thread->run(thread->argument);
    return NULL;
}

bool sl_thread_start(sl_thread *thread, void (*run)(void *argument), void *argument) {
    thread->run = run;
    thread->argument = argument;
    return pthread_create(&thread->handle, NULL, run_thread, thread) == 0;
}

void sl_thread_join(const sl_thread *thread) {
    pthread_join(thread->handle, NULL);
}

void sl_thread_yield(void) {
    sched_yield();
}

void sl_mutex_init(sl_mutex *mutex) {
    pthread_mutex_init(mutex, NULL);
}

void sl_mutex_destroy(sl_mutex *mutex) {
    pthread_mutex_destroy(mutex);
}

void sl_mutex_lock(sl_mutex *mutex) {
    pthread_mutex_lock(mutex);
}

void sl_mutex_unlock(sl_mutex *mutex) {
    pthread_mutex_unlock(mutex);
}

void sl_condition_init(sl_condition *condition) {
    pthread_cond_init(condition, NULL);
}

void sl_condition_destroy(sl_condition *condition) {
    pthread_cond_destroy(condition);
}

void sl_condition_wait(sl_condition *condition, sl_mutex *mutex) {
    pthread_cond_wait(condition, mutex);
}

void sl_condition_wake_all(sl_condition *condition) {
    pthread_cond_broadcast(condition);
}

/* ---- Time and processor ---------------------------------------------------------------------- */

int64_t sl_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

bool sl_has_dot_product(void) {
#if defined(__ARM_FEATURE_DOTPROD)
    return true;
#elif defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return false;
#endif
}

bool sl_has_matrix_product(void) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    return true;
#elif defined(__aarch64__) && defined(__linux__)
    enum { I8MM = 1 << 13 }; /* HWCAP2_I8MM, a name that older headers lack */
    return getauxval(AT_HWCAP2) & I8MM;
#elif defined(__aarch64__) && defined(__APPLE__)
    int has = 0;
    size_t bytes = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &bytes, NULL, 0) == 0 && has;
#else
    return false;
#endif
}

bool sl_request_tiles(void) {
#if defined(__x86_64__) && defined(__linux__)
    /* Older headers lack these names. The answer is checked, because a sandbox may ignore the
     * request. */
    const long get_permissions = 0x1022, request_permission = 0x1023, tile_data = 18;
    unsigned long permitted = 0;
    return !syscall(SYS_arch_prctl, request_permission, tile_data) &&
           !syscall(SYS_arch_prctl, get_permissions, &permitted) && permitted >> tile_data & 1;
#else
    return false;
#endif
}

/* ---- The command-line program ---------------------------------------------------------------- */

char **sl_program_start(int *argc, char **argv) {
    (void)argc;
    return argv;
}

FILE *sl_program_file(const char *path) {
    return fopen(path, "rb");
}

int sl_program_entropy(void *bytes, size_t count) {
    const int file = open(SL_ENTROPY, O_RDONLY | O_CLOEXEC);
    if (file < 0) return errno;
    const ssize_t taken = read(file, bytes, count);
    const int failure = taken < 0 ? errno : taken == (ssize_t)count ? 0 : EIO;
    close(file);
    return failure;
}

#endif
