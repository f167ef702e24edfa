/* internal.h: what the library's files share and its users do not see. */

#ifndef STORYLLAMAS_INTERNAL_H
#define STORYLLAMAS_INTERNAL_H

#include <stdbool.h>

#include "kernels/kernels.h"
#include "pace.h"
#include "storyllamas.h"
#include "threads.h"
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

typedef struct sl_move sl_move;

struct sl_model {
    sl_info info;
    sl_tokenizer tokenizer;
    const sl_kernels *kernels;
    void *file; /* [file_bytes], see sl_pages_open */
    size_t file_bytes;
    sl_move *move; /* of the file; NULL: none */
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

/* ---- matrix.c -------------------------------------------------------------------------------- */

/* Bytes from one tile to the next. */
size_t sl_tile_bytes(const sl_matrix *matrix);

/* Write row `row` to x[columns]. */
void sl_read_row(const sl_matrix *matrix, size_t row, float *x);

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

/* Scratch of the sampler. */
typedef struct {
    sl_candidate *candidates; /* [vocab_size] */
    int32_t *indices;         /* [vocab_size + 16] */
    uint8_t *marks;           /* [vocab_size], zero between calls */
} sl_sampler;

/* Pick a token from finite logits[count], which it changes. recent[recent_count] are the story's
 * tokens. */
int32_t sl_sample(const sl_kernels *kernels, const sl_options *options, sl_random *random,
                  float *logits, size_t count, const int32_t *recent, size_t recent_count,
                  const sl_sampler *sampler);

/* ---- Sessions: session.c, attention.c, transformer.c, story.c -------------------------------- */

/* A sequence of tokens, its key-value cache and how it is told. */
typedef struct {
    /* The cache: of each layer the keys and values of all heads, see attention.c. */
    uint8_t *keys;
    uint8_t *values;
    size_t position; /* tokens in the cache */

    /* The story, see story.c. */
    sl_options options;
    sl_random random;
    sl_decoder decoder;
    int32_t *ids; /* [context]; those from `position` on have not been through the model */
    size_t id_count;
    size_t prompt_count;
    int32_t stop;
    int32_t chosen; /* the token that is being told */
    bool is_started;
    bool ends_now; /* if it has stopped, then in this step */
    float *logits; /* of the token after the last id; NULL: not known yet */
    sl_sampler sampler;
    char *text; /* [sl_decoder_bound] */
} sl_story;

/* Scratch of one thread in attention. */
typedef struct {
    float *scores;     /* [SL_QUERIES][context in whole tiles] */
    float *output;     /* [SL_QUERIES][head_dim in whole tiles] */
    uint16_t *rounded; /* [head_dim]: a key */
} sl_attention;

enum {
    SL_CHUNK = 128, /* most tokens that go through the model at once, if there are fewer stories */
    SL_QUERIES = 8, /* most tokens whose queries are answered together */
};

struct sl_session {
    const sl_model *model;
    sl_team *team;   /* NULL: one thread */
    sl_pace pace[2]; /* of passes of one token, of several */
    size_t threads;
    size_t rows;  /* most tokens that go through the model at once */
    void *memory; /* every array below */
    size_t memory_bytes;

    sl_story *stories; /* [story_count] */
    size_t story_count;

