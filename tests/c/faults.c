/* faults.c: kills a process, or makes a call fail, at its n-th system call that changes files.
 *
 * Preload it, then call fault_arm(n, error). From then on the n-th such call fails with this error.
 * If error is 0 it kills the process instead; a write has then written half of its data.
 * fault_calls() returns how many such calls there were. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long calls, target;
static int failure;

void fault_arm(long n, int error);
long fault_calls(void);

void fault_arm(long n, int error) {
    calls = 0;
    target = n;
    failure = error;
}

long fault_calls(void) {
    return calls;
}

/* Count a call. Return whether it is the one to strike. */
static int is_target(void) {
    return ++calls == target;
}

/* Return 0 if the call shall continue, -1 if it shall fail. */
static int strike(void) {
    if (!is_target()) return 0;
    if (!failure) kill(getpid(), SIGKILL);
    errno = failure;
    return -1;
}

#define REAL(name, result, ...)                                                                    \
    static result (*real)(__VA_ARGS__);                                                            \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

ssize_t write(int file, const void *data, size_t size) {
    REAL(write, ssize_t, int, const void *, size_t);
    if (file > 2 && is_target()) {
        if (failure) {
            errno = failure;
            return -1;
        }
        (void)!real(file, data, size / 2);
        kill(getpid(), SIGKILL);
    }
    return real(file, data, size);
}

int fsync(int file) {
    REAL(fsync, int, int);
    return strike() ? -1 : real(file);
}

int rename(const char *from, const char *to) {
    REAL(rename, int, const char *, const char *);
    return strike() ? -1 : real(from, to);
}

int unlink(const char *path) {
    REAL(unlink, int, const char *);
    return strike() ? -1 : real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat, int, int, const char *, int);
    return strike() ? -1 : real(folder, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir, int, const char *);
    return strike() ? -1 : real(path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir, int, const char *, mode_t);
    return strike() ? -1 : real(path, mode);
}

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...) {                                                   \
        REAL(name, int, const char *, int, ...);                                                   \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                  \
        va_end(rest);                                                                              \
        if (flags & O_CREAT && strike()) return -1;                                                \
        return real(path, flags, mode);                                                            \
    }

OPEN(open)
OPEN(open64)
