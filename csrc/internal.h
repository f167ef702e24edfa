/* internal.h: what the library's files share and its users do not see. */

#ifndef STORYLLAMAS_INTERNAL_H
#define STORYLLAMAS_INTERNAL_H

#include <stdbool.h>

#include "kernels/kernels.h"
#include "storyllamas.h"
#include "tokenizer/tokenizer.h"

/* ---- error.c --------------------------------------------------------------------------------- */

/* Set the thread's error sentence and return the code. */
int sl_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- model_file.c ---------------------------------------------------------------------------- */

typedef struct {
    const void *tiles;
    uint32_t rows;
    uint32_t columns;
    uint32_t type;       /* SL_F32, SL_Q8 or SL_Q4 */
    uint32_t group_size; /* columns that share a scale; 0 for SL_F32 */
} sl_matrix;

typedef struct {
    const float *attention_norm;
    sl_matrix qkv;
    sl_matrix output;
    const float *feed_forward_norm;
    sl_matrix gate_up;
    sl_matrix down;
} sl_layer;

struct sl_model {
    sl_info info;
    sl_tokenizer tokenizer;
    const sl_kernels *kernels;
    void *file; /* the mapping, file_bytes long */
    size_t file_bytes;
    sl_matrix embedding;
    sl_layer *layers;
    const float *norm;
    sl_matrix classifier;
    float *rotary; /* [context][head_dim / 2] of cosine and sine */
};

/* Groups of a row of a quantized matrix. */
static inline size_t sl_groups(const sl_matrix *matrix) {
    return ((size_t)matrix->columns + matrix->group_size - 1) / matrix->group_size;
}

/* Rows of a result: whole tiles. */
static inline size_t sl_padded_rows(size_t rows) {
    return (rows + SL_TILE_ROWS - 1) / SL_TILE_ROWS * SL_TILE_ROWS;
}

/* ---- sampler.c ------------------------------------------------------------------------------- */

typedef struct {
    uint64_t state[4];
} sl_random;

void sl_random_seed(sl_random *random, uint64_t seed);

typedef struct {
    float weight; /* probability over that of the most probable token */
    int32_t id;
} sl_candidate;

/* Refuse options out of their range. */
int sl_check_options(const sl_options *options);

/* Pick a token from finite logits[count], which it may change. recent[recent_count] are the story's
 * tokens, candidates[count] is scratch and marks[count] is scratch that starts and ends zero. */
int32_t sl_sample(const sl_options *options, sl_random *random, float *logits, size_t count,
                  const int32_t *recent, size_t recent_count, sl_candidate *candidates,
                  uint8_t *marks);

/* ---- transformer.c --------------------------------------------------------------------------- */

enum { SL_CHUNK = 32 }; /* most tokens that go through the model at once */

struct sl_session {
    const sl_model *model;
    void *memory;    /* every array below */
    size_t position; /* tokens in the cache */

    /* The cache, for each layer and key or value head. */
    float *keys;   /* f32 tiles, a row for each position */
    float *values; /* [context][head_dim] */

    /* Scratch for SL_CHUNK tokens. Results of matrices have their rows padded to whole tiles. */
    float *x;                 /* [dim] the residual stream */
    float *input;             /* [widest input of a matrix] */
    float *qkv;               /* [rows of qkv] */
    float *gate_up;           /* [rows of gate_up] */
    float *output;            /* [dim] what a layer adds to the residual stream */
    float *logits;            /* [vocab_size] */
    int8_t *quantized_values; /* [widest input of a matrix, in whole groups] */
    float *quantized_scales;  /* [groups of that] */
    int32_t *quantized_sums;
    float *scores; /* [context] the attention of one head, for one token */

    /* The story being told, see engine.c. */
    sl_options options;
    sl_random random;
    sl_decoder decoder;
    int32_t *ids; /* [context] */
    size_t id_count;
    size_t prompt_count;
    int32_t stop;
    bool is_started;
    bool has_logits;          /* of the token after ids[id_count - 1] */
    sl_candidate *candidates; /* [vocab_size] */
    uint8_t *marks;           /* [vocab_size] */
    char *text;               /* [sl_decoder_bound] */
};

/* Put ids[n] through the model after the tokens in the cache, n at most SL_CHUNK, within the
 * context. session->logits then holds the logits after each of the last `wanted` tokens. The ids
 * are in range. */
void sl_forward(sl_session *session, const int32_t *ids, size_t n, size_t wanted);

/* Floats between two rows of session->logits. */
size_t sl_logits_stride(const sl_model *model);

#endif
