/* rows.h: operations on rows: dropout, RMSNorm, SwiGLU, rotary position embedding. */

#ifndef FUSED_ROWS_H
#define FUSED_ROWS_H

#include <math.h>

#include "work.h"

/* Return 0 or 1 / (1 - dropout) for the numbers from `index` on, the same again for the same
 * arguments. */
static inline vector mask(const work *w, int64_t site, int64_t index) {
    uint32_t key = (w->seed + (uint32_t)site * 0x9e3779b9u) * 0x85ebca6bu;
    uint32_t limit = (uint32_t)(w->s.dropout * 4294967040.0f);
    naturals x = ((COUNT + (uint32_t)index) * 0x9e3779b1u) ^ key;
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    x ^= x >> 16;
    return choose(x >= limit, repeat(1.0f / (1.0f - w->s.dropout)), repeat(0));
}

static void normalize(const work *w, number *to, float *scale, const float *x,
                      const float *weight) {
    int64_t d = w->s.dim;
    vector squares = repeat(0);
    for (int64_t i = 0; i < d; i += LANES) squares += load_f32(x + i) * load_f32(x + i);
    *scale = 1.0f / sqrtf(sum_of(squares) / (float)d + w->s.norm_eps);
    float factor = *scale;
    for (int64_t i = 0; i < d; i += LANES)
        store(to + i, load_f32(x + i) * factor * load_f32(weight + i));
}

/* Add to dx the gradient of x, from that of the normalized row; add to `sums` that of the weights.
 */
static void normalize_back(const work *w, float *dx, float *sums, const float *dy, const float *x,
                           float scale, const float *weight) {
    int64_t d = w->s.dim;
    vector dot = repeat(0);
    for (int64_t i = 0; i < d; i += LANES) {
        vector g = load_f32(dy + i), v = load_f32(x + i) * scale;
        store_f32(sums + i, g * v + load_f32(sums + i));
        dot += g * load_f32(weight + i) * v;
    }
    float mean = sum_of(dot) / (float)d;
    for (int64_t i = 0; i < d; i += LANES) {
        vector g = load_f32(dy + i) * load_f32(weight + i), v = load_f32(x + i) * scale;
        g -= v * mean;
        store_f32(dx + i, g * scale + load_f32(dx + i));
    }
}

/* Add a branch, with dropout, to a row of the residual stream. */
static void add_branch(const work *w, float *to, const float *x, const float *branch, int64_t site,
                       int64_t row) {
    for (int64_t i = 0; i < w->s.dim; i += LANES) {
        vector v = load_f32(branch + i);
        if (w->s.dropout > 0) v *= mask(w, site, row * w->s.dim + i);
        store_f32(to + i, load_f32(x + i) + v);
    }
}

/* Round the gradient of a branch. */
static void branch_back(const work *w, number *to, const float *dx, int64_t site, int64_t row) {
    for (int64_t i = 0; i < w->s.dim; i += LANES) {
        vector v = load_f32(dx + i);
        if (w->s.dropout > 0) v *= mask(w, site, row * w->s.dim + i);
        store(to + i, v);
    }
}

/* For each vector, at (row, i), of rows from `first` on, tile by tile. */
#define EACH_VECTOR(first, rows, columns)                                                          \
    for (int64_t above = first; above < (first) + (rows); above += TILE)                           \
        for (int64_t before = 0; before < (columns); before += BLOCK)                              \
            for (int64_t row = above; row < above + TILE; row++)                                   \
                for (int64_t i = before; i < before + BLOCK; i += LANES)

/* Set rows of `to` [T, F] from those of gate_up [T, 2, F]. */
static void swiglu(matrix to, matrix gate_up, int64_t first, int64_t rows, int64_t hidden) {
    EACH_VECTOR(first, rows, hidden) {
        vector gate = load(place(gate_up, row, i)), up = load(place(gate_up, row, hidden + i));
        store(place(to, row, i), gate * sigmoid(gate) * up);
    }
}

/* Set rows of `to` [T, 2, F], the gradient of gate_up, from dy [rows, F]. */
static void swiglu_back(matrix to, matrix dy, matrix gate_up, int64_t first, int64_t rows,
                        int64_t hidden) {
    EACH_VECTOR(first, rows, hidden) {
        vector gate = load(place(gate_up, row, i)), up = load(place(gate_up, row, hidden + i));
        vector g = load(place(dy, row - first, i));
        vector s = sigmoid(gate), slope = s * (gate * (1.0f - s) + 1.0f);
        store(place(to, row, i), g * up * slope);
        store(place(to, row, hidden + i), g * (gate * s));
    }
}

/* Turn pairs of a head by the angles of a position; sign -1: back. */
static inline vector rotate(vector x, const float *table, vector sign) {
    vector angles = load_f32(table); /* cos sin cos sin … */
    return swap_pairs(x) * repeat_second(angles) * sign + x * repeat_first(angles);
}

static const float FORWARD[16] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
static const float BACK[16] = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};

#endif
