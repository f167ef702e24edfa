/* attention.h: attention of one head. */

#ifndef FUSED_ATTENTION_H
#define FUSED_ATTENTION_H

#include "rows.h"

/* Scores of 32 queries from `first` on become exp(score - limit), and 0 behind the query. */
static inline __m512 visible(__m512 x, int64_t key, int64_t query) {
    int64_t seen = query - key + 1;
    if (seen >= 16) return x;
    return _mm512_maskz_mov_ps((__mmask16)(seen <= 0 ? 0 : (1u << seen) - 1), x);
}

static void attend(const work *w, layer *l, int64_t sequence, int64_t head, float *wide,
                   bf16 *narrow) {
    int64_t c = w->s.context, e = w->s.head_dim, stride = 3 * w->width;
    bf16 *q = l->qkv + sequence * c * stride + head * e, *k = q + w->width, *v = k + w->width;
    bf16 *keys = narrow, *values = keys + c * e, *weights = values + c * e;
    float *scores = wide;
    __m512 sign = _mm512_loadu_ps(FORWARD);
    for (int64_t t = 0; t < c; t++)
        for (int64_t i = 0; i < e; i += 16) {
            store16(q + t * stride + i,
                    rotate16(load16(q + t * stride + i), w->rotary + t * e + i, sign));
            store16(k + t * stride + i,
                    rotate16(load16(k + t * stride + i), w->rotary + t * e + i, sign));
        }
    pack_transpose(keys, k, stride, c, e);
    pack(values, v, stride, c, e);
    __m512 factor = _mm512_set1_ps(1.0f / sqrtf((float)e));
    for (int64_t first = 0; first < c; first += BLOCK) {
        int64_t seen = first + BLOCK;
        product(target_of(scores, c, SET), rows_of(q + first * stride, stride), keys, BLOCK, e,
                seen, e);
        for (int64_t i = 0; i < BLOCK; i++) {
            float *row = scores + i * c;
            int64_t query = first + i, end = query / 16 * 16 + 16;
            __m512 most = _mm512_set1_ps(-INFINITY);
            for (int64_t t = 0; t < end; t += 16) {
                __m512 x = _mm512_mul_ps(_mm512_loadu_ps(row + t), factor);
                int64_t left_over = query - t + 1;
                __mmask16 kept = left_over >= 16 ? 0xffff : (__mmask16)((1u << left_over) - 1);
                x = _mm512_mask_mov_ps(_mm512_set1_ps(-1e30f), kept, x);
                _mm512_storeu_ps(row + t, x);
                most = _mm512_max_ps(most, x);
            }
            float limit = _mm512_reduce_max_ps(most);
            __m512 total = _mm512_setzero_ps();
            for (int64_t t = 0; t < end; t += 16) {
                __m512 x = exp16(_mm512_sub_ps(_mm512_loadu_ps(row + t), _mm512_set1_ps(limit)));
                x = visible(x, t, query);
                total = _mm512_add_ps(total, x);
                _mm512_storeu_ps(row + t, x);
            }
            float sum = _mm512_reduce_add_ps(total);
            l->log_sums[(sequence * w->s.heads + head) * c + query] = limit + logf(sum);
            __m512 part = _mm512_set1_ps(1.0f / sum);
            for (int64_t t = 0; t < end; t += 16)
                store16(weights + i * c + t, _mm512_mul_ps(_mm512_loadu_ps(row + t), part));
            for (int64_t t = end; t < seen; t += 16)
                store16(weights + i * c + t, _mm512_setzero_ps());
        }
        bf16 *to = l->mixed + (sequence * c + first) * w->width + head * e;
        product(target_of(to, w->width, ROUND), rows_of(weights, c), values, BLOCK, seen, e, c);
    }
}

/* Turn gradients [32, E] back, round and store them. */
static void turn_back(const work *w, bf16 *to, int64_t stride, const float *from, int64_t first,
                      int turns) {
    int64_t e = w->s.head_dim;
    __m512 sign = _mm512_loadu_ps(BACK);
    for (int64_t t = 0; t < BLOCK; t++)
        for (int64_t i = 0; i < e; i += 16) {
            __m512 x = _mm512_loadu_ps(from + t * e + i);
            if (turns) x = rotate16(x, w->rotary + (first + t) * e + i, sign);
            store16(to + (first + t) * stride + i, x);
        }
}

