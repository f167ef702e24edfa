/* kernels.c: measures each kernel of each set that this processor runs, on one thread:
 *
 *     kernels matrix TYPE ROWS COLUMNS GROUP_SIZE MODEL_BYTES
 *     kernels vectors DIM HIDDEN VOCABULARY
 *
 * prints a line of JSON for each measurement, such as
 *
 *     {"set": "scalar", "kernel": "matmul_q8", "n": 8, "seconds": 1.2e-05, "bytes": 69632}
 *
 * seconds is the time of a call, the best of several tries; bytes is the size of the matrix. The
 * calls use copies of the matrix in turn, as many as fill MODEL_BYTES. So a matrix comes from the
 * same cache level or memory as in a model of that size. TYPE is f32, f16, i8, q8 or q4. */

#define _GNU_SOURCE

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/kernels.h"

enum { TRIES = 5, MAX_ROWS = 32 };
static const double min_seconds = 0.001; /* of a try */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static _Noreturn void fail(const char *message) {
    fprintf(stderr, "error: %s\n", message);
    exit(EXIT_FAILURE);
}

/* Allocate memory, on huge pages if the system has them, as for weights. Fill it with small
 * numbers. */
static void *new_memory(size_t bytes) {
    const size_t alignment = 2 << 20, whole = (bytes + alignment - 1) / alignment * alignment;
    uint32_t *memory;
    if (posix_memalign((void **)&memory, alignment, whole)) fail("not enough memory");
#ifdef MADV_HUGEPAGE
    madvise(memory, whole, MADV_HUGEPAGE);
#endif
    /* Each word is a float near 1e-3, two f16 or bf16 below 1, or four bytes: no denormal number,
     * with which some processors are many times slower. */
    for (uint32_t i = 0; i < whole / 4; i++) memory[i] = 0x3a803a80 + (i * 2654435761u >> 27);
    return memory;
}

/* ---- Measuring ------------------------------------------------------------------------------- */

typedef void action(void *data, size_t call);

/* Return the best time of a call. */
static double best_seconds(action *act, void *data) {
    double best = INFINITY;
    size_t calls = 1;
    for (int try = 0; try < TRIES;) {
        const double start = seconds();
        for (size_t call = 0; call < calls; call++) act(data, call);
        const double elapsed = seconds() - start;
        if (elapsed < min_seconds) {
            calls *= 2;
            continue;
        }
        if (elapsed / (double)calls < best) best = elapsed / (double)calls;
        try++;
    }
    return best;
}

static void measure(const char *set, const char *kernel, size_t n, size_t bytes, action *act,
                    void *data) {
    printf("{\"set\": \"%s\", \"kernel\": \"%s\", \"n\": %zu, ", set, kernel, n);
    printf("\"seconds\": %.4g, \"bytes\": %zu}\n", best_seconds(act, data), bytes);
}

/* ---- Matrices -------------------------------------------------------------------------------- */

typedef struct {
    const sl_kernels *kernels;
    const char *type;
    const uint8_t *copies;
    size_t copy_count, bytes; /* number of copies, bytes of each */
    size_t tiles, columns, n;
    float *y;
    float *x;
    sl_quantized quantized;
} matrix;

static size_t matrix_bytes(const char *type, size_t tiles, size_t columns, size_t group_size) {
    if (!strcmp(type, "f32")) return tiles * SL_TILE_ROWS * columns * sizeof(float);
    if (!strcmp(type, "f16")) return tiles * SL_TILE_ROWS * columns * sizeof(uint16_t);
    if (!strcmp(type, "i8")) return tiles * SL_TILE_ROWS * columns;
    const size_t groups = (columns + group_size - 1) / group_size;
    if (!strcmp(type, "q8")) return tiles * sl_tile_bytes(8, groups, group_size);
    if (!strcmp(type, "q4")) return tiles * sl_tile_bytes(4, groups, group_size);
    fail("TYPE must be f32, f16, i8, q8 or q4");
}

static void multiply(void *data, size_t call) {
    const matrix *m = data;
    const uint8_t *tiles = m->copies + call % m->copy_count * m->bytes;
    const size_t stride = m->columns * SL_TILE_ROWS, rows = m->tiles * SL_TILE_ROWS;
    if (!strcmp(m->type, "f32"))
        m->kernels->matmul_f32(m->y, rows, (const float *)(const void *)tiles, stride, SL_TILE_ROWS,
                               m->tiles, m->columns, m->x, m->columns, m->n);
    else if (!strcmp(m->type, "f16"))
        m->kernels->matmul_f16(m->y, rows, (const uint16_t *)(const void *)tiles, stride,
                               SL_TILE_ROWS, m->tiles, m->columns, m->x, m->columns, m->n);
    else if (!strcmp(m->type, "i8"))
        m->kernels->matmul_i8(m->y, rows, (const int8_t *)tiles, stride, SL_TILE_ROWS, m->tiles,
                              m->columns, m->x, m->columns, m->n);
    else if (!strcmp(m->type, "q8"))
        sl_matmul_of(m->kernels, SL_Q8)(m->y, rows, tiles, m->tiles, &m->quantized, m->n);
    else
        sl_matmul_of(m->kernels, SL_Q4)(m->y, rows, tiles, m->tiles, &m->quantized, m->n);
}

