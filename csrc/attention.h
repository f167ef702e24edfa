/* attention.h: the key-value cache, rotary position embedding, and attention. */

#ifndef STORYLLAMAS_ATTENTION_H
#define STORYLLAMAS_ATTENTION_H

#include "model.h"

/* The keys and values of one sequence, of all layers and heads. */
typedef struct {
    uint8_t *keys;    /* [sl_keys_bytes] */
    uint8_t *values;  /* [sl_values_bytes] */
    size_t position;  /* tokens in the cache */
    uint32_t context; /* the largest number of them */
    uint32_t type;    /* SL_CACHE_F32, SL_CACHE_F16 or SL_CACHE_Q8 */
} sl_kv_cache;

/* Return the type of cache that a session with this option has: for SL_CACHE_AUTO the one that
 * suits the model, otherwise the option itself. */
uint32_t sl_cache_type(const sl_model *model, uint32_t option);

/* Return the bytes of a cache's keys, and of its values; SL_TOO_LARGE if they do not fit size_t.
 * Only the type and the context of the cache matter. */
size_t sl_keys_bytes(const sl_model *model, const sl_kv_cache *cache);
size_t sl_values_bytes(const sl_model *model, const sl_kv_cache *cache);

/* Prefetch the filled part of a layer's cache, for key-value heads first … end - 1. Memory is
 * fastest if many cache lines are requested in a row before any is used. */
void sl_prefetch_cache(const sl_model *model, const sl_kv_cache *cache, size_t layer, size_t first,
                       size_t end);

/* Compute rows first … end - 1 of the rotary table[context][head_dim]: pairs of cosine and sine. */
void sl_fill_rotary(const sl_info *info, float *table, size_t first, size_t end);

/* Scratch memory of one thread. */
typedef struct {
    size_t queries;    /* that are computed together, at most SL_MAX_QUERIES */
    float *scores;     /* [queries][context in whole tiles] */
    float *output;     /* [queries][head_dim in whole tiles] */
    uint16_t *rounded; /* [head_dim]: a key as f16 */
    int8_t *quantized; /* [head_dim in whole tiles]: a key as 8-bit integers */
} sl_attention_scratch;

enum { SL_MAX_QUERIES = 8 };

/* Compute causal grouped-query attention for key-value heads first … end - 1 and the `count` tokens
 * that follow those in the cache. qkv[count][qkv_stride] holds their queries, keys and values; the
 * call rotates them in place and appends keys and values to the cache, but leaves its position
 * unchanged. It writes the part of output[count][heads * head_dim] of the query heads that share
 * the key-value heads. The rotary table must be filled for the tokens' positions. */
void sl_attend(const sl_model *model, const sl_kv_cache *cache, size_t layer, size_t first,
               size_t end, size_t count, const float *rotary, float *qkv, size_t qkv_stride,
               float *output, const sl_attention_scratch *scratch);

#endif
