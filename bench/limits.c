/* limits.c: measures the peaks of this machine: bytes read per second, by the size of the buffer,
 * and operations per second in each number type of the kernels. Prints JSON:
 *
 *     {"cores": 2,
 *      "bandwidth": [{"threads": 1, "pages": "4 KB", "megabytes": 1, "bytes": 8.5e10}, …],
 *      "peak": [{"threads": 1, "type": "int8", "operations": 4.5e11}, …]}
 *
 * A multiplication and an addition are two operations. Each number is the best of several tries,
 * because a disturbance only makes a try slower. Compile it with -O3 -march=native. */

#define _GNU_SOURCE

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "peak.h"

enum { TRIES = 5, MAX_THREADS = 64 };
static const size_t megabyte = 1 << 20;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static _Noreturn void fail(const char *message) {
    fprintf(stderr, "error: %s\n", message);
    exit(EXIT_FAILURE);
}

/* ---- Threads --------------------------------------------------------------------------------- */

typedef struct {
    void (*work)(void *);
    void *data; /* of this thread */
    pthread_barrier_t *start;
} job;

static void *run_job(void *argument) {
    const job *j = argument;
    pthread_barrier_wait(j->start);
    j->work(j->data);
    return NULL;
}

/* Run work(data[0]) … work(data[threads - 1]) at the same time. Returns the seconds it takes. */
static double run_threads(int threads, void (*work)(void *), void **data) {
    pthread_t ids[MAX_THREADS];
    job jobs[MAX_THREADS];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    for (int t = 1; t < threads; t++) {
        jobs[t] = (job){work, data[t], &start};
        if (pthread_create(&ids[t], NULL, run_job, &jobs[t])) fail("a thread cannot be started");
    }
    pthread_barrier_wait(&start);
    const double begin = seconds();
    work(data[0]);
    for (int t = 1; t < threads; t++) pthread_join(ids[t], NULL);
    const double elapsed = seconds() - begin;
    pthread_barrier_destroy(&start);
    return elapsed;
}

/* ---- Bandwidth ------------------------------------------------------------------------------- */

/* As wide as a register: GCC keeps sums of wider vectors in memory. */
#if defined(__AVX512F__)
typedef int64_t vector __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef int64_t vector __attribute__((vector_size(32)));
#else
typedef int64_t vector __attribute__((vector_size(16)));
#endif

typedef struct {
    const vector *begin;
    size_t count; /* a multiple of 8 */
    int passes;
    vector sum; /* makes the compiler keep the reads */
} reader;

static void read_all(void *data) {
    reader *r = data;
    vector sums[8] = {0};
    for (int pass = 0; pass < r->passes; pass++)
        for (size_t i = 0; i < r->count; i += 8)
            for (size_t k = 0; k < 8; k++) sums[k] += r->begin[i + k];
    for (size_t k = 0; k < 8; k++) r->sum += sums[k];
}

/* Return the bytes per second of threads that each read their part of a buffer repeatedly. */
static double bandwidth(const char *buffer, size_t bytes, int threads) {
    reader readers[MAX_THREADS];
    void *data[MAX_THREADS];
    const size_t part = bytes / (size_t)threads / (8 * sizeof(vector)) * 8;
    const int passes = (int)(256 * megabyte / bytes) + 1;
    double best = 0;
    for (int t = 0; t < threads; t++) {
        const vector *begin = (const vector *)buffer + (size_t)t * part;
        readers[t] = (reader){.begin = begin, .count = part, .passes = passes};
        data[t] = &readers[t];
    }
    for (int try = 0; try < TRIES; try++) {
        const double elapsed = run_threads(threads, read_all, data);
        const size_t read = part * sizeof(vector) * (size_t)(threads * passes);
        if ((double)read / elapsed > best) best = (double)read / elapsed;
    }
    return best;
}

/* Return a filled buffer on huge or on small pages, or NULL if the system has no huge pages. */
static char *new_buffer(size_t bytes, int huge) {
    const size_t alignment = 2 * megabyte;
    char *memory =
        mmap(NULL, bytes + alignment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("not enough memory");
    char *buffer = memory + (alignment - (uintptr_t)memory % alignment) % alignment;
#ifdef MADV_HUGEPAGE
    if (madvise(buffer, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) && huge) return NULL;
#else
    if (huge) return NULL;
#endif
    memset(buffer, 1, bytes);
    return buffer;
}

static void print_bandwidths(int cores) {
    static const size_t sizes[] = {1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};
    const char *separator = "";
    printf(" \"bandwidth\": [");
    for (int huge = 0; huge < 2; huge++) {
        const char *buffer = new_buffer(128 * megabyte, huge);
        for (size_t s = 0; buffer && s < sizeof sizes / sizeof *sizes; s++)
            for (int threads = 1; threads <= cores; threads++) {
                printf("%s\n  {\"threads\": %d, \"pages\": \"%s\", \"megabytes\": %zu, ", separator,
                       threads, huge ? "2 MB" : "4 KB", sizes[s]);
                printf("\"bytes\": %.4g}", bandwidth(buffer, sizes[s] * megabyte, threads));
                separator = ",";
            }
    }
    printf("],\n");
}

/* ---- Arithmetic ------------------------------------------------------------------------------ */

typedef struct {
    const peak *peak;
    double operations;
} computation;

static void compute(void *data) {
    computation *c = data;
    c->operations = c->peak->run();
}

/* Return the operations per second of all threads together. */
static double operations(const peak *measured, int threads) {
    computation computations[MAX_THREADS];
    void *data[MAX_THREADS];
    double best = 0;
    for (int t = 0; t < threads; t++) {
        computations[t].peak = measured;
        data[t] = &computations[t];
    }
    for (int try = 0; try < TRIES; try++) {
        const double elapsed = run_threads(threads, compute, data);
        const double speed = threads * computations[0].operations / elapsed;
        if (speed > best) best = speed;
    }
    return best;
}

static void print_peaks(int cores) {
    const char *separator = "";
    printf(" \"peak\": [");
    for (int p = 0; p < PEAKS; p++)
        for (int threads = 1; peaks[p].run && threads <= cores; threads++) {
            const double speed = operations(&peaks[p], threads);
            if (speed == 0) break; /* not permitted */
            printf("%s\n  {\"threads\": %d, \"type\": \"%s\", \"operations\": %.4g}", separator,
                   threads, peaks[p].type, speed);
            separator = ",";
        }
    printf("]}\n");
}

int main(void) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores < 1) cores = 1;
    if (cores > 2) cores = 2; /* the benchmarks use one thread and two */
    printf("{\"cores\": %ld,\n", cores);
    print_bandwidths((int)cores);
    print_peaks((int)cores);
    return EXIT_SUCCESS;
}
