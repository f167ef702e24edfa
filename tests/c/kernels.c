/* kernels.c: tests every kernel on random shapes against its definition in double precision. A
 * product of matrices must also be bit-identical to the products of each tile with each row of x,
 * and all sets with fused multiply-add must be bit-identical.
 *
 * usage: kernels ROUNDS. Prints the largest error of each kernel, relative to the largest value in
 * its sum, and a digest of all results. Fails if an error is above its bound, or if the digest is
 * not that of the first set with fused multiply-add. */

#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/sets.h"

enum { ROWS = SL_TILE_ROWS };

static uint32_t state = 1;

static uint64_t digest;

/* Add numbers to the digest of the results (FNV-1a). */
static void record(const float *x, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        digest = (digest ^ bits) * UINT64_C(0x100000001b3);
    }
}

static uint32_t integer(uint32_t below) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % below;
}

static float real(void) {
    return (float)integer(20001) / 10000.0f - 1.0f;
}

/* Allocate memory, aligned as in a weight file. The sanitizer reports any access behind its end. */
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

static double differs(const float *a, const float *b) {
    return memcmp(a, b, ROWS * sizeof *a) ? (double)INFINITY : 0;
}

/* Choose the layout of a matrix: either its tiles or its columns are contiguous. Returns the number
 * of elements. */
static size_t lay_out(size_t tiles, size_t columns, size_t *tile_stride, size_t *column_stride) {
    const bool by_tiles = integer(2);
    *tile_stride = by_tiles ? (columns + integer(3)) * ROWS : ROWS;
    *column_stride = by_tiles ? ROWS : (tiles + integer(3)) * ROWS;
    return ((tiles - 1) * *tile_stride + (columns - 1) * *column_stride) + ROWS;
}

static double matmul_f32(const sl_kernels *k) {
    const size_t tiles = 1 + integer(9), columns = 1 + integer(70), n = 1 + integer(27);
    const size_t rows = tiles * ROWS, y_stride = rows + integer(3) * 4, x_stride = columns + 1;
    size_t tile_stride, column_stride;
    float *w = reals(lay_out(tiles, columns, &tile_stride, &column_stride)),
          *x = reals(n * x_stride), *y = reals(n * y_stride);
    k->matmul_f32(y, y_stride, w, tile_stride, column_stride, tiles, columns, x, x_stride, n);
    for (size_t i = 0; i < n; i++) record(y + i * y_stride, rows);
    double error = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < tiles; t++) {
            float alone[ROWS];
            k->matmul_f32(alone, ROWS, w + t * tile_stride, tile_stride, column_stride, 1, columns,
                          x + i * x_stride, x_stride, 1);
            error = larger(differs(alone, y + i * y_stride + t * ROWS), error);
        }
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < rows; r++) {
            double sum = 0;
            for (size_t c = 0; c < columns; c++)
                sum += (double)w[r / ROWS * tile_stride + c * column_stride + r % ROWS] *
                       (double)x[i * x_stride + c];
            error = larger(fabs(sum - (double)y[i * y_stride + r]), error);
        }
    free(w);
    free(x);
    free(y);
    return error / (double)columns;
}

/* Convert an f16. */
static double from_f16(uint16_t x) {
    const int exponent = x >> 10 & 31, mantissa = x & 1023;
    if (exponent == 31) return mantissa ? (double)NAN : x >> 15 ? -HUGE_VAL : HUGE_VAL;
    const double magnitude =
        exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return x >> 15 ? -magnitude : magnitude;
}

/* Random f16 numbers of all magnitudes, without infinity and NaN. */
static uint16_t *f16s(size_t count) {
    uint16_t *x = allocate(count * sizeof *x);
    for (size_t i = 0; i < count; i++)
        x[i] = (uint16_t)(integer(2) << 15 | (integer(8) ? integer(0x3c00) : integer(0x7c00)));
    return x;
}

