/* kernels.c: every kernel on random shapes, beside its definition in double precision.
 *
 * usage: kernels ROUNDS. Prints the largest error of each kernel, relative to the largest value
 * that enters the sum; fails if one is above its bound. */

#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum { ROWS = SL_TILE_ROWS };

static uint32_t state = 1;

static uint32_t integer(uint32_t below) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % below;
}

static float real(void) {
    return (float)integer(20001) / 10000.0f - 1.0f;
}

/* Aligned as weight files are, and exactly as long as asked, so that the sanitizer sees the end. */
static void *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 1)) abort();
    return memory;
}

static float *reals(size_t count) {
    float *x = allocate(count * sizeof *x);
    for (size_t i = 0; i < count; i++) x[i] = real();
    return x;
}

static double larger(double a, double b) {
    return a > b || isnan(a) ? a : b;
}

static double matmul_f32(const sl_kernels *k) {
    const size_t tiles = 1 + integer(4), columns = 1 + integer(70), n = 1 + integer(5);
    const size_t rows = tiles * ROWS, y_stride = rows + integer(3) * 4, x_stride = columns + 1;
    float *w = reals(rows * columns), *x = reals(n * x_stride), *y = reals(n * y_stride);
    k->matmul_f32(y, y_stride, w, tiles, columns, x, x_stride, n);
    double error = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < rows; r++) {
            double sum = 0;
            for (size_t c = 0; c < columns; c++)
                sum += (double)w[(r / ROWS * columns + c) * ROWS + r % ROWS] *
                       (double)x[i * x_stride + c];
            error = larger(fabs(sum - (double)y[i * y_stride + r]), error);
        }
    free(w);
    free(x);
    free(y);
    return error / (double)columns;
}

static sl_quantized quantized(size_t n, size_t groups, size_t group_size) {
    sl_quantized q = {.groups = groups, .group_size = group_size};
    q.values = allocate(n * groups * group_size);
    q.scales = reals(n * groups);
    q.sums = allocate(n * groups * sizeof *q.sums);
    return q;
}

static void free_quantized(sl_quantized *q) {
    free(q->values);
    free(q->scales);
    free(q->sums);
}

/* Extreme bytes come often, to find sums that overflow. */
static double matmul_q8(const sl_kernels *k) {
    const size_t tiles = 1 + integer(3), group_size = 4 * (1 + integer(20));
    const size_t groups = 1 + integer(5), n = 1 + integer(4), rows = tiles * ROWS;
    const size_t group_bytes = ROWS * (sizeof(float) + group_size);
    uint8_t *w = allocate(tiles * groups * group_bytes);
    float *y = reals(n * rows);
    sl_quantized q = quantized(n, groups, group_size);
    for (size_t i = 0; i < tiles * groups * group_bytes; i++)
        w[i] = (uint8_t)(integer(2) ? 255 : 1 + integer(255));
    for (size_t g = 0; g < tiles * groups; g++)
        for (size_t r = 0; r < ROWS; r++) {
            const float scale = real();
            memcpy(w + g * group_bytes + r * sizeof scale, &scale, sizeof scale);
        }
    for (size_t g = 0; g < n * groups; g++) {
        q.sums[g] = 0;
        for (size_t c = 0; c < group_size; c++) {
            const int value = integer(2) ? -127 : (int)integer(255) - 127;
            q.values[g * group_size + c] = (int8_t)value;
            q.sums[g] += value;
        }
    }
    k->matmul_q8(y, rows, w, tiles, &q, n);
    double error = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < rows; r++) {
            double sum = 0;
            for (size_t c = 0; c < groups * group_size; c++) {
                const size_t g = c / group_size, within = c % group_size;
                const uint8_t *group = w + (r / ROWS * groups + g) * group_bytes;
                const size_t at = (within / 4 * ROWS + r % ROWS) * 4 + within % 4;
                float scale;
                memcpy(&scale, group + r % ROWS * sizeof scale, sizeof scale);
                sum += (double)scale * (group[ROWS * sizeof scale + at] - 128) *
                       (double)q.scales[i * groups + g] * q.values[i * groups * group_size + c];
            }
            error = larger(fabs(sum - (double)y[i * rows + r]), error);
        }
    free(w);
    free(y);
    free_quantized(&q);
    return error / (127.0 * 127.0 * (double)(groups * group_size));
}

/* The error is half a step at most; a step is the group's largest magnitude over 127. */
static double quantize(const sl_kernels *k) {
    const size_t group_size = 4 * (1 + integer(20)), columns = 1 + integer(200);
    const size_t groups = (columns + group_size - 1) / group_size, row = integer(2);
    const float scale = (float[]){1.0f, 1e-30f, 1e30f, 0.0f}[integer(4)];
    sl_quantized q = quantized(2, groups, group_size);
    float *x = reals(columns);
    for (size_t c = 0; c < columns; c++) x[c] *= scale;
    k->quantize(&q, row, x, columns);
    double error = 0;
    for (size_t g = 0; g < groups; g++) {
        const int8_t *values = q.values + (row * groups + g) * group_size;
        double largest = 0;
        int sum = 0;
        for (size_t c = 0; c < group_size; c++) {
            sum += values[c];
            if (g * group_size + c < columns)
                largest = larger(fabs((double)x[g * group_size + c]), largest);
            else if (values[c])
                error = INFINITY;
        }
        if (sum != q.sums[row * groups + g]) error = INFINITY;
        for (size_t c = 0; c < group_size && g * group_size + c < columns; c++) {
            const double back = (double)q.scales[row * groups + g] * values[c];
            if (largest > 0)
                error = larger(fabs(back - (double)x[g * group_size + c]) / largest, error);
        }
    }
    free(x);
    free_quantized(&q);
    return error;
}

