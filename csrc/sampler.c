/* sampler.c: pick the next token. What each step means is written at sl_options. */

#include <float.h>
#include <inttypes.h>
#include <math.h>

#include "internal.h"

/* ---- Random numbers -------------------------------------------------------------------------- */

static uint64_t rotate_left(uint64_t x, int bits) {
    return x << bits | x >> (64 - bits);
}

/* xoshiro256** 1.0, by David Blackman and Sebastiano Vigna. */
static uint64_t next_random(sl_random *random) {
    uint64_t *s = random->state;
    const uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    const uint64_t shifted = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= shifted;
    s[3] = rotate_left(s[3], 45);
    return result;
}

/* splitmix64, by Sebastiano Vigna. */
void sl_random_seed(sl_random *random, uint64_t seed) {
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);
        z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
        random->state[i] = z ^ z >> 31;
    }
}

/* Uniform in 0 up to below 1. */
static double random_share(sl_random *random) {
    return (double)(next_random(random) >> 11) * 0x1p-53;
}

/* ---- Options --------------------------------------------------------------------------------- */

static int refuse_real(const char *name, double value, const char *range) {
    return sl_fail(SL_ERROR_ARGUMENT, "%s is %g and must be %s", name, value, range);
}

static int refuse_integer(const char *name, int32_t value, const char *range) {
    return sl_fail(SL_ERROR_ARGUMENT, "%s is %" PRId32 " and must be %s", name, value, range);
}

/* Comparisons are false for NaN, so each says what is allowed. */
int sl_check_options(const sl_options *o) {
    if (!(o->temperature >= 0 && o->temperature <= 1000))
        return refuse_real("temperature", o->temperature, "0 (greedy) to 1000");
    if (o->top_k < 0) return refuse_integer("top_k", o->top_k, "0 (off) or more");
    if (!(o->top_p > 0 && o->top_p <= 1))
        return refuse_real("top_p", o->top_p, "above 0 and at most 1 (off)");
    if (!(o->min_p >= 0 && o->min_p < 1))
        return refuse_real("min_p", o->min_p, "at least 0 (off) and below 1");
    if (!(o->repetition_penalty > 0 && o->repetition_penalty <= 1000))
        return refuse_real("repetition_penalty", o->repetition_penalty,
                           "above 0 and at most 1000; 1 is off");
    if (o->repetition_window < 0)
        return refuse_integer("repetition_window", o->repetition_window, "0 or more");
    if (o->tokens < 1) return refuse_integer("tokens", o->tokens, "1 or more");
    return SL_OK;
}

/* ---- Picking --------------------------------------------------------------------------------- */

/* Kept finite, which everything after it relies on. */
static float penalized(float logit, float penalty) {
    const float changed = logit > 0 ? logit / penalty : logit * penalty;
    return fmaxf(fminf(changed, FLT_MAX), -FLT_MAX);
}

static void penalize(const sl_options *options, float *logits, const int32_t *recent, size_t count,
                     uint8_t *marks) {
    for (size_t i = 0; i < count; i++) {
        float *logit = &logits[recent[i]];
        if (marks[recent[i]]) continue;
        marks[recent[i]] = 1;
        *logit = penalized(*logit, options->repetition_penalty);
    }
    for (size_t i = 0; i < count; i++) marks[recent[i]] = 0;
}

static size_t largest(const float *logits, size_t count) {
    size_t best = 0;
    for (size_t i = 1; i < count; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static bool comes_first(const sl_candidate *a, const sl_candidate *b) {
    return a->weight > b->weight || (a->weight == b->weight && a->id < b->id);
}

/* Let the candidate at the index sink to its place in the heap. */
static void sink(sl_candidate *heap, size_t count, size_t at) {
    const sl_candidate sinking = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && comes_first(&heap[child + 1], &heap[child])) child++;
        if (!comes_first(&heap[child], &sinking)) break;
        heap[at] = heap[child];
    }
    heap[at] = sinking;
}

/* Bring the most probable candidates to the end of the array, the very first last, until `most` of
 * them or the wanted weight is reached; returns how many. */