static double matmul_f16(const sl_kernels *k) {
    const size_t tiles = 1 + integer(9), columns = 1 + integer(70), n = 1 + integer(20);
    const size_t rows = tiles * ROWS, y_stride = rows + integer(3) * 4, x_stride = columns + 1;
    size_t tile_stride, column_stride;
    uint16_t *w = f16s(lay_out(tiles, columns, &tile_stride, &column_stride));
    float *x = reals(n * x_stride), *y = reals(n * y_stride);
    k->matmul_f16(y, y_stride, w, tile_stride, column_stride, tiles, columns, x, x_stride, n);
    for (size_t i = 0; i < n; i++) record(y + i * y_stride, rows);
    double error = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < tiles; t++) {
            float alone[ROWS];
            k->matmul_f16(alone, ROWS, w + t * tile_stride, tile_stride, column_stride, 1, columns,
                          x + i * x_stride, x_stride, 1);
            error = larger(differs(alone, y + i * y_stride + t * ROWS), error);
        }
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < rows; r++) {
            double sum = 0, largest = 0;
            for (size_t c = 0; c < columns; c++) {
                const double weight =
                    from_f16(w[r / ROWS * tile_stride + c * column_stride + r % ROWS]);
                const double product = weight * (double)x[i * x_stride + c];
                sum += product;
                largest = larger(fabs(product), largest);
            }
            error = larger(fabs(sum - (double)y[i * y_stride + r]) / (largest + 1e-30), error);
        }
    free(w);
    free(x);
    free(y);
    return error / (double)columns;
}

static double matmul_i8(const sl_kernels *k) {
    const size_t tiles = 1 + integer(9), columns = 1 + integer(70), n = 1 + integer(20);
    const size_t rows = tiles * ROWS, y_stride = rows + integer(3) * 4, x_stride = columns + 1;
    size_t tile_stride, column_stride;
    const size_t count = lay_out(tiles, columns, &tile_stride, &column_stride);
    int8_t *w = allocate(count);
    for (size_t i = 0; i < count; i++) w[i] = (int8_t)((int)integer(256) - 128);
    float *x = reals(n * x_stride), *y = reals(n * y_stride);
    k->matmul_i8(y, y_stride, w, tile_stride, column_stride, tiles, columns, x, x_stride, n);
    for (size_t i = 0; i < n; i++) record(y + i * y_stride, rows);
    double error = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < tiles; t++) {
            float alone[ROWS];
            k->matmul_i8(alone, ROWS, w + t * tile_stride, tile_stride, column_stride, 1, columns,
                         x + i * x_stride, x_stride, 1);
            error = larger(differs(alone, y + i * y_stride + t * ROWS), error);
        }
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < rows; r++) {
            double sum = 0;
            for (size_t c = 0; c < columns; c++)
                sum += (double)w[r / ROWS * tile_stride + c * column_stride + r % ROWS] *
                       (double)x[i * x_stride + c];
            error = larger(fabs(sum - (double)y[i * y_stride + r]), error);
        }
    free(w);
    free(x);
    free(y);
    return error / (128.0 * (double)columns);
}

/* Return the average of f32, f16 or i8 values, and what a product of matrices gives. */
static void average_twice(const sl_kernels *k, int type, const sl_values *v, float *y, float *z) {
    const size_t width = (v->head_dim + ROWS - 1) / ROWS * ROWS, stride = v->shares_stride;
    (type == 0 ? k->average_f32 : type == 1 ? k->average_f16 : k->average_i8)(y, v);
    for (size_t i = 0; i < v->heads * v->sharing; i++) {
        const float *x = v->shares + i * stride;
        const size_t at = i / v->sharing * width;
        if (type == 0)
            k->matmul_f32(z + i * width, width, (const float *)v->values + at, ROWS, v->stride,
                          width / ROWS, v->positions, x, stride, 1);
        else if (type == 1)
            k->matmul_f16(z + i * width, width, (const uint16_t *)v->values + at, ROWS, v->stride,
                          width / ROWS, v->positions, x, stride, 1);
        else
            k->matmul_i8(z + i * width, width, (const int8_t *)v->values + at, ROWS, v->stride,
                         width / ROWS, v->positions, x, stride, 1);
    }
}

/* The average of values must have the bits of the product of matrices. */
static double average(const sl_kernels *k) {
    if (!k->average_f32) return 0;
    const int type = (int)integer(3);
    const size_t head_dim = 2 + 2 * integer(40), heads = 1 + integer(8), sharing = 1 + integer(4);
    const size_t width = (head_dim + ROWS - 1) / ROWS * ROWS, positions = 1 + integer(50);
    const size_t stride = heads * width, count = positions * stride;
    float *const numbers = reals(count);
    uint16_t *const halves = f16s(count);
    float *const shares = reals(heads * sharing * positions);
    float *const y = reals(heads * sharing * width), *const z = reals(heads * sharing * width);
    const void *const values = type == 0 ? (const void *)numbers : (const void *)halves;
    const sl_values v = {values, stride, positions, heads, sharing, head_dim, shares, positions};
    double error = 0;
    average_twice(k, type, &v, y, z);
    for (size_t i = 0; i < heads * sharing; i++) record(y + i * width, head_dim);
    for (size_t i = 0; i < heads * sharing; i++)
        if (memcmp(y + i * width, z + i * width, head_dim * sizeof *y)) error = (double)INFINITY;
    free(numbers);
    free(halves);
    free(shares);
    free(y);
    free(z);
    return error;
}

