/* attention.h: attention of one head. */

#ifndef FUSED_ATTENTION_H
#define FUSED_ATTENTION_H

#include "rows.h"

/* Return the lanes of x whose keys, from `key` on, a query sees, and `other` in the rest. */
static inline vector seen_by(int64_t query, int64_t key, vector x, float other) {
    if (query - key >= LANES - 1) return x;
    return choose((integers)COUNT <= (int32_t)(query - key), x, repeat(other));
}

static void attend(const work *w, layer *l, int64_t sequence, int64_t head, float *wide,
                   number *narrow) {
    int64_t c = w->s.context, e = w->s.head_dim, stride = 3 * w->width;
    number *q = l->qkv + sequence * c * stride + head * e, *k = q + w->width, *v = k + w->width;
    number *keys = narrow, *values = keys + c * e, *weights = values + c * e;
    float *scores = wide;
    vector sign = load_f32(FORWARD);
    for (int64_t t = 0; t < c; t++)
        for (int64_t i = 0; i < e; i += LANES) {
            number *query = q + t * stride + i, *key = k + t * stride + i;
            store(query, rotate(load(query), w->rotary + t * e + i, sign));
            store(key, rotate(load(key), w->rotary + t * e + i, sign));
        }
    pack_transpose(keys, k, stride, c, e);
    pack(values, rows_of(v, stride), c, e);
    float factor = 1.0f / sqrtf((float)e);
    for (int64_t first = 0; first < c; first += BLOCK) {
        int64_t seen = first + BLOCK;
        product(target_of(scores, c, SET), rows_of(q + first * stride, stride), keys, BLOCK, e,
                seen, e);
        for (int64_t i = 0; i < BLOCK; i++) {
            float *row = scores + i * c;
            int64_t query = first + i, end = query / LANES * LANES + LANES;
            vector most = repeat(-INFINITY), total = repeat(0);
            for (int64_t t = 0; t < end; t += LANES) {
                vector x = load_f32(row + t) * factor;
                store_f32(row + t, x);
                most = larger_lanes(most, seen_by(query, t, x, -INFINITY));
            }
            float limit = largest_of(most);
            for (int64_t t = 0; t < end; t += LANES) {
                vector x = exponential(load_f32(row + t) - limit);
                x = seen_by(query, t, x, 0);
                total += x;
                store_f32(row + t, x);
            }
            float sum = sum_of(total);
            l->log_sums[(sequence * w->s.heads + head) * c + query] = limit + logf(sum);
            for (int64_t t = 0; t < end; t += LANES)
                store(weights + i * c + t, load_f32(row + t) * (1.0f / sum));
            for (int64_t t = end; t < seen; t += LANES) store(weights + i * c + t, repeat(0));
        }
        number *to = l->mixed + (sequence * c + first) * w->width + head * e;
        product(rounded(rows_of(to, w->width)), rows_of(weights, c), values, BLOCK, seen, e, c);
    }
}

/* Turn gradients [32, E] back, round and store them. */
static void turn_back(const work *w, number *to, int64_t stride, const float *from, int64_t first,
                      int turns) {
    int64_t e = w->s.head_dim;
    vector sign = load_f32(BACK);
    for (int64_t t = 0; t < BLOCK; t++)
        for (int64_t i = 0; i < e; i += LANES) {
            vector x = load_f32(from + t * e + i);
            if (turns) x = rotate(x, w->rotary + (first + t) * e + i, sign);
            store(to + (first + t) * stride + i, x);
        }
}

static void attend_back(const work *w, layer *l, int64_t sequence, int64_t head, float *wide,
                        number *narrow) {
    int64_t c = w->s.context, e = w->s.head_dim, stride = 3 * w->width;
    int64_t start = sequence * c * stride + head * e, out = sequence * c * w->width + head * e;
    const number *q = l->qkv + start, *k = q + w->width, *v = k + w->width;
    const number *mixed = l->mixed + out, *dmixed = w->dmixed + out;
    number *dq = w->dqkv + start, *dk = dq + w->width, *dv = dk + w->width;
    number *keys = narrow, *keys_back = keys + c * e, *values = keys_back + c * e,
           *queries = values + c * e;
    number *outputs = queries + c * e, *panel = outputs + c * e;
    number *weights = panel + BLOCK * c, *dscores = weights + c * c;
    float *scores = wide, *dweights = scores + BLOCK * c, *part = dweights + BLOCK * c;
    float *turned = part + BLOCK * e;
    pack_transpose(keys, k, stride, c, e);
    pack_transpose(values, v, stride, c, e);
    pack(keys_back, rows_of(k, stride), c, e);
    float factor = 1.0f / sqrtf((float)e);
    for (int64_t first = 0; first < c; first += BLOCK) {
        int64_t seen = first + BLOCK;
        product(target_of(scores, c, SET), rows_of(q + first * stride, stride), keys, BLOCK, e,
                seen, e);
        product(target_of(dweights, c, SET), rows_of(dmixed + first * w->width, w->width), values,
                BLOCK, e, seen, e);
        for (int64_t i = 0; i < BLOCK; i++) {
            int64_t query = first + i;
            vector dot = repeat(0);
            for (int64_t j = 0; j < e; j += LANES)
                dot += load(mixed + query * w->width + j) * load(dmixed + query * w->width + j);
            float delta = sum_of(dot);
            float limit = l->log_sums[(sequence * w->s.heads + head) * c + query];
            for (int64_t t = 0; t < seen; t += LANES) {
                vector x = load_f32(scores + i * c + t) * factor - limit;
                vector p = seen_by(query, t, exponential(x), 0);
                vector g = load_f32(dweights + i * c + t) - delta;
                store(weights + query * c + t, p);
                store(dscores + query * c + t, p * g * factor);
            }
        }
        product(target_of(part, e, SET), rows_of(dscores + first * c, c), keys_back, BLOCK, seen, e,
                c);
        turn_back(w, dq, stride, part, first, 1);
    }
    tile_transpose(queries, rows_of(q, stride), c, e);
    tile_transpose(outputs, rows_of(dmixed, w->width), c, e);
    for (int64_t key = 0; key < c; key += BLOCK) {
        int64_t rest = c - key;
        pack(panel, rows_of(weights + key * c + key, c), rest, BLOCK);
        product(target_of(turned, BLOCK, SET), part_of(tiles_of(outputs, c), 0, key), panel, e,
                rest, BLOCK, rest);
        turn(part, e, turned, BLOCK, e, BLOCK, 0);
        turn_back(w, dv, stride, part, key, 0);
        pack(panel, rows_of(dscores + key * c + key, c), rest, BLOCK);
        product(target_of(turned, BLOCK, SET), part_of(tiles_of(queries, c), 0, key), panel, e,
                rest, BLOCK, rest);
        turn(part, e, turned, BLOCK, e, BLOCK, 0);
        turn_back(w, dk, stride, part, key, 1);
    }
}

#endif
