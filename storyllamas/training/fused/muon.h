/* muon.h: a step of Muon, see muon.py. */

#ifndef FUSED_MUON_H
#define FUSED_MUON_H

#include <math.h>

#include "product.h"
#include "threads.h"

typedef struct {
    float momentum, beta2, decay,
        rate; /* decay: what weights are multiplied by; rate: of the update */
    float linear, cubic, quintic;
    int64_t steps; /* at least 1 */
} muon;

/* Update the momentum; write Nesterov's lookahead, divided by its norm. */
static void look_ahead(number *to, float *mean, const float *gradient, int64_t size,
                       float momentum) {
    vector squares = repeat(0);
    for (int64_t i = 0; i < size; i += LANES) {
        vector g = load_f32(gradient + i), m = load_f32(mean + i);
        m = (m - g) * momentum + g;
        store_f32(mean + i, m);
        m = (m - g) * momentum + g;
        squares += m * m;
    }
    float norm = sqrtf(sum_of(squares)), factor = 1.0f / (norm > 1e-7f ? norm : 1e-7f);
    for (int64_t i = 0; i < size; i += LANES) {
        vector g = load_f32(gradient + i), m = load_f32(mean + i);
        store(to + i, ((m - g) * momentum + g) * factor);
    }
}

/* Write cubic * gram + quintic * gram^2, all [rows, rows]. */
static void polynomial_of(number *to, const muon *o, const number *gram, int64_t rows,
                          number *packed_gram) {
    pack(packed_gram, rows_of(gram, rows), rows, rows);
    symmetric_product(rounded_sum(rows_of(to, rows), o->quintic, rows_of(gram, rows), o->cubic),
                      rows_of(gram, rows), packed_gram, rows, rows);
}

#ifdef FUSED_FLOAT32

/* Multiply symmetric matrices [rows, rows] that commute, so that their product is symmetric. */
static void commuting_product(number *to, const number *a, const number *packed_b, int64_t rows) {
    symmetric_product(rounded(rows_of(to, rows)), rows_of(a, rows), packed_b, rows, rows);
}

/* A step multiplies x by a polynomial p of its Gram matrix g, and the next g is p g p. All of
 * these commute. So collect the product of the polynomials, and multiply x by it once. Small
 * singular values come out right within 2 %; in bfloat16 they would be lost. scratch: size + 5 *
 * rows^2 numbers. */
static void orthogonalize(const muon *o, number *x, int64_t rows, int64_t columns,
                          number *scratch) {
    int64_t size = rows * columns, square = rows * rows;
    number *packed_x = scratch, *gram = packed_x + size, *polynomial = gram + square;
    number *packed = polynomial + square, *all = packed + square, *next = all + square;
    pack_transpose(packed_x, x, columns, rows, columns);
    symmetric_product(rounded(rows_of(gram, rows)), rows_of(x, columns), packed_x, rows, columns);
    for (int64_t step = 0; step < o->steps; step++) {
        polynomial_of(polynomial, o, gram, rows, packed);
        for (int64_t i = 0; i < rows; i++) polynomial[i * rows + i] += o->linear;
        pack(packed, rows_of(polynomial, rows), rows, rows);
        if (step == 0) {
            memcpy(all, polynomial, sizeof *all * (size_t)square);
        } else {
            commuting_product(next, all, packed, rows);
            number *before = all;
            all = next;
            next = before;
        }
        if (step + 1 == o->steps) break;
        commuting_product(next, gram, packed, rows);
        commuting_product(gram, next, packed, rows);
    }
    pack(packed_x, rows_of(x, columns), rows, columns);
    product(rounded(rows_of(x, columns)), rows_of(all, rows), packed_x, rows, rows, columns, rows);
}

#else

/* Orthogonalize x [rows, columns], rows <= columns, in place; scratch: 2 * size + 3 * rows^2
 * numbers. */
static void orthogonalize(const muon *o, number *x, int64_t rows, int64_t columns,
                          number *scratch) {
    int64_t size = rows * columns;
    number *packed_x = scratch, *next = packed_x + size;
    number *gram = next + size, *packed_gram = gram + rows * rows,
           *polynomial = packed_gram + rows * rows;
    number *now = x;
    for (int64_t step = 0; step < o->steps; step++) {
        pack_transpose(packed_x, now, columns, rows, columns);
        symmetric_product(rounded(rows_of(gram, rows)), rows_of(now, columns), packed_x, rows,
                          columns);
        polynomial_of(polynomial, o, gram, rows, packed_gram);
        pack(packed_x, rows_of(now, columns), rows, columns);
        product(rounded_sum(rows_of(next, columns), 1.0f, rows_of(now, columns), o->linear),
                rows_of(polynomial, rows), packed_x, rows, rows, columns, rows);
        number *before = now;
        now = next;
        next = before;
    }
    if (now != x) memcpy(x, now, sizeof(number) * (size_t)size);
}

#endif

/* Change weights [rows, columns] by an update whose rows are divided by their mean size over time.
 */
static void apply(const muon *o, float *weights, const number *update, float *row_squares,
                  int64_t rows, int64_t columns) {
    double before = 0, after = 0;
    for (int64_t i = 0; row_squares && i < rows; i++) {
        vector total = repeat(0);
        for (int64_t j = 0; j < columns; j += LANES) {
            vector u = load(update + i * columns + j);
            total += u * u;
        }
        float sum = sum_of(total);
        row_squares[i] += (sum / (float)columns - row_squares[i]) * (1.0f - o->beta2);
        float size = sqrtf(row_squares[i]) + 1e-8f;
        before += sum;
        after += sum / size / size;
    }
    double all = row_squares ? sqrt(before) / fmax(sqrt(after), 1e-7) : 1.0;
    for (int64_t i = 0; i < rows; i++) {
        float size = row_squares ? sqrtf(row_squares[i]) + 1e-8f : 1.0f;
        float rate = o->rate * (float)all / size, decay = o->decay, *row = weights + i * columns;
        for (int64_t j = 0; j < columns; j += LANES)
            store_f32(row + j, load_f32(row + j) * decay - load(update + i * columns + j) * rate);
    }
}

/* Return the numbers of scratch that a thread of `fused_muon` needs. */
int64_t fused_muon_scratch(int64_t rows, int64_t columns) {
    int64_t side = smaller(rows, columns);
    return 4 * rows * columns + 5 * side * side;
}

/* Update matrices of one shape, each by one thread; row_squares: NULL for none. */
void fused_muon(const muon *o, int64_t threads, int64_t count, int64_t rows, int64_t columns,
                float *const *weights, float *const *means, const float *const *gradients,
                float *const *row_squares, number *scratch) {
    int64_t size = rows * columns, each = fused_muon_scratch(rows, columns);
    int tall = rows > columns;
#pragma omp parallel num_threads((int)threads)
    {
        uint8_t before[64] __attribute__((aligned(64)));
        save_configuration(before);
        configure(TILES);
        number *x = scratch + omp_get_thread_num() * each, *turned = x + size,
               *rest = turned + size;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i++) {
            look_ahead(x, means[i], gradients[i], size, o->momentum);
            if (tall) transpose(turned, x, rows, columns);
            orthogonalize(o, tall ? turned : x, smaller(rows, columns), larger(rows, columns),
                          rest);
            if (tall) transpose(x, turned, columns, rows);
            apply(o, weights[i], x, row_squares ? row_squares[i] : NULL, rows, columns);
        }
        configure(before);
    }
}

#endif
