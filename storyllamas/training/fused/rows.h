/* rows.h: operations on rows: dropout, RMSNorm, SwiGLU, rotary position embedding. */

#ifndef FUSED_ROWS_H
#define FUSED_ROWS_H

#include <math.h>

#include "work.h"

/* Return 0 or 1 / (1 - dropout) for 16 numbers, the same again for the same arguments. */
static inline __m512 mask16(const work *w, int64_t site, int64_t index) {
    uint32_t key = (w->seed + (uint32_t)site * 0x9e3779b9u) * 0x85ebca6bu;
    __m512i x =
        _mm512_add_epi32(_mm512_set1_epi32((int)(uint32_t)index),
                         _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    x = _mm512_xor_si512(_mm512_mullo_epi32(x, _mm512_set1_epi32((int)0x9e3779b1u)),
                         _mm512_set1_epi32((int)key));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int)0x85ebca6bu));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 13));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int)0xc2b2ae35u));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    uint32_t limit = (uint32_t)(w->s.dropout * 4294967040.0f);
    __mmask16 kept = _mm512_cmpge_epu32_mask(x, _mm512_set1_epi32((int)limit));
    return _mm512_maskz_mov_ps(kept, _mm512_set1_ps(1.0f / (1.0f - w->s.dropout)));
}

static void normalize(const work *w, bf16 *to, float *scale, const float *x, const float *weight) {
    int64_t d = w->s.dim;
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    *scale = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)d + w->s.norm_eps);
    __m512 factor = _mm512_set1_ps(*scale);
    for (int64_t i = 0; i < d; i += 16)
        store16(to + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor),
                                      _mm512_loadu_ps(weight + i)));
}

/* Add to dx the gradient of x, from that of the normalized row; add to `sums` that of the weights.
 */
static void normalize_back(const work *w, float *dx, float *sums, const float *dy, const float *x,
                           float scale, const float *weight) {
    int64_t d = w->s.dim;
    __m512 factor = _mm512_set1_ps(scale), dot = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += 16) {
        __m512 g = _mm512_loadu_ps(dy + i), v = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor);
        _mm512_storeu_ps(sums + i, _mm512_fmadd_ps(g, v, _mm512_loadu_ps(sums + i)));
        dot = _mm512_fmadd_ps(_mm512_mul_ps(g, _mm512_loadu_ps(weight + i)), v, dot);
    }
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / (float)d);
    for (int64_t i = 0; i < d; i += 16) {
        __m512 g = _mm512_mul_ps(_mm512_loadu_ps(dy + i), _mm512_loadu_ps(weight + i));
        __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor);
        g = _mm512_fnmadd_ps(v, mean, g);
        _mm512_storeu_ps(dx + i, _mm512_fmadd_ps(g, factor, _mm512_loadu_ps(dx + i)));
    }
}

/* Add a branch, with dropout, to a row of the residual stream. */
static void add_branch(const work *w, float *to, const float *x, const float *branch, int64_t site,
                       int64_t row) {
    for (int64_t i = 0; i < w->s.dim; i += 16) {
        __m512 v = _mm512_loadu_ps(branch + i);
        if (w->s.dropout > 0) v = _mm512_mul_ps(v, mask16(w, site, row * w->s.dim + i));
        _mm512_storeu_ps(to + i, _mm512_add_ps(_mm512_loadu_ps(x + i), v));
    }
}

/* Round the gradient of a branch. */
static void branch_back(const work *w, bf16 *to, const float *dx, int64_t site, int64_t row) {
    for (int64_t i = 0; i < w->s.dim; i += 16) {
        __m512 v = _mm512_loadu_ps(dx + i);
        if (w->s.dropout > 0) v = _mm512_mul_ps(v, mask16(w, site, row * w->s.dim + i));
        store16(to + i, v);
    }
}

static void swiglu(bf16 *to, const bf16 *gate_up, int64_t hidden) {
    for (int64_t i = 0; i < hidden; i += 16) {
        __m512 gate = load16(gate_up + i), up = load16(gate_up + hidden + i);
        store16(to + i, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid16(gate)), up));
    }
}

static void swiglu_back(bf16 *to, const bf16 *dy, const bf16 *gate_up, int64_t hidden) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t i = 0; i < hidden; i += 16) {
        __m512 gate = load16(gate_up + i), up = load16(gate_up + hidden + i), g = load16(dy + i);
        __m512 s = sigmoid16(gate), silu = _mm512_mul_ps(gate, s);
        __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one));
        store16(to + i, _mm512_mul_ps(_mm512_mul_ps(g, up), slope));
        store16(to + hidden + i, _mm512_mul_ps(g, silu));
    }
}

/* Turn pairs of a head by the angles of a position; sign -1: back. */
static inline __m512 rotate16(__m512 x, const float *table, __m512 sign) {
    __m512 angles = _mm512_loadu_ps(table); /* cos sin cos sin … */
    __m512 cosines = _mm512_moveldup_ps(angles), sines = _mm512_movehdup_ps(angles);
    __m512 swapped = _mm512_permute_ps(x, 0xb1);
    return _mm512_fmadd_ps(_mm512_mul_ps(swapped, sines), sign, _mm512_mul_ps(x, cosines));
}

static const float FORWARD[16] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
static const float BACK[16] = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};

#endif
