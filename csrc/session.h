/* session.h: a session, its sequences and its scratch memory. */

#ifndef STORYLLAMAS_SESSION_H
#define STORYLLAMAS_SESSION_H

#include "attention.h"
#include "autotune.h"
#include "logprobs.h"
#include "sampler.h"
#include "scratch.h"
#include "thread_pool.h"

/* A sequence of tokens, with its key-value cache and the state of sampling and decoding. */
typedef struct {
    sl_kv_cache cache;
    sl_options options;
    sl_random random;
    sl_sampler sampler;
    sl_decoder decoder;
    sl_logprobs logprobs;
    int32_t *ids; /* [context]; the model has processed those before cache.position */
    size_t id_count;
    size_t prompt_count;
    float *logits;      /* after the last id; NULL: not computed yet */
    size_t draft_count; /* drafted ids after the last id, with logits after each, in turn */
    size_t drafted;     /* since the sequence was started */
    size_t accepted;    /* of them */
    float *unsampled;   /* [vocab_size] a copy of them, if options.logprobs is set */
    int32_t next_id;    /* the token that was sampled from them */
    int32_t stop;       /* SL_RUNNING or why the sequence ended */
    bool is_started;
    bool was_running; /* before the current step */
    char *text;       /* [sl_decoder_bound] */
} sl_sequence;

enum {
    SL_DEFAULT_CHUNK = 128, /* the automatic value of sl_session_options.chunk */
    SL_PASS_KINDS = SL_MAX_THREADS == 1 ? 1 : 7,
};

struct sl_session {
    const sl_model *model;
    sl_thread_pool *pool;                /* NULL: one thread; see sl_session_pool */
    sl_autotune autotune[SL_PASS_KINDS]; /* of passes of 1, 2 to 3, 4 to 7, … tokens */
    size_t threads;
    size_t rows;         /* the largest number of tokens of a forward pass */
    uint32_t context;    /* the largest number of positions of a sequence */
    uint32_t cache_type; /* of every sequence: SL_CACHE_F32, SL_CACHE_F16 or SL_CACHE_Q8 */
    size_t memory_bytes; /* of the block that begins here and holds every array below */
    bool owns_memory;    /* the block is not the caller's */
    sl_scratch scratch;  /* for encoding a prompt: the arrays that only a forward pass uses */

    sl_sequence *sequences; /* [slot_count]: one in each slot */
    size_t slot_count;
    bool is_in_step; /* stays set in a child that was forked while another thread ran a step */

    sl_session *draft; /* of a model that drafts tokens for slot 0; NULL: none */
    size_t draft_tokens;

    /* Scratch memory, each array with `rows` rows. Products are padded to whole tiles. */
    float *x;                 /* [dim] the residual stream */
    float *input;             /* [widest input of a matrix] */
    float *qkv;               /* [rows of qkv] */
    float *gate_up;           /* [rows of gate_up] */
    float *output;            /* [dim] the output of attention or feed-forward, added to x */
    float *logits;            /* [vocab_size] */
    int8_t *quantized_values; /* [widest input of a matrix, in whole groups] */
    float *quantized_scales;  /* [groups of that] */
    int32_t *quantized_sums;  /* [groups of that] */

    sl_attention_scratch *attention; /* [threads] */

    float *rotary;       /* [context][head_dim], see sl_fill_rotary */
    size_t rotary_count; /* its rows that are filled: those of the positions reached so far */
};

/* Return the thread pool, NULL for one thread. In the child of a fork this makes a new pool. Call
 * it once for each use of the session, not for each loop. */
sl_thread_pool *sl_session_pool(sl_session *session);

/* Discard the sequence in a slot; the slot becomes idle. */
void sl_sequence_reset(sl_sequence *sequence);

/* Return how many of ids[count] the cache of a sequence already begins with. The last id does not
 * count: it has to go through the model for its logits. */
size_t sl_count_cached(const sl_sequence *sequence, const int32_t *ids, size_t count);

/* Return the number of floats between two rows of session->logits. */
size_t sl_logits_stride(const sl_model *model);

#endif
