/* layers.h: a layer, forward and back. Every thread calls the functions, and `omp for` shares out
 * the tasks. */

#ifndef FUSED_LAYERS_H
#define FUSED_LAYERS_H

#include "attention.h"
#include "threads.h"

static void pack_all(packed to, const float *weights, int64_t rows, int64_t columns) {
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < rows; i += BLOCK)
        pack_weights(to.plain, to.transposed, weights, i, rows, columns);
}

/* Gradient of weights [rows, columns]: dy [T, rows] transposed, times x [T, columns]. */
static void weight_gradient(work *w, float *to, matrix dy, int64_t rows, matrix x,
                            int64_t columns) {
    int64_t t = w->tokens;
    /* The narrower one becomes the left matrix, since turning it costs more. */
    int turn_dy = rows <= columns;
    matrix narrow = turn_dy ? dy : x, broad = turn_dy ? x : dy;
    int64_t m = turn_dy ? rows : columns, n = turn_dy ? columns : rows;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < m; i += BLOCK)
        tile_transpose(w->turned + i * t, part_of(narrow, 0, i), t, BLOCK);
    /* Eight tasks or more, so that threads end at the same time. */
    int64_t width = smaller(PANEL, larger(2 * BLOCK, n / 8 / BLOCK * BLOCK));
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < n; i += width) {
        number *panel = w->narrow[omp_get_thread_num()];
        float *sums = w->wide[omp_get_thread_num()];
        int64_t wide = smaller(width, n - i);
        pack(panel, part_of(broad, 0, i), t, wide);
        product(target_of(sums, wide, SET), tiles_of(w->turned, t), panel, m, t, wide, t);
        if (turn_dy)
            copy(to + i, columns, sums, m, wide, w->adds);
        else
            turn(to + i * columns, columns, sums, wide, m, wide, w->adds);
    }
}

/* Add up the gradients of a norm's weights, task by task. */
static void finish_norm(work *w, float *to) {
#pragma omp single
    {
        if (!w->adds) memset(to, 0, sizeof(float) * (size_t)w->s.dim);
        for (int64_t i = 0; i * w->chunk < w->tokens; i++)
            for (int64_t j = 0; j < w->s.dim; j++) to[j] += w->norm_sums[i * w->s.dim + j];
    }
}

/* Weights are the embedding, six of each layer, and the last norm. */
enum { NORM1, QKV, OUTPUT, NORM2, GATE_UP, DOWN, PER_LAYER };

typedef void of_head(const work *w, layer *l, int64_t sequence, int64_t head, float *wide,
                     number *narrow);

/* Compute each head of each sequence. */
static inline void each_head(work *w, layer *l, of_head *compute) {
    int64_t heads = w->s.heads;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < w->tokens / w->s.context * heads; i++) {
        int me = omp_get_thread_num();
        compute(w, l, i / heads, i % heads, w->wide[me], w->narrow[me]);
    }
}

static void layer_forward(work *w, int64_t index, const float *const *weights, float *to) {
    layer *l = &w->layers[index];
    shape s = w->s;
    int64_t d = s.dim, width = w->width;
    matrix gate_up = tiles_of(l->gate_up, 2 * s.hidden), active = tiles_of(l->active, s.hidden);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        for (int64_t i = first; i < first + rows; i++)
            normalize(w, l->normed1 + i * d, l->scale1 + i, l->input + i * d, weights[NORM1]);
        product(rounded(rows_of(l->qkv + first * 3 * width, 3 * width)),
                rows_of(l->normed1 + first * d, d), l->qkv_w.transposed, rows, d, 3 * width, d);
    }
    each_head(w, l, attend);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        float *branch = w->wide[omp_get_thread_num()];
        product(target_of(branch, d, SET), rows_of(l->mixed + first * width, width),
                l->output_w.transposed, rows, width, d, width);
        for (int64_t i = first; i < first + rows; i++) {
            add_branch(w, l->middle + i * d, l->input + i * d, branch + (i - first) * d,
                       2 * index + 1, i);
            normalize(w, l->normed2 + i * d, l->scale2 + i, l->middle + i * d, weights[NORM2]);
        }
        product(rounded(part_of(gate_up, first, 0)), rows_of(l->normed2 + first * d, d),
                l->gate_up_w.transposed, rows, d, 2 * s.hidden, d);
        swiglu(active, gate_up, first, rows, s.hidden);
        product(target_of(branch, d, SET), part_of(active, first, 0), l->down_w.transposed, rows,
                s.hidden, d, s.hidden);
        for (int64_t i = first; i < first + rows; i++)
            add_branch(w, to + i * d, l->middle + i * d, branch + (i - first) * d, 2 * index + 2,
                       i);
    }
}

