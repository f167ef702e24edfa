/* limits.c: what this machine can do at most: bytes read a second by the size of what is read, and
 * operations a second in each of the number types that the kernels compute in. Prints JSON:
 *
 *     {"cores": 2,
 *      "bandwidth": [{"threads": 1, "pages": "4 KB", "megabytes": 1, "bytes": 8.5e10}, …],
 *      "peak": [{"threads": 1, "type": "int8", "operations": 4.5e11}, …]}
 *
 * A multiplication and an addition are two operations. Each figure is the best of several tries,
 * since all that disturbs a try makes it slower. Compile it with -O3 -march=native. */

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

enum { TRIES = 5, MOST_THREADS = 64 };
static const size_t megabyte = 1 << 20;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "error: %s\n", what);
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

/* How long work(data[0]) … work(data[threads - 1]) take side by side. */
static double side_by_side(int threads, void (*work)(void *), void **data) {
    pthread_t ids[MOST_THREADS];
    job jobs[MOST_THREADS];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    for (int t = 1; t < threads; t++) {
        jobs[t] = (job){work, data[t], &start};
        if (pthread_create(&ids[t], NULL, run_job, &jobs[t])) fail("no thread can be started");
    }
    pthread_barrier_wait(&start);
    const double begun = seconds();
    work(data[0]);
    for (int t = 1; t < threads; t++) pthread_join(ids[t], NULL);
    const double took = seconds() - begun;
    pthread_barrier_destroy(&start);
    return took;
}

/* ---- Bandwidth ------------------------------------------------------------------------------- */

typedef int64_t vector __attribute__((vector_size(64)));

typedef struct {
    const vector *begin;
    size_t count; /* a multiple of 8 */
    int passes;
    vector sum; /* or else nothing need be read */
} reader;

static void read_all(void *data) {
    reader *r = data;
    vector sums[8] = {0};
    for (int pass = 0; pass < r->passes; pass++)
        for (size_t i = 0; i < r->count; i += 8)
            for (size_t k = 0; k < 8; k++) sums[k] += r->begin[i + k];
    for (size_t k = 0; k < 8; k++) r->sum += sums[k];
}

/* Bytes a second of threads that each read their own part of a buffer over and over. */
static double bandwidth(const char *buffer, size_t bytes, int threads) {
    reader readers[MOST_THREADS];
    void *data[MOST_THREADS];
    const size_t part = bytes / (size_t)threads / (8 * sizeof(vector)) * 8;
    const int passes = (int)(256 * megabyte / bytes) + 1;
    double best = 0;
    for (int t = 0; t < threads; t++) {
        const vector *begin = (const vector *)buffer + (size_t)t * part;
        readers[t] = (reader){.begin = begin, .count = part, .passes = passes};
        data[t] = &readers[t];
    }
    for (int try = 0; try < TRIES; try++) {
        const double took = side_by_side(threads, read_all, data);
        const size_t read = part * sizeof(vector) * (size_t)(threads * passes);
        if ((double)read / took > best) best = (double)read / took;
    }
    return best;
}

/* A buffer on pages of the kind wanted, filled; NULL where the system has no such choice. */
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

/* Operations a second of threads that do nothing else. */
static double operations(const peak *wanted, int threads) {
    computation computations[MOST_THREADS];
    void *data[MOST_THREADS];
    double best = 0;
    for (int t = 0; t < threads; t++) {
        computations[t].peak = wanted;
        data[t] = &computations[t];
    }
    for (int try = 0; try < TRIES; try++) {
        const double took = side_by_side(threads, compute, data);
        const double speed = threads * computations[0].operations / took;
        if (speed > best) best = speed;
    }
    return best;
}

static void print_peaks(int cores) {
    const char *separator = "";
    printf(" \"peak\": [");
    for (int p = 0; p < PEAKS; p++)
        for (int threads = 1; peaks[p].run && threads <= cores; threads++) {
            printf("%s\n  {\"threads\": %d, \"type\": \"%s\", \"operations\": %.4g}", separator,
                   threads, peaks[p].type, operations(&peaks[p], threads));
            separator = ",";
        }
    printf("]}\n");
}

int main(void) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores < 1) cores = 1;
    if (cores > 2) cores = 2; /* one thread and two are what is compared */
    printf("{\"cores\": %ld,\n", cores);
    print_bandwidths((int)cores);
    print_peaks((int)cores);
    return EXIT_SUCCESS;
}
