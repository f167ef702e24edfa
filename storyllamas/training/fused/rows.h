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

static void swiglu(number *to, const number *gate_up, int64_t hidden) {
    for (int64_t i = 0; i < hidden; i += LANES) {
        vector gate = load(gate_up + i), up = load(gate_up + hidden + i);
        store(to + i, gate * sigmoid(gate) * up);
    }
}

static void swiglu_back(number *to, const number *dy, const number *gate_up, int64_t hidden) {
    for (int64_t i = 0; i < hidden; i += LANES) {
        vector gate = load(gate_up + i), up = load(gate_up + hidden + i), g = load(dy + i);
        vector s = sigmoid(gate), slope = s * (gate * (1.0f - s) + 1.0f);
        store(to + i, g * up * slope);
        store(to + hidden + i, g * (gate * s));
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
