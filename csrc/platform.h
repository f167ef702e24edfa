/* platform.h: what the engine needs from the operating system and from the compiler.
 *
 * The functions have three implementations in platform/: posix.c, windows.c and none.c, for a
 * program without an operating system. Each file is empty unless its platform is chosen here.
 * SL_WASM_THREADS adds the threads of WebAssembly to none.c. */

#ifndef STORYLLAMAS_PLATFORM_H
#define STORYLLAMAS_PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#if defined(SL_PLATFORM_NONE) /* chosen by the user */
#elif defined(_WIN32)
#define SL_PLATFORM_WINDOWS
#elif defined(__unix__) || defined(__APPLE__)
#define SL_PLATFORM_POSIX
#include <pthread.h>
#else
#define SL_PLATFORM_NONE
#endif

/* In WebAssembly only one thread calls the engine, so it needs no variables of a thread. */
#ifndef SL_PLATFORM_NONE
#define SL_HAS_THREADS
#define SL_THREAD_LOCAL _Thread_local
#else
#define SL_THREAD_LOCAL
#ifdef SL_WASM_THREADS
#define SL_HAS_THREADS
#include <stdatomic.h>
#endif
#endif

/* ---- Compiler -------------------------------------------------------------------------------- */

/* SL_PRINTF marks a function whose argument number n is a format, followed by what it formats. */
#if defined(__MINGW32__) && !defined(__clang__)
#define SL_PRINTF(n) __attribute__((format(gnu_printf, n, n + 1)))
#elif defined(__GNUC__)
#define SL_PRINTF(n) __attribute__((format(printf, n, n + 1)))
#else
#define SL_PRINTF(n)
#endif

/* SL_BEFORE_MAIN marks a function that runs before main. It does not run if the compiler knows no
 * such functions, or if the start-up code of a program without a system calls none. */
#ifdef __GNUC__
#define SL_BEFORE_MAIN __attribute__((constructor))
#else
#define SL_BEFORE_MAIN
#endif

/* Return the index of the lowest bit that is set in x, which is not 0. */
static inline unsigned sl_lowest_bit(uint64_t x) {
#ifdef __GNUC__
    return (unsigned)__builtin_ctzll(x);
#else
    unsigned index = 0;
    while (!(x >> index & 1)) index++;
    return index;
#endif
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* Return zeroed memory that starts at a page, or NULL if there is not enough or bytes is
 * SL_TOO_LARGE. If `huge` is set the pages are huge ones where the system has them. A page takes up
 * memory from its first use on. Without a system, the memory starts at a multiple of 64. */
void *sl_pages_new(size_t bytes, bool huge);

/* Turn the whole pages in a range of huge ones into small pages, before their first use. */
void sl_pages_make_small(void *start, size_t bytes);

/* Free memory of sl_pages_new or sl_file_map; bytes is its length. NULL is a no-op. */
void sl_pages_free(void *pages, size_t bytes);

/* ---- Files ----------------------------------------------------------------------------------- */

/* The functions return 0 or an error number, whose text strerror has. Paths are UTF-8 on Windows,
 * and elsewhere as the system has them. */

enum {
    SL_FILE_TOO_SHORT = -1,  /* the file ends before the part that is read */
    SL_FILE_UNSUPPORTED = -2 /* the platform has no files */
};

/* An open file. */
typedef struct {
    intptr_t handle;
    uint64_t bytes;
    bool is_regular; /* if not, it is a folder, a pipe or a device */
} sl_file;

/* Open a file for reading. Close it only if the call returns 0. */
int sl_file_open(sl_file *file, const char *path);
void sl_file_close(const sl_file *file);

/* Read bytes start … end - 1 of a file. */
int sl_file_read(const sl_file *file, uint8_t *target, size_t start, size_t end);

/* Map the first `bytes` of a file, on POSIX at an address that suits huge pages, so that a
 * migration can replace the mapping. Free *pages with sl_pages_free, after an error too. *pages is
 * NULL if there is not enough memory. */
int sl_file_map(const sl_file *file, size_t bytes, void **pages);

/* ---- Threads --------------------------------------------------------------------------------- */

/* Return the number of processors that this process may run on. */
size_t sl_processor_count(void);

/* Return a number that a forked child does not share with its parent. */
int64_t sl_process(void);

#ifdef SL_HAS_THREADS

#ifdef SL_PLATFORM_POSIX
typedef pthread_mutex_t sl_mutex;
typedef pthread_cond_t sl_condition;
typedef pthread_t sl_thread_handle;
#elif defined(SL_WASM_THREADS) /* integers that threads sleep on; the number of a worker */
typedef _Atomic(int) sl_futex, sl_mutex, sl_condition;
typedef size_t sl_thread_handle;
#else /* SRWLOCK, CONDITION_VARIABLE, HANDLE; windows.h would define too many names */
typedef struct {
    void *state;
} sl_mutex, sl_condition;
typedef void *sl_thread_handle;
#endif

typedef struct {
    sl_thread_handle handle;
    void (*run)(void *argument);
    void *argument;
} sl_thread;

/* Start a thread that calls run(argument). *thread must not move until sl_thread_join. Returns
 * whether the system could start it. */
bool sl_thread_start(sl_thread *thread, void (*run)(void *argument), void *argument);

/* Wait for the end of a thread. */
void sl_thread_join(const sl_thread *thread);

/* Let another thread run. */
void sl_thread_yield(void);

void sl_mutex_init(sl_mutex *mutex);
void sl_mutex_destroy(sl_mutex *mutex);
void sl_mutex_lock(sl_mutex *mutex);
void sl_mutex_unlock(sl_mutex *mutex);

void sl_condition_init(sl_condition *condition);
void sl_condition_destroy(sl_condition *condition);
void sl_condition_wait(sl_condition *condition, sl_mutex *mutex);
void sl_condition_wake_all(sl_condition *condition);

#ifdef SL_WASM_THREADS

/* Set the number of workers that have called sl_wasm_run_worker or are about to. */
void sl_wasm_set_workers(size_t count);

/* Run threads of the engine in worker `number`, from 0. It does not return. */
void sl_wasm_run_worker(size_t number);

#endif

#endif

/* ---- Time and processor ---------------------------------------------------------------------- */

/* Return the nanoseconds since some moment, or 0 if the platform has no clock. */
int64_t sl_clock(void);

/* Return whether the processor has the 8-bit dot product of AArch64. */
bool sl_has_dot_product(void);

/* Return whether the processor has the product of matrices of 8-bit integers of AArch64, I8MM. */
bool sl_has_matrix_product(void);

/* Ask the system to let all threads of this process use the tile registers of x86-64, which a
 * process has to ask for. Returns whether they may. */
bool sl_request_tiles(void);

/* ---- The command-line program ---------------------------------------------------------------- */

#ifndef SL_PLATFORM_NONE

#ifdef SL_PLATFORM_WINDOWS
#define SL_ENTROPY "Windows"
#else
#define SL_ENTROPY "/dev/urandom"
#endif

/* Return the arguments in UTF-8 and set *argc to their number. argv are those of main. From here on
 * standard input and output pass bytes as they are, and a console shows UTF-8. */
char **sl_program_start(int *argc, char **argv);

/* Open a file for reading as bytes, as fopen does. */
FILE *sl_program_file(const char *path);

/* Take random bytes from SL_ENTROPY. Returns 0 or an error number. */
int sl_program_entropy(void *bytes, size_t count);

#endif

#endif
