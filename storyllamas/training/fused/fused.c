/* fused.c: the loss of a Llama and its gradients, and a step of Muon: in bfloat16 with float32 sums
 * for processors with AVX-512 BF16, multiplied by AMX if there is AMX, or in float32 for those with
 * AVX2 or AVX-512. __init__.py describes the arguments. The headers hold the parts, the lowest
 * first: vectors, matrix, packing, multiply, product, threads, work, rows, attention, layers, muon.
 */

#include "layers.h"
#include "muon.h"

#ifdef USES_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* The targets of a step: for each token `each` ids, with shares whose sum is 1, or 0 if it is
   ignored; NULL: one id, which may be `ignored`. */
typedef struct {
    const int64_t *ids;
    const float *shares;
    int64_t each;
} targets;

static int is_ignored(const targets *of, int64_t token, int64_t ignored) {
    if (!of->shares) return of->ids[token] == ignored;
    for (int64_t i = 0; i < of->each; i++)
        if (of->shares[token * of->each + i] != 0.0f) return 0;
    return 1;
}

/* Return the loss of a row of logits, number `token` of the step, 0 if it is ignored; unless
   `share` is 0, turn the logits into their gradient. `powers` is scratch. */
static float cross_entropy(matrix logits, int64_t row, float *powers, int64_t vocab,
                           const targets *of, int64_t token, int64_t ignored, float share) {
    if (is_ignored(of, token, ignored)) {
        for (int64_t i = 0; i < vocab; i += LANES) store(place(logits, row, i), repeat(0));
        return 0.0f;
    }
    vector most = repeat(-INFINITY), total = repeat(0);
    for (int64_t i = 0; i < vocab; i += LANES)
        most = larger_lanes(most, load(place(logits, row, i)));
    float limit = largest_of(most);
    for (int64_t i = 0; i < vocab; i += LANES) {
        vector x = exponential(load(place(logits, row, i)) - limit);
        total += x;
        store_f32(powers + i, x);
    }
    float sum = sum_of(total), log_sum = limit + logf(sum);
    float loss = 0.0f;
    for (int64_t i = token * of->each; i < (token + 1) * of->each; i++) {
        float wanted = of->shares ? of->shares[i] : 1.0f;
        loss += wanted * (log_sum - to_float(*place(logits, row, of->ids[i])));
        powers[of->ids[i]] -= wanted * sum;
    }
    if (share <= 0.0f) return loss;
    for (int64_t i = 0; i < vocab; i += LANES)
        store(place(logits, row, i), load_f32(powers + i) * (share / sum));
    return loss;
}

/* Compute a group of sequences; the first is number `start` of the step. */
static void group(work *w, const int64_t *tokens, const targets *of, int64_t start, float share) {
    shape s = w->s;
    int64_t d = s.dim, c = s.context, last = 1 + s.layers * PER_LAYER;
    /* Without gradients, `fused_logits` returns them. */
    matrix logits = w->gradients ? tiles_of(w->logits, s.vocab) : rows_of(w->logits, s.vocab);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < w->tokens; i++) {
        const float *from = w->weights[0] + tokens[start * c + i] * d;
        float *to = w->layers[0].input + i * d;
        for (int64_t j = 0; j < d; j += LANES) {
            vector x = load_f32(from + j);
            if (s.dropout > 0) x *= mask(w, 0, i * d + j);
            store_f32(to + j, x);
        }
    }
    for (int64_t i = 0; i < s.layers; i++)
        layer_forward(w, i, w->weights + 1 + i * PER_LAYER,
                      i + 1 < s.layers ? w->layers[i + 1].input : w->x);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        int64_t rows = smaller(w->chunk, w->tokens - first);
        float *wide = w->wide[omp_get_thread_num()], *sums = w->norm_sums + first / w->chunk * d;
        memset(sums, 0, sizeof(float) * (size_t)d);
        for (int64_t i = first; i < first + rows; i++)
            normalize(w, w->normed + i * d, w->scale + i, w->x + i * d, w->weights[last]);
        product(rounded(part_of(logits, first, 0)), rows_of(w->normed + first * d, d),
                w->embedding.transposed, rows, d, s.vocab, d);
        for (int64_t i = first; i < first + rows; i++)
            w->losses[i] =
                cross_entropy(logits, i, wide, s.vocab, of, start * c + i, s.ignored, share);
        if (!w->gradients) continue;
        product(target_of(wide, d, SET), part_of(logits, first, 0), w->embedding.plain, rows,
                s.vocab, d, s.vocab);
        memset(w->dx + first * d, 0, sizeof(float) * (size_t)(rows * d));
        for (int64_t i = first; i < first + rows; i++)
            normalize_back(w, w->dx + i * d, sums, wide + (i - first) * d, w->x + i * d,
                           w->scale[i], w->weights[last]);
    }
    if (!w->gradients) return;
    finish_norm(w, w->gradients[last]);
    weight_gradient(w, w->gradients[0], logits, s.vocab, rows_of(w->normed, d), d);
    for (int64_t i = s.layers - 1; i >= 0; i--)
        layer_back(w, i, w->weights + 1 + i * PER_LAYER, w->gradients + 1 + i * PER_LAYER);
