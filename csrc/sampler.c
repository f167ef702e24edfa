/* sampler.c: picks the next token. sl_options in storyllamas.h defines each step. */

#include "sampler.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>

#include "error.h"

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

/* Return a uniform number, at least 0 and below 1. */
static double random_fraction(sl_random *random) {
    return (double)(next_random(random) >> 11) * 0x1p-53;
}

/* ---- Options --------------------------------------------------------------------------------- */

static int reject_real(const char *name, double value, const char *range) {
    return sl_fail(SL_ERROR_ARGUMENT, "%s is %g and must be %s", name, value, range);
}

static int reject_integer(const char *name, int32_t value, const char *range) {
    return sl_fail(SL_ERROR_ARGUMENT, "%s is %" PRId32 " and must be %s", name, value, range);
}

/* Each condition is negated, so that NaN is rejected: every comparison with NaN is false. */
int sl_check_options(const sl_options *o) {
    if (!(o->temperature >= 0 && o->temperature <= 1000))
        return reject_real("temperature", o->temperature, "0 (greedy) to 1000");
    if (o->top_k < 0) return reject_integer("top_k", o->top_k, "0 (off) or more");
    if (!(o->top_p > 0 && o->top_p <= 1))
        return reject_real("top_p", o->top_p, "above 0 and at most 1 (off)");
    if (!(o->min_p >= 0 && o->min_p < 1))
        return reject_real("min_p", o->min_p, "at least 0 (off) and below 1");
    if (!(o->repetition_penalty > 0 && o->repetition_penalty <= 1000))
        return reject_real("repetition_penalty", o->repetition_penalty,
                           "above 0 and at most 1000; 1 is off");
    if (o->repetition_window < 0)
        return reject_integer("repetition_window", o->repetition_window, "0 or more");
    if (o->max_tokens < 1) return reject_integer("max_tokens", o->max_tokens, "1 or more");
    if (o->logprobs < 0 || o->logprobs > SL_MAX_LOGPROBS)
        return reject_integer("logprobs", o->logprobs, "0 (off) to 20");
    return SL_OK;
}

/* ---- Sampling -------------------------------------------------------------------------------- */

/* Apply the penalty to a logit. The result stays finite, as the next steps need. */
static float penalized(float logit, float penalty) {
    const float changed = logit > 0 ? logit / penalty : logit * penalty;
    return fmaxf(fminf(changed, FLT_MAX), -FLT_MAX);
}

/* Apply the penalty once to each token that occurs in recent[count]. */
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

static bool comes_first(const sl_candidate *a, const sl_candidate *b) {
    return a->weight > b->weight || (a->weight == b->weight && a->id < b->id);
}

static void swap(sl_candidate *a, sl_candidate *b) {
    const sl_candidate first = *a;
    *a = *b;
    *b = first;
}

/* Partition candidates[count] around the middle one: move those that come before it to the front,
 * and it behind them. Returns its new index and sets *weight to the total weight before it. */
static size_t partition(sl_candidate *candidates, size_t count, double *weight) {
    sl_candidate *last = &candidates[count - 1];
    size_t before = 0;
    *weight = 0;
    swap(&candidates[count / 2], last);
    for (size_t i = 0; i + 1 < count; i++)
        if (comes_first(&candidates[i], last)) {
            *weight += (double)candidates[i].weight;
            swap(&candidates[i], &candidates[before++]);
        }
    swap(&candidates[before], last);
    return before;
}

/* Move the most probable candidates to the front: the fewest that together have the weight
 * `target`, but at least one and at most `max`. Returns their number; the least probable of them is
 * the last. This is quickselect (Hoare 1961) by weight. */
static size_t take_candidates(sl_candidate *candidates, size_t count, size_t max, double target) {
    size_t first = 0, end = count;
    while (end - first > 1) {
        double weight;
        const size_t middle = first + partition(candidates + first, end - first, &weight);
        const double rest = target - weight - (double)candidates[middle].weight;
        if (middle > first && (weight >= target || middle >= max)) {
            end = middle;
        } else if (rest <= 0 || middle + 1 >= max) {
            return middle + 1;
        } else {
            first = middle + 1;
            target = rest;
        }
    }
    return end;
}

static double weight_of(const sl_candidate *candidates, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)candidates[i].weight;
    return sum;
}