/* No neighbouring f16 may be nearer. A number halfway between two is rounded to the even one. A
 * number beyond the largest f16 becomes the largest. */
static double to_f16(const sl_kernels *k) {
    enum { MAX_COUNT = 100 };
    const size_t n = 1 + integer(MAX_COUNT);
    float x[MAX_COUNT];
    for (size_t i = 0; i < n; i++) {
        const uint16_t near = (uint16_t)integer(0x7c00);
        const double low = from_f16(near), high = near == 0x7bff ? low : from_f16(near + 1);
        x[i] = (float)(integer(2) ? (low + high) / 2 : low + (high - low) * (double)real());
        if (integer(8) == 0) x[i] = integer(2) ? 65504.0f + (float)integer(1000) : INFINITY;
        if (integer(2)) x[i] = -x[i];
    }
    uint16_t *y = allocate(n * sizeof *y);
    k->to_f16(y, x, n);
    double error = 0;
    for (size_t i = 0; i < n; i++) {
        const double wanted = fmin(fabs((double)x[i]), 65504.0);
        const uint16_t chosen = y[i] & 0x7fff;
        const double distance = fabs(from_f16(chosen) - wanted);
        const double above = chosen == 0x7bff ? HUGE_VAL : fabs(from_f16(chosen + 1) - wanted);
        const double below = chosen == 0 ? HUGE_VAL : fabs(from_f16(chosen - 1) - wanted);
        const int is_halfway = distance == fmin(above, below);
        if (!(distance <= fmin(above, below)) || (is_halfway && chosen % 2) ||
            y[i] >> 15 != (signbit(x[i]) != 0))
            error = HUGE_VAL;
    }
    const float nan = NAN;
    k->to_f16(y, &nan, 1);
    if (!isnan(from_f16(y[0]))) error = HUGE_VAL;
    free(y);
    return error;
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

/* A quantized matrix of random weights, which have `bits` bits with `bias` added. */
typedef struct {
    size_t tiles, groups, group_size, bits;
    int bias;
    bool has_unit_scales;
    size_t scale_bytes, tile_bytes;
    uint8_t *data;
} quantized_matrix;

/* Return a random number from 1 to `usual`, now and then to `max`. */
static size_t count(uint32_t usual, uint32_t max) {
    return 1 + integer(integer(4) ? usual : max);
}

/* Extreme values are frequent, to find sums that overflow. No q8 weight is a zero byte, which would
 * be -128: the writer uses -127 … 127. In every second matrix all scales are 1. */
static quantized_matrix random_matrix(size_t bits) {
    quantized_matrix m = {.tiles = 1 + integer(9), .groups = 1 + integer(4), .bits = bits};
    m.group_size = 32 / bits * count(20, 64);
    m.bias = 1 << (bits - 1);
    m.has_unit_scales = integer(2);
    m.scale_bytes = (m.groups * ROWS * 2 + 63) / 64 * 64;
    m.tile_bytes = m.scale_bytes + m.groups * m.group_size * ROWS * bits / 8;
    m.data = allocate(m.tiles * m.tile_bytes);
    for (size_t i = 0; i < m.tiles * m.tile_bytes; i++)
        m.data[i] = (uint8_t)(integer(2) ? 255 : 1 + integer(255));
    for (size_t t = 0; t < m.tiles; t++)
        for (size_t s = 0; s < m.groups * ROWS; s++) {
            uint16_t scale = (uint16_t)(integer(2) << 15 | (0x3f80 - integer(0x300)));
            if (m.has_unit_scales) scale = 0x3f80;
            memcpy(m.data + t * m.tile_bytes + 2 * s, &scale, sizeof scale);
        }
    return m;
}

/* Read a weight by the indices of the layout in storyllamas.h. */
static double weight_at(const quantized_matrix *m, size_t row, size_t column) {
    const uint8_t *tile = m->data + row / ROWS * m->tile_bytes, *w = tile + m->scale_bytes;
    const size_t r = row % ROWS, g = column / m->group_size, within = column % m->group_size;
    uint16_t bf16;
    memcpy(&bf16, tile + 2 * (g * ROWS + r), sizeof bf16);
    const uint32_t bits = (uint32_t)bf16 << 16;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    int value;
    if (m->bits == 8) {
        value = w[((g * (m->group_size / 4) + within / 4) * ROWS + r) * 4 + within % 4];
    } else {
        const uint8_t both =
            w[((g * (m->group_size / 8) + within / 8) * ROWS + r) * 4 + within % 4];
        value = within % 8 < 4 ? both % 16 : both / 16;
    }
    return (double)scale * (value - m->bias);
}

/* If all scales are 1 the sums are integers below 2^24, which a float holds: they must be exact. */
static double matmul_quantized(const sl_kernels *k, uint32_t type, size_t bits) {
    quantized_matrix m = random_matrix(bits);
    const size_t n = count(20, 70), rows = m.tiles * ROWS, columns = m.groups * m.group_size;
    const size_t y_stride = rows + integer(3) * 4;
    float *y = reals(n * y_stride);
    sl_quantized q = quantized(n, m.groups, m.group_size);
    for (size_t g = 0; g < n * m.groups; g++) {
        q.sums[g] = 0;
        if (m.has_unit_scales) q.scales[g] = 1;
        for (size_t c = 0; c < m.group_size; c++) {
            const int value = integer(2) ? -127 : (int)integer(255) - 127;
            q.values[g * m.group_size + c] = (int8_t)value;
            q.sums[g] += value;
        }
    }
    sl_matmul_quantized *const matmul = sl_matmul_of(k, type);
    matmul(y, y_stride, m.data, m.tiles, &q, n);
    for (size_t i = 0; i < n; i++) record(y + i * y_stride, rows);
    double error = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < m.tiles; t++) {
            float alone[ROWS];
            sl_quantized row = q;
            row.values += i * columns;
            row.scales += i * m.groups;
            row.sums += i * m.groups;
            matmul(alone, ROWS, m.data + t * m.tile_bytes, 1, &row, 1);
            error = larger(differs(alone, y + i * y_stride + t * ROWS), error);
        }
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < rows; r++) {
            double sum = 0;
            for (size_t c = 0; c < columns; c++)
                sum += weight_at(&m, r, c) * (double)q.scales[i * m.groups + c / m.group_size] *
                       q.values[i * columns + c];
            const double difference = fabs(sum - (double)y[i * y_stride + r]);
            if (m.has_unit_scales && difference > 0) error = INFINITY;
            error = larger(difference, error);
        }
    free(m.data);
    free(y);
    free_quantized(&q);
    return error / (127.0 * m.bias * (double)columns);
}

