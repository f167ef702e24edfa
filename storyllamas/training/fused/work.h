/* work.h: what a step keeps in memory.
 *
 * T: tokens in a group of sequences, D: dim, H: heads, E: head_dim, F: hidden, V: vocab_size,
 * C: context. */

#ifndef FUSED_WORK_H
#define FUSED_WORK_H

#include <stddef.h>

#include "product.h"

enum { GROUP_TOKENS = 2048, NUMBER_BYTES = sizeof(number) };

typedef struct {
    int64_t dim, layers, heads, head_dim, hidden, context, vocab, ignored;
    float norm_eps, dropout;
} shape;

typedef struct {
    number *plain, *transposed; /* a weight, packed for the way back and for the way forward */
} packed;

typedef struct {
    float *input, *middle;     /* residual stream before each norm [T, D] */
    float *scale1, *scale2;    /* 1 / root mean square [T] */
    float *log_sums;           /* of each query's exponentials [T, H] */
    number *normed1, *normed2; /* [T, D] */
    number *qkv;               /* turned by their positions [T, 3, H, E] */
    number *mixed;             /* [T, H, E] */
    number *gate_up, *active;  /* [T, 2, F], [T, F] */
    packed qkv_w, output_w, gate_up_w, down_w;
} layer;

typedef struct {
    char *next; /* NULL while bytes are counted */
    size_t bytes;
} arena;

static void *take(arena *from, int64_t bytes) {
    void *at = from->next ? from->next + from->bytes : NULL;
    from->bytes += ((size_t)bytes + 4095) / 4096 * 4096 + 256;
    return at;
}

static packed take_packed(arena *from, int64_t size) {
    packed both;
    both.plain = take(from, NUMBER_BYTES * size);
    both.transposed = take(from, NUMBER_BYTES * size);
    return both;
}

enum { MAX_LAYERS = 64, MAX_THREADS = 256 };
enum { PANEL = 512 / sizeof(number) }; /* columns of a weight's gradient that a task computes */

typedef struct {
    shape s;
    int64_t tokens, chunk, width; /* of a group, of a task, H * E */
    uint32_t seed;
    const float *const *weights;
    float *const *gradients;
    const float *rotary;
    int adds; /* whether gradients are added to */
    layer layers[MAX_LAYERS];
    packed embedding;
    float *x, *scale; /* the last residual stream and its norm */
    number *normed;
    float *dx;          /* gradient of the residual stream */
    number *dx_rounded; /* the same, of a branch */
    number *logits;     /* then their gradient [T, V] */
    number *dqkv, *dmixed, *dgate_up;
    number *turned; /* left matrix of a weight's gradient */
    float *losses;
    float *norm_sums;         /* gradients of a norm's weights, by task [T / chunk, D] */
    float *wide[MAX_THREADS]; /* scratch of a thread */
    number *narrow[MAX_THREADS];
} work;

static void lay_out(work *w, arena *from, int threads) {
    shape s = w->s;
    int64_t t = w->tokens, d = s.dim, f = s.hidden, e = s.head_dim, c = s.context;
    for (int64_t i = 0; i < s.layers; i++) {
        layer *l = &w->layers[i];
        l->input = take(from, 4 * t * d);
        l->middle = take(from, 4 * t * d);
        l->scale1 = take(from, 4 * t);
        l->scale2 = take(from, 4 * t);
        l->log_sums = take(from, 4 * t * s.heads);
        l->normed1 = take(from, NUMBER_BYTES * t * d);
        l->normed2 = take(from, NUMBER_BYTES * t * d);
        l->qkv = take(from, NUMBER_BYTES * t * 3 * w->width);
        l->mixed = take(from, NUMBER_BYTES * t * w->width);
        l->gate_up = take(from, NUMBER_BYTES * t * 2 * f);
        l->active = take(from, NUMBER_BYTES * t * f);
        l->qkv_w = take_packed(from, 3 * w->width * d);
        l->output_w = take_packed(from, w->width * d);
        l->gate_up_w = take_packed(from, 2 * f * d);
        l->down_w = take_packed(from, f * d);
    }
    w->embedding = take_packed(from, s.vocab * d);
    w->x = take(from, 4 * t * d);
    w->scale = take(from, 4 * t);
    w->normed = take(from, NUMBER_BYTES * t * d);
    w->dx = take(from, 4 * t * d);
    w->dx_rounded = take(from, NUMBER_BYTES * t * d);
    w->logits = take(from, NUMBER_BYTES * t * s.vocab);
    w->dqkv = take(from, NUMBER_BYTES * t * 3 * w->width);
    w->dmixed = take(from, NUMBER_BYTES * t * w->width);
    w->dgate_up = take(from, NUMBER_BYTES * t * 2 * f);
    w->turned = take(from, NUMBER_BYTES * t * larger(d, w->width));
    w->losses = take(from, 4 * t);
    w->norm_sums = take(from, 4 * (t / w->chunk + 1) * d);
    for (int i = 0; i < threads; i++) {
        int64_t rows = larger(w->chunk * d, PANEL * larger(d, w->width));
        w->wide[i] = take(from, 4 * larger(larger(rows, s.vocab), BLOCK * c * 2 + BLOCK * e * 2));
        int64_t attention = 2 * c * c + 8 * c * e + 2 * BLOCK * c;
        w->narrow[i] = take(
            from, NUMBER_BYTES * larger(larger(w->chunk * larger(d, f), PANEL * t), attention));
    }
}

#endif