/* Make candidates of the tokens whose weight is at least `floor`, sorted by id. Returns their
 * number. */
static size_t gather(const sl_kernels *kernels, const float *weights, size_t count, float floor,
                     const sl_sampler *sampler) {
    const size_t kept = kernels->select(sampler->indices, weights, count, floor);
    for (size_t i = 0; i < kept; i++) {
        const int32_t id = sampler->indices[i];
        sampler->candidates[i] = (sl_candidate){weights[id], id};
    }
    return kept;
}

/* Return the largest float that is not above x. */
static float round_down(double x) {
    const float nearest = (float)x;
    return (double)nearest > x ? nextafterf(nearest, 0) : nearest;
}

/* Move the candidates whose weight is at least `floor` to the front. Returns their number. */
static size_t keep_above(sl_candidate *candidates, size_t count, double floor) {
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if ((double)candidates[i].weight >= floor) swap(&candidates[i], &candidates[kept++]);
    return kept;
}

/* Apply steps 3 to 5 of sl_options to tokens with weights[count], whose sum is `total` and whose
 * largest is 1. Returns the number of candidates that remain, in no order. */
static size_t filter(const sl_kernels *kernels, const sl_options *options, const float *weights,
                     size_t count, double total, const sl_sampler *sampler) {
    const double top_p = (double)options->top_p, min_p = (double)options->min_p;
    double floor = options->top_k ? 0 : min_p, target = top_p * total;
    /* Without top_k, tokens of too low a weight need not become candidates. */
    if (!options->top_k && top_p < 1) {
        /* All tokens below this weight together have less than 1 - top_p of the total. */
        const double negligible = (1 - top_p) * total / (double)count;
        if (negligible > floor) floor = negligible;
    }
    sl_candidate *candidates = sampler->candidates;
    size_t kept = gather(kernels, weights, count, round_down(floor), sampler);
    if (options->top_k) { /* 3. top_k */
        kept = take_candidates(candidates, kept, (size_t)options->top_k, INFINITY);
        target = top_p * weight_of(candidates, kept);
    }
    if (top_p < 1) kept = take_candidates(candidates, kept, kept, target); /* 4. top_p */
    /* 5. min_p */
    return min_p > 0 ? keep_above(candidates, kept, min_p) : kept;
}

/* Return the first candidate, from the most probable on, at which the running sum of the weights
 * exceeds this fraction of their total. */
static int32_t draw_ranked(sl_candidate *candidates, size_t count, double fraction) {
    const double threshold = fraction * weight_of(candidates, count);
    const size_t taken = take_candidates(candidates, count, count, nextafter(threshold, INFINITY));
    return candidates[taken - 1].id;
}

/* The same for all tokens, in the order of their ids. */
static int32_t draw(const float *weights, size_t count, double fraction) {
    double total = 0, sum = 0;
    for (size_t i = 0; i < count; i++) total += (double)weights[i];
    const double threshold = fraction * total;
    for (size_t i = 0; i < count; i++) {
        sum += (double)weights[i];
        if (sum > threshold) return (int32_t)i;
    }
    return (int32_t)count - 1; /* rounding can leave the threshold above the sum */
}

int32_t sl_sample(const sl_kernels *kernels, const sl_options *options, sl_random *random,
                  float *logits, size_t count, const int32_t *recent, size_t recent_count,
                  const sl_sampler *sampler) {
    const size_t window = (size_t)options->repetition_window;
    const size_t seen = window < recent_count ? window : recent_count;
    if (options->repetition_penalty != 1) /* 1. repetition_penalty */
        penalize(options, logits, recent + recent_count - seen, seen, sampler->marks);
    const size_t best = kernels->argmax(logits, count);
    if (options->temperature == 0) return (int32_t)best; /* 2. temperature: greedy, or softmax */
    const float scale = fminf(1.0f / options->temperature, FLT_MAX);
    const float total = kernels->exponentials(logits, logits, count, logits[best], scale);
    const double fraction = random_fraction(random);
    const bool is_filtered = options->top_k || options->top_p < 1 || options->min_p > 0;
    if (!is_filtered) return draw(logits, count, fraction);
    /* 3. top_k, 4. top_p, 5. min_p, then the draw. */
    const size_t kept = filter(kernels, options, logits, count, (double)total, sampler);
    return draw_ranked(sampler->candidates, kept, fraction);
}