static void layer_back(work *w, int64_t index, const float *const *weights,
                       float *const *gradients) {
    layer *l = &w->layers[index];
    shape s = w->s;
    int64_t d = s.dim, f = s.hidden, width = w->width;
    matrix gate_up = tiles_of(l->gate_up, 2 * f), active = tiles_of(l->active, f);
    matrix dgate_up = tiles_of(w->dgate_up, 2 * f);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        float *wide = w->wide[omp_get_thread_num()];
        number *dactive = w->narrow[omp_get_thread_num()];
        float *sums = w->norm_sums + first / w->chunk * d;
        memset(sums, 0, sizeof(float) * (size_t)d);
        for (int64_t i = first; i < first + rows; i++)
            branch_back(w, w->dx_rounded + i * d, w->dx + i * d, 2 * index + 2, i);
        product(rounded(tiles_of(dactive, f)), rows_of(w->dx_rounded + first * d, d),
                l->down_w.plain, rows, d, f, d);
        swiglu_back(dgate_up, tiles_of(dactive, f), gate_up, first, rows, f);
        product(target_of(wide, d, SET), part_of(dgate_up, first, 0), l->gate_up_w.plain, rows,
                2 * f, d, 2 * f);
        for (int64_t i = first; i < first + rows; i++)
            normalize_back(w, w->dx + i * d, sums, wide + (i - first) * d, l->middle + i * d,
                           l->scale2[i], weights[NORM2]);
    }
    weight_gradient(w, gradients[DOWN], rows_of(w->dx_rounded, d), d, active, f);
    weight_gradient(w, gradients[GATE_UP], dgate_up, 2 * f, rows_of(l->normed2, d), d);
    finish_norm(w, gradients[NORM2]);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        for (int64_t i = first; i < first + rows; i++)
            branch_back(w, w->dx_rounded + i * d, w->dx + i * d, 2 * index + 1, i);
        product(rounded(rows_of(w->dmixed + first * width, width)),
                rows_of(w->dx_rounded + first * d, d), l->output_w.plain, rows, d, width, d);
    }
    weight_gradient(w, gradients[OUTPUT], rows_of(w->dx_rounded, d), d, rows_of(l->mixed, width),
                    width);
    each_head(w, l, attend_back);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        float *wide = w->wide[omp_get_thread_num()], *sums = w->norm_sums + first / w->chunk * d;
        memset(sums, 0, sizeof(float) * (size_t)d);
        product(target_of(wide, d, SET), rows_of(w->dqkv + first * 3 * width, 3 * width),
                l->qkv_w.plain, rows, 3 * width, d, 3 * width);
        for (int64_t i = first; i < first + rows; i++)
            normalize_back(w, w->dx + i * d, sums, wide + (i - first) * d, l->input + i * d,
                           l->scale1[i], weights[NORM1]);
    }
    weight_gradient(w, gradients[QKV], rows_of(w->dqkv, 3 * width), 3 * width,
                    rows_of(l->normed1, d), d);
    finish_norm(w, gradients[NORM1]);
}

#endif