    /* Scratch, for `rows` tokens. Results of matrices have their rows padded to whole tiles. */
    float *x;                 /* [dim] the residual stream */
    float *input;             /* [widest input of a matrix] */
    float *qkv;               /* [rows of qkv] */
    float *gate_up;           /* [rows of gate_up] */
    float *output;            /* [dim] what a layer adds to the residual stream */
    float *logits;            /* [vocab_size] */
    int8_t *quantized_values; /* [widest input of a matrix, in whole groups] */
    float *quantized_scales;  /* [groups of that] */
    int32_t *quantized_sums;
    sl_attention *attention; /* [threads] */
};

/* Tokens of a story that go through the model together. */
typedef struct {
    sl_story *story;
    const int32_t *ids; /* [count], in range; they come after the tokens in the story's cache */
    size_t count;
    size_t wanted; /* of the last so many the logits are wanted */
} sl_run;

/* Put the runs, each of another story and within the context, through the model: at most
 * session->rows tokens. session->logits then holds the wanted logits, in the order of the runs. */
void sl_forward(sl_session *session, const sl_run *runs, size_t count);

/* Floats between two rows of session->logits. */
size_t sl_logits_stride(const sl_model *model);

/* Whether the cache is f16 rather than f32: that of quantized models. */
bool sl_cache_is_compact(const sl_model *model);

/* Bytes of a story's keys, and of its values. */
size_t sl_keys_bytes(const sl_model *model);
size_t sl_values_bytes(const sl_model *model);

/* Load what the key-value heads first … end - 1 have in a story's cache, line by line: memory is
 * fastest where a lot is asked for in a row, before any of it is worked on. */
void sl_bring_near(const sl_model *model, const sl_story *story, size_t layer, size_t first,
                   size_t end);

/* Causal grouped-query attention of one run and key-value head: its keys and values join the cache
 * and output[count][heads * head_dim] gets the results of the query heads that share it.
 * qkv[count][qkv_stride] holds queries, keys and values before rotation. */
void sl_attend(const sl_model *model, const sl_run *run, size_t layer, size_t kv_head, float *qkv,
               size_t qkv_stride, float *output, const sl_attention *scratch);

/* Forget a story. */
void sl_rewind(sl_story *story);

int sl_check_ids(const sl_model *model, const int32_t *ids, size_t count);

/* Refuse logits that are not finite. */
int sl_check_finite(const float *x, size_t count);

/* ---- checksum.c ------------------------------------------------------------------------------ */

enum { SL_CHECKSUM_LANES = 8 };

/* Of data in whole blocks of 64 bytes; zero it is that of nothing. */
typedef struct {
    uint64_t a[SL_CHECKSUM_LANES], b[SL_CHECKSUM_LANES];
} sl_checksum;

/* Go on with more data; what is no whole block at its end is left out. */
void sl_checksum_add(sl_checksum *sum, const void *data, size_t bytes);

/* Go on with data of which there is a checksum. */
void sl_checksum_join(sl_checksum *sum, const sl_checksum *next, size_t bytes);

/* As if word `word`, of 64 bits, of the data of `bytes` were not `value` but 0. */
void sl_checksum_take_off(sl_checksum *sum, size_t word, uint64_t value, size_t bytes);

uint64_t sl_checksum_digest(const sl_checksum *sum);

/* ---- pages.c --------------------------------------------------------------------------------- */

/* Zeroed memory at a page's start, which takes up space once it is used; on huge pages where `huge`
 * and the system has them. NULL: there is not enough. */
void *sl_pages_new(size_t bytes, bool huge);

/* bytes as above; also of NULL. */
void sl_pages_free(void *pages, size_t bytes);

/* A whole file in memory, copied onto huge pages for SL_PAGES_HUGE and mapped for other kinds, and
 * the checksum of it. What becomes *pages, also after an error, goes back with sl_pages_free. */
int sl_pages_open(const char *path, int32_t kind, void **pages, size_t *bytes, sl_checksum *sum);

/* ---- move.c ---------------------------------------------------------------------------------- */

/* Ready to move a file, mapped by sl_pages_open, onto huge pages at the same addresses, beside
 * whoever reads it; NULL: it stays where it is. */
sl_move *sl_move_new(void *pages, size_t bytes);

/* A pass through the model begins: the move begins with the fourth, so that the first token, and
 * who waits for it, have the machine to themselves. Also of NULL. */
void sl_move_pass(sl_move *move);

/* Whether a processor is at work on it; also of NULL. */
bool sl_move_is_under_way(const sl_move *move);

/* Give it up unless it is over; before sl_pages_free, and also of NULL. */
void sl_move_end(sl_move *move);

#endif