static size_t take(sl_candidate *candidates, size_t count, size_t most, double wanted) {
    double sum = 0;
    size_t taken = 0;
    for (size_t i = count / 2; i-- > 0;) sink(candidates, count, i);
    for (; taken < most && taken < count && sum < wanted; taken++) {
        const size_t last = count - taken - 1;
        const sl_candidate top = candidates[0];
        candidates[0] = candidates[last];
        sink(candidates, last, 0);
        candidates[last] = top;
        sum += (double)top.weight;
    }
    return taken;
}

/* Leave out the candidates below the floor; returns how many stay. */
static size_t drop_below(sl_candidate *candidates, size_t count, double floor) {
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if ((double)candidates[i].weight >= floor) candidates[kept++] = candidates[i];
    return kept;
}

/* A run of candidates in the order in which they are laid end to end. */
typedef struct {
    const sl_candidate *first;
    ptrdiff_t step;
    size_t count;
} run;

static const sl_candidate *run_at(const run *r, size_t i) {
    return r->first + (ptrdiff_t)i * r->step;
}

static double run_weight(const run *r) {
    double sum = 0;
    for (size_t i = 0; i < r->count; i++) sum += (double)run_at(r, i)->weight;
    return sum;
}

/* Shorten a run to the fewest that have the wanted weight, without any below the floor. */
static void cut(run *r, double wanted, double floor) {
    double sum = 0;
    size_t kept = 0;
    for (; kept < r->count && sum < wanted && (double)run_at(r, kept)->weight >= floor; kept++)
        sum += (double)run_at(r, kept)->weight;
    r->count = kept;
}

/* What the filters leave of the candidates, of which the most probable has weight 1. Only as many
 * as needed are sorted. */
static run filter(const sl_options *options, sl_candidate *candidates, size_t count) {
    const double top_p = (double)options->top_p, min_p = (double)options->min_p;
    const bool has_top_p = options->top_p < 1;
    run r = {candidates, 1, count};
    if (!options->top_k && !has_top_p && min_p == 0) return r;
    size_t most = count;
    double wanted = INFINITY, floor = min_p;
    if (options->top_k) {
        most = (size_t)options->top_k;
        if (has_top_p) floor = 0; /* top_p is a share of all that top_k leaves */
    } else if (has_top_p) {
        /* What is lighter than this cannot matter: all such together are lighter than 1 - top_p. */
        const double total = run_weight(&r), negligible = (1 - top_p) * total / (double)count;
        wanted = top_p * total;
        if (negligible > floor) floor = negligible;
    }
    count = drop_below(candidates, count, floor);
    r = (run){candidates + count - 1, -1, take(candidates, count, most, wanted)};
    if (options->top_k && has_top_p) wanted = top_p * run_weight(&r);
    cut(&r, wanted, min_p);
    return r;
}

static int32_t draw(const run *r, double share) {
    const double distance = share * run_weight(r);
    double end = 0;
    for (size_t i = 0; i < r->count; i++) {
        end += (double)run_at(r, i)->weight;
        if (distance < end) return run_at(r, i)->id;
    }
    return run_at(r, r->count - 1)->id; /* rounding put it past the end */
}

int32_t sl_sample(const sl_options *options, sl_random *random, float *logits, size_t count,
                  const int32_t *recent, size_t recent_count, sl_candidate *candidates,
                  uint8_t *marks) {
    const size_t window = (size_t)options->repetition_window;
    const size_t seen = window < recent_count ? window : recent_count;
    if (options->repetition_penalty != 1)
        penalize(options, logits, recent + recent_count - seen, seen, marks);
    const size_t best = largest(logits, count);
    if (options->temperature == 0) return (int32_t)best;
    for (size_t i = 0; i < count; i++) {
        const float distance = (logits[i] - logits[best]) / options->temperature;
        candidates[i] = (sl_candidate){expf(distance), (int32_t)i};
    }
    const run kept = filter(options, candidates, count);
    return draw(&kept, random_share(random));
}