static double rmsnorm(const sl_kernels *k) {
    const size_t n = 1 + integer(300);
    float *x = reals(n), *w = reals(n), *y = reals(n);
    k->rmsnorm(y, x, w, n, 1e-5f);
    double squares = 0, error = 0;
    for (size_t i = 0; i < n; i++) squares += (double)x[i] * (double)x[i];
    for (size_t i = 0; i < n; i++) {
        const double expected = (double)x[i] / sqrt(squares / (double)n + 1e-5) * (double)w[i];
        error = larger(fabs(expected - (double)y[i]), error);
    }
    free(x);
    free(w);
    free(y);
    return error;
}

static double rotate(const sl_kernels *k) {
    const size_t heads = 1 + integer(4), head_dim = 2 * (1 + integer(20));
    float *x = reals(heads * head_dim), *table = reals(head_dim), *y = reals(heads * head_dim);
    memcpy(y, x, heads * head_dim * sizeof *y);
    k->rotate(y, heads, head_dim, table);
    double error = 0;
    for (size_t i = 0; i < heads * head_dim; i++) {
        const size_t d = i % head_dim, pair = d / 2 * 2;
        const double cosine = (double)table[pair], sine = (double)table[pair + 1];
        const double expected = d % 2 ? (double)x[i - 1] * sine + (double)x[i] * cosine
                                      : (double)x[i] * cosine - (double)x[i + 1] * sine;
        error = larger(fabs(expected - (double)y[i]), error);
    }
    free(x);
    free(y);
    free(table);
    return error;
}

static double attention(const sl_kernels *k) {
    const size_t head_dim = 2 * (1 + integer(20)), positions = 1 + integer(70);
    const size_t padded = (positions + ROWS - 1) / ROWS * ROWS;
    float *q = reals(head_dim), *keys = reals(padded * head_dim), *out = reals(head_dim);
    float *values = reals(positions * head_dim), *scores = reals(padded);
    double share[80], sum = 0, error = 0;
    for (size_t d = 0; d < head_dim; d++) q[d] *= 20;
    k->attention(out, q, keys, values, positions, head_dim, scores);
    for (size_t p = 0; p < positions; p++) {
        double score = 0;
        for (size_t d = 0; d < head_dim; d++)
            score += (double)q[d] * (double)keys[(p / ROWS * head_dim + d) * ROWS + p % ROWS];
        sum += share[p] = exp(score / sqrt((double)head_dim));
    }
    for (size_t d = 0; d < head_dim; d++) {
        double expected = 0;
        for (size_t p = 0; p < positions; p++)
            expected += share[p] / sum * (double)values[p * head_dim + d];
        error = larger(fabs(expected - (double)out[d]), error);
    }
    free(q);
    free(keys);
    free(out);
    free(values);
    free(scores);
    return error;
}

static double swiglu(const sl_kernels *k) {
    const size_t n = 1 + integer(100);
    float *gate = reals(n), *up = reals(n), *y = reals(n);
    double error = 0;
    for (size_t i = 0; i < n; i++) gate[i] *= 200;
    k->swiglu(y, gate, up, n);
    for (size_t i = 0; i < n; i++) {
        const double expected = (double)gate[i] / (1 + exp(-(double)gate[i])) * (double)up[i];
        error = larger(fabs(expected - (double)y[i]) / (1 + fabs(expected)), error);
    }
    free(gate);
    free(up);
    free(y);
    return error;
}

static const struct {
    const char *name;
    double (*error)(const sl_kernels *);
    double bound;
} tests[] = {
    {"matmul_f32", matmul_f32, 1e-6},
    {"matmul_q8", matmul_q8, 1e-6},
    {"quantize", quantize, 0.501 / 127},
    {"rmsnorm", rmsnorm, 2e-6},
    {"rotate", rotate, 1e-6},
    {"attention", attention, 1e-5},
    {"swiglu", swiglu, 1e-6},
};

int main(int argc, char **argv) {
    const sl_kernels *sets[] = {&sl_kernels_scalar, sl_kernels_best()};
    const int rounds = argc > 1 ? atoi(argv[1]) : 100;
    int failures = 0;
    for (size_t s = 0; s < (sets[0] == sets[1] ? 1 : 2); s++)
        for (size_t t = 0; t < sizeof tests / sizeof *tests; t++) {
            double worst = 0;
            for (int i = 0; i < rounds; i++) worst = larger(tests[t].error(sets[s]), worst);
            const int failed = !(worst <= tests[t].bound);
            printf("%-8s %-12s %.2e of %.2e%s\n", sets[s]->name, tests[t].name, worst,
                   tests[t].bound, failed ? "  FAILED" : "");
            failures += failed;
        }
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