static double matmul_q8(const sl_kernels *k) {
    return matmul_quantized(k, SL_Q8, 8);
}

static double matmul_q4(const sl_kernels *k) {
    return matmul_quantized(k, SL_Q4, 4);
}

/* A group with infinity or NaN must get zeros and a scale that is not finite, in every set. */
static double quantize_not_finite(const sl_kernels *k) {
    const size_t group_size = 8 * (1 + integer(8)), groups = 2, columns = groups * group_size;
    const float strange = (float[]){INFINITY, -INFINITY, NAN}[integer(3)];
    sl_quantized q = quantized(1, groups, group_size);
    float *x = reals(columns);
    x[group_size + integer((uint32_t)group_size)] = strange;
    if (integer(2)) /* all of the group: the sum of its rounded values must not overflow */
        for (size_t c = group_size; c < columns; c++) x[c] = strange;
    k->quantize(&q, 0, x, columns);
    bool is_right = isfinite(q.scales[0]) && !isfinite(q.scales[1]) && q.sums[1] == 0;
    for (size_t c = group_size; c < columns; c++) is_right = is_right && q.values[c] == 0;
    free(x);
    free_quantized(&q);
    return is_right ? 0 : (double)INFINITY;
}

/* The error is at most half a step. A step is the largest magnitude of the group over 127. */
static double quantize(const sl_kernels *k) {
    const size_t group_size = 4 * (1 + integer(20)), columns = 1 + integer(200);
    const size_t groups = (columns + group_size - 1) / group_size, row = integer(2);
    const float scale = (float[]){1.0f, 1e-30f, 1e30f, 0.0f}[integer(4)];
    sl_quantized q = quantized(2, groups, group_size);
    float *x = reals(columns);
    for (size_t c = 0; c < columns; c++) x[c] *= scale;
    k->quantize(&q, row, x, columns);
    record(q.scales + row * groups, groups);
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
    record(y, n);
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
    record(y, heads * head_dim);
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

static double argmax(const sl_kernels *k) {
    const size_t n = 1 + integer(100), first = integer((uint32_t)n);
    float *x = reals(n);
    x[first] = 2;
    x[first + integer((uint32_t)(n - first))] = 2; /* the largest may come twice */
    const size_t found = k->argmax(x, n);
    free(x);
    return found == first ? 0 : INFINITY;
}

static double exponentials(const sl_kernels *k) {
    const size_t n = 1 + integer(100);
    const float scale = (float)integer(160) / 2;
    float *x = reals(n), *y = reals(n);
    const float sum = k->exponentials(y, x, n, 0.25f, scale);
    record(y, n);
    record(&sum, 1);
    double error = 0, expected_sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double expected = exp((double)((x[i] - 0.25f) * scale));
        expected_sum += expected;
        error = larger(fabs(expected - (double)y[i]) / (expected + 1e-38), error);
    }
    free(x);
    free(y);
    return larger(fabs(expected_sum - (double)sum) / expected_sum / 10, error);
}