#pragma omp single
    for (int64_t i = 0; i < w->tokens; i++) {
        float *to = w->gradients[0] + tokens[start * c + i] * d;
        for (int64_t j = 0; j < d; j += LANES) {
            vector x = load_f32(w->dx + i * d + j);
            if (s.dropout > 0) x *= mask(w, 0, i * d + j);
            store_f32(to + j, load_f32(to + j) + x);
        }
    }
}

/* ---- What Python calls ----------------------------------------------------------------------- */

static void set_up(work *w, const shape *s, int64_t sequences) {
    memset(w, 0, sizeof *w);
    w->s = *s;
    w->width = s->heads * s->head_dim;
    w->tokens = smaller(sequences, larger(1, GROUP_TOKENS / s->context)) * s->context;
    w->chunk = smaller(w->tokens, s->dim <= 256 ? 128 : 256);
}

/* Return the bytes of memory that `fused_loss` needs; 0: this processor cannot run it. */
int64_t fused_bytes(const shape *s, int64_t sequences, int64_t threads) {
    work w;
    arena memory = {NULL, 4096};
#ifdef USES_AMX
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return 0;
#endif
    if (s->layers > MAX_LAYERS || threads > MAX_THREADS) return 0;
    set_up(&w, s, sequences);
    lay_out(&w, &memory, (int)threads);
    return (int64_t)memory.bytes;
}

/* Return the mean loss of the targets that are not ignored; set its gradients, unless they are
 * NULL. Tokens are [sequences, context]. */
double fused_loss(const shape *s, int64_t sequences, int64_t threads, const int64_t *tokens,
                  targets wanted, const float *rotary, const float *const *weights,
                  float *const *gradients, char *memory, uint32_t seed) {
    work w;
    arena from = {memory, 0};
    set_up(&w, s, sequences);
    w.weights = weights;
    w.gradients = gradients;
    w.rotary = rotary;
    w.seed = seed;
    lay_out(&w, &from, (int)threads);
    int64_t count = 0, step = w.tokens / s->context;
    for (int64_t i = 0; i < sequences * s->context; i++)
        count += !is_ignored(&wanted, i, s->ignored);
    float share = gradients ? 1.0f / (float)larger(count, 1) : 0.0f;
    double loss = 0;
#pragma omp parallel num_threads((int)threads)
    {
        uint8_t before[64] __attribute__((aligned(64)));
        save_configuration(before);
        configure(TILES);
        for (int64_t i = 0; i < s->layers; i++) {
            const float *const *of = weights + 1 + i * PER_LAYER;
            pack_all(w.layers[i].qkv_w, of[QKV], 3 * w.width, s->dim);
            pack_all(w.layers[i].output_w, of[OUTPUT], s->dim, w.width);
            pack_all(w.layers[i].gate_up_w, of[GATE_UP], 2 * s->hidden, s->dim);
            pack_all(w.layers[i].down_w, of[DOWN], s->dim, s->hidden);
        }
        pack_all(w.embedding, weights[0], s->vocab, s->dim);
        for (int64_t i = 0; i < sequences; i += step) {
#pragma omp single
            {
                w.tokens = smaller(step, sequences - i) * s->context;
                w.adds = i > 0;
                w.seed = seed + (uint32_t)i * 0x27d4eb2fu;
            }
            group(&w, tokens, &wanted, i, share);
#pragma omp single
            for (int64_t j = 0; j < w.tokens; j++) loss += w.losses[j];
        }
        configure(before);
    }
    return count ? loss / (double)count : NAN;
}

/* Return where `fused_loss` without gradients leaves the logits of its last group, the whole step
 * if it has at most GROUP_TOKENS: [tokens, vocab]. */
const number *fused_logits(const shape *s, int64_t sequences, int64_t threads, char *memory) {
    work w;
    arena from = {memory, 0};
    set_up(&w, s, sequences);
    lay_out(&w, &from, (int)threads);
    return w.logits;
}