static void measure_matrix(char **arguments) {
    const size_t rows = strtoul(arguments[1], NULL, 10), columns = strtoul(arguments[2], NULL, 10);
    const size_t group_size = strtoul(arguments[3], NULL, 10);
    const size_t model_bytes = strtoul(arguments[4], NULL, 10);
    matrix m = {.type = arguments[0], .tiles = (rows + SL_TILE_ROWS - 1) / SL_TILE_ROWS};
    m.columns = columns;
    m.bytes = matrix_bytes(m.type, m.tiles, columns, group_size);
    m.copy_count = model_bytes > m.bytes ? model_bytes / m.bytes : 1;
    m.copies = new_memory(m.copy_count * m.bytes);
    m.y = new_memory(MAX_ROWS * m.tiles * SL_TILE_ROWS * sizeof(float));
    m.x = new_memory(MAX_ROWS * columns * sizeof(float));
    if (group_size) {
        const size_t groups = (columns + group_size - 1) / group_size;
        m.quantized = (sl_quantized){
            .values = new_memory(MAX_ROWS * groups * group_size),
            .scales = new_memory(MAX_ROWS * groups * sizeof(float)),
            .sums = new_memory(MAX_ROWS * groups * sizeof(int32_t)),
            .groups = groups,
            .group_size = group_size,
        };
    }
    char name[32];
    snprintf(name, sizeof name, "matmul_%s", m.type);
    static const size_t counts[] = {1, 8, 32};
    for (const sl_kernels *const *set = sl_kernels_available(); *set; set++)
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            m.kernels = *set;
            m.n = counts[i];
            measure(m.kernels->name, name, m.n, m.bytes, multiply, &m);
        }
}

/* ---- Vectors --------------------------------------------------------------------------------- */

enum { GROUP_SIZE = 128, HEAD_DIM = 32 };

typedef struct {
    const sl_kernels *kernels;
    size_t n;
    float *x, *y, *z;
    sl_quantized quantized;
    size_t result; /* of argmax and select: makes the compiler keep the calls */
} vectors;

static void quantize(void *data, size_t call) {
    const vectors *v = data;
    (void)call;
    v->kernels->quantize(&v->quantized, 0, v->x, v->n);
}

static void to_f16(void *data, size_t call) {
    const vectors *v = data;
    (void)call;
    v->kernels->to_f16((uint16_t *)v->y, v->x, v->n);
}

static void rmsnorm(void *data, size_t call) {
    const vectors *v = data;
    (void)call;
    v->kernels->rmsnorm(v->y, v->x, v->z, v->n, 1e-5f);
}

static void rotate(void *data, size_t call) {
    const vectors *v = data;
    (void)call;
    v->kernels->rotate(v->y, v->n / HEAD_DIM, HEAD_DIM, v->z);
}

static void swiglu(void *data, size_t call) {
    const vectors *v = data;
    (void)call;
    v->kernels->swiglu(v->y, v->x, v->z, v->n);
}

static void argmax(void *data, size_t call) {
    vectors *v = data;
    (void)call;
    v->result += v->kernels->argmax(v->x, v->n);
}

static void exponentials(void *data, size_t call) {
    const vectors *v = data;
    (void)call;
    v->kernels->exponentials(v->y, v->x, v->n, 0, 1);
}

static void select_indices(void *data, size_t call) {
    vectors *v = data;
    (void)call;
    v->result += v->kernels->select((int32_t *)v->y, v->x, v->n, 1);
}

static void measure_vectors(char **arguments) {
    const size_t dim = strtoul(arguments[0], NULL, 10), hidden = strtoul(arguments[1], NULL, 10);
    const size_t vocabulary = strtoul(arguments[2], NULL, 10);
    const size_t bytes = (dim + hidden + vocabulary + GROUP_SIZE) * sizeof(float);
    vectors v = {.x = new_memory(bytes), .y = new_memory(bytes), .z = new_memory(bytes)};
    v.quantized = (sl_quantized){new_memory(bytes), new_memory(bytes), new_memory(bytes),
                                 (dim + GROUP_SIZE - 1) / GROUP_SIZE, GROUP_SIZE};
    const struct {
        const char *name;
        action *act;
        size_t n, bytes; /* bytes that are read and written for each of n elements */
    } all[] = {
        {"quantize", quantize, dim, 5},
        {"to_f16", to_f16, dim, 6},
        {"rmsnorm", rmsnorm, dim, 12},
        {"rotate", rotate, dim, 8},
        {"swiglu", swiglu, hidden, 12},
        {"argmax", argmax, vocabulary, 4},
        {"exponentials", exponentials, vocabulary, 8},
        {"select", select_indices, vocabulary, 4},
    };
    for (const sl_kernels *const *set = sl_kernels_available(); *set; set++)
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
            v.kernels = *set;
            v.n = all[i].n;
            measure(v.kernels->name, all[i].name, v.n, v.n * all[i].bytes, all[i].act, &v);
        }
}

int main(int argc, char **argv) {
    if (argc == 7 && !strcmp(argv[1], "matrix"))
        measure_matrix(argv + 2);
    else if (argc == 5 && !strcmp(argv[1], "vectors"))
        measure_vectors(argv + 2);
    else
        fail("usage: kernels matrix TYPE ROWS COLUMNS GROUP_SIZE MODEL_BYTES"
             " | kernels vectors DIM HIDDEN VOCABULARY");
    return EXIT_SUCCESS;
}