static double select(const sl_kernels *k) {
    const size_t n = 1 + integer(100);
    const float floor = real();
    float *x = reals(n);
    int32_t *indices = allocate((n + 16) * sizeof *indices);
    if (integer(2)) x[integer((uint32_t)n)] = floor;
    const size_t count = k->select(indices, x, n, floor);
    size_t found = 0;
    double error = 0;
    for (size_t i = 0; i < n; i++)
        if (x[i] >= floor && (found == count || indices[found++] != (int32_t)i)) error = INFINITY;
    free(x);
    free(indices);
    return found == count ? error : INFINITY;
}

static double swiglu(const sl_kernels *k) {
    const size_t n = 1 + integer(100);
    float *gate = reals(n), *up = reals(n), *y = reals(n);
    double error = 0;
    for (size_t i = 0; i < n; i++) gate[i] *= 200;
    k->swiglu(y, gate, up, n);
    record(y, n);
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
    {"matmul_f16", matmul_f16, 1e-6},
    {"matmul_i8", matmul_i8, 1e-6},
    {"average", average, 0},
    {"to_f16", to_f16, 0},
    {"matmul_q8", matmul_q8, 1e-6},
    {"matmul_q4", matmul_q4, 1e-6},
    {"quantize", quantize, 0.501 / 127},
    {"not_finite", quantize_not_finite, 0},
    {"rmsnorm", rmsnorm, 2e-6},
    {"rotate", rotate, 1e-6},
    {"swiglu", swiglu, 1e-6},
    {"argmax", argmax, 0},
    {"exponentials", exponentials, 3e-7},
    {"select", select, 0},
};

/* A set without a product of its own must use the scalar one. */
static int check_fallback(void) {
    const sl_kernels empty = {.name = "empty"};
    const int failed = sl_matmul_of(&empty, SL_Q8) != sl_matmul_of(&sl_kernels_scalar, SL_Q8);
    if (failed) printf("a set without a product does not use the scalar one  FAILED\n");
    return failed;
}

/* Return whether a set has fused multiply-add. */
static bool is_fused(const sl_kernels *set) {
    return strcmp(set->name, "scalar") && strcmp(set->name, "wasm");
}

int main(int argc, char **argv) {
    enum { TESTS = sizeof tests / sizeof *tests };
    const int rounds = argc > 1 ? atoi(argv[1]) : 100;
    int failures = check_fallback();
    const sl_kernels *const *first = sl_kernels_available();
    uint64_t expected[TESTS] = {0};
    for (const sl_kernels *const *set = first; *set; set++)
        for (size_t t = 0; t < TESTS; t++) {
            double worst = 0;
            state = 1;
            digest = UINT64_C(0xcbf29ce484222325);
            for (int i = 0; i < rounds; i++) worst = larger(tests[t].error(*set), worst);
            if (set == first) expected[t] = digest;
            const bool has_other_bits = is_fused(*set) && digest != expected[t];
            const bool failed = !(worst <= tests[t].bound) || has_other_bits;
            printf("%-10s %-12s %.2e of %.2e  %016" PRIx64 "%s\n", (*set)->name, tests[t].name,
                   worst, tests[t].bound, digest, failed ? "  FAILED" : "");
            failures += failed;
        }
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