static void attend_back(const work *w, layer *l, int64_t sequence, int64_t head, float *wide,
                        bf16 *narrow) {
    int64_t c = w->s.context, e = w->s.head_dim, stride = 3 * w->width;
    int64_t start = sequence * c * stride + head * e, out = sequence * c * w->width + head * e;
    const bf16 *q = l->qkv + start, *k = q + w->width, *v = k + w->width;
    const bf16 *mixed = l->mixed + out, *dmixed = w->dmixed + out;
    bf16 *dq = w->dqkv + start, *dk = dq + w->width, *dv = dk + w->width;
    bf16 *keys = narrow, *keys_back = keys + c * e, *values = keys_back + c * e,
         *queries = values + c * e;
    bf16 *outputs = queries + c * e, *panel = outputs + c * e;
    bf16 *weights = panel + BLOCK * c, *dscores = weights + c * c;
    float *scores = wide, *dweights = scores + BLOCK * c, *part = dweights + BLOCK * c;
    pack_transpose(keys, k, stride, c, e);
    pack_transpose(values, v, stride, c, e);
    pack(keys_back, k, stride, c, e);
    float scale = 1.0f / sqrtf((float)e);
    __m512 factor = _mm512_set1_ps(scale);
    for (int64_t first = 0; first < c; first += BLOCK) {
        int64_t seen = first + BLOCK;
        product(target_of(scores, c, SET), rows_of(q + first * stride, stride), keys, BLOCK, e,
                seen, e);
        product(target_of(dweights, c, SET), rows_of(dmixed + first * w->width, w->width), values,
                BLOCK, e, seen, e);
        for (int64_t i = 0; i < BLOCK; i++) {
            int64_t query = first + i;
            __m512 dot = _mm512_setzero_ps();
            for (int64_t j = 0; j < e; j += 16)
                dot = _mm512_fmadd_ps(load16(mixed + query * w->width + j),
                                      load16(dmixed + query * w->width + j), dot);
            __m512 delta = _mm512_set1_ps(_mm512_reduce_add_ps(dot));
            __m512 limit = _mm512_set1_ps(l->log_sums[(sequence * w->s.heads + head) * c + query]);
            for (int64_t t = 0; t < seen; t += 16) {
                __m512 x = _mm512_loadu_ps(scores + i * c + t);
                __m512 p = visible(exp16(_mm512_fmsub_ps(x, factor, limit)), t, query);
                __m512 g = _mm512_sub_ps(_mm512_loadu_ps(dweights + i * c + t), delta);
                store16(weights + query * c + t, p);
                store16(dscores + query * c + t, _mm512_mul_ps(_mm512_mul_ps(p, g), factor));
            }
        }
        product(target_of(part, e, SET), rows_of(dscores + first * c, c), keys_back, BLOCK, seen, e,
                c);
        turn_back(w, dq, stride, part, first, 1);
    }
    tile_transpose(queries, q, stride, c, e);
    tile_transpose(outputs, dmixed, w->width, c, e);
    for (int64_t key = 0; key < c; key += BLOCK) {
        int64_t rest = c - key;
        left a = tiles_of(outputs, c);
        a.at += key / BLOCK * TILE_SIZE;
        pack(panel, weights + key * c + key, c, rest, BLOCK);
        product(target_of(part, e, SET_TRANSPOSE), a, panel, e, rest, BLOCK, rest);
        turn_back(w, dv, stride, part, key, 0);
        a.at = queries + key / BLOCK * TILE_SIZE;
        pack(panel, dscores + key * c + key, c, rest, BLOCK);
        product(target_of(part, e, SET_TRANSPOSE), a, panel, e, rest, BLOCK, rest);
        turn_back(w, dk, stride, part, key, 1);
    }
}

#endif
