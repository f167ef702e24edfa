/* sampler.h: picks the next token. */

#ifndef STORYLLAMAS_SAMPLER_H
#define STORYLLAMAS_SAMPLER_H

#include "kernels/kernels.h"
#include "storyllamas.h"

/* The state of a random number generator. */
typedef struct {
    uint64_t state[4];
} sl_random;

void sl_random_seed(sl_random *random, uint64_t seed);

typedef struct {
    float weight; /* the probability divided by that of the most probable token */
    int32_t id;
} sl_candidate;

/* Scratch memory of the sampler. */
typedef struct {
    sl_candidate *candidates; /* [vocab_size] */
    int32_t *indices;         /* [vocab_size + 16], as the kernel `select` needs */
    uint8_t *marks;           /* [vocab_size], zero between calls */
} sl_sampler;

/* Check that every option is in its range; if one is not, return SL_ERROR_ARGUMENT. */
int sl_check_options(const sl_options *options);

/* Pick a token from logits[count], which are finite and which the call overwrites.
 * recent[recent_count] are the tokens of the sequence so far. */
int32_t sl_sample(const sl_kernels *kernels, const sl_options *options, sl_random *random,
                  float *logits, size_t count, const int32_t *recent, size_t recent_count,
                  const sl_sampler *sampler);

#endif
