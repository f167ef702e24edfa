/* session.c: makes and frees a session. All its memory is one block. */

#include "session.h"

#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "platform.h"
#include "sizes.h"

enum { BUFFER_ALIGNMENT = 64, HUGE_FROM_BYTES = 1 << 22 };

/* Keys, and values, of a sequence from which its cache has small pages. Each layer has a range
 * of its own, with room for the whole context. With huge pages, the first token takes at least 2 MB
 * in each. */
enum { LARGE_CACHE_BYTES = 1 << 22 };

/* Bytes of a model from which even a pass of one token is likely faster on all threads. */
enum { LARGE_MODEL_BYTES = 1 << 23 };

/* Allocates arrays from one block of memory. A first round, with base NULL, computes the size of
 * the block. */
typedef struct {
    uint8_t *base;
    size_t used;
} arena;

/* Return an array [count][each] of elements of `size` bytes. */
static void *allocate_array(arena *a, size_t count, size_t each, size_t size) {
    const size_t bytes = sl_size_multiply(sl_size_multiply(count, each), size);
    void *part = a->base ? a->base + a->used : NULL;
    a->used = sl_size_add(a->used, sl_size_round_up(bytes, BUFFER_ALIGNMENT));
    return part;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Return the width of the widest input of a matrix. */
static size_t widest_input(const sl_info *info) {
    return larger(larger(info->dim, info->hidden), (size_t)info->heads * info->head_dim);
}

static void lay_out_sequence(sl_sequence *sequence, const sl_session *s, arena *a) {
    const sl_info *info = &s->model->info;
    const sl_kv_cache cache = {.context = s->context, .type = s->cache_type};
    const sl_sequence laid_out = {
        .stop = SL_IDLE,
        .cache.context = s->context,
        .cache.type = s->cache_type,
        .cache.keys = allocate_array(a, 1, sl_keys_bytes(s->model, &cache), 1),
        .cache.values = allocate_array(a, 1, sl_values_bytes(s->model, &cache), 1),
        .ids = allocate_array(a, 1, s->context, sizeof *sequence->ids),
        .sampler.candidates =
            allocate_array(a, 1, info->vocab_size, sizeof *sequence->sampler.candidates),
        .sampler.indices = allocate_array(a, 1, info->vocab_size + SL_TILE_ROWS, sizeof(int32_t)),
        .sampler.marks = allocate_array(a, 1, info->vocab_size, 1),
        .unsampled = allocate_array(a, 1, info->vocab_size, sizeof *sequence->unsampled),
        .text = allocate_array(a, 1, sl_decoder_bound(&s->model->tokenizer), 1),
    };
    if (sequence) *sequence = laid_out;
}

static void lay_out_attention(sl_attention_scratch *scratch, const sl_session *s, arena *a) {
    const size_t queries = smaller(s->rows, SL_MAX_QUERIES);
    const size_t context = sl_padded_rows(s->context);
    const size_t head_dim = sl_padded_rows(s->model->info.head_dim);
    const sl_attention_scratch laid_out = {
        .queries = queries,
        .scores = allocate_array(a, queries, context, sizeof *scratch->scores),
        .output = allocate_array(a, queries, head_dim, sizeof *scratch->output),
        .rounded = allocate_array(a, 1, head_dim, sizeof *scratch->rounded),
        .quantized = allocate_array(a, 1, head_dim, sizeof *scratch->quantized),
    };
    if (scratch) *scratch = laid_out;
}

/* The quantized input of a matrix: room for the matrix that needs the most. */
static void lay_out_quantized(sl_session *s, arena *a) {
    const sl_info *info = &s->model->info;
    const size_t min_group =
        info->embedding_group_size && info->embedding_group_size < info->group_size
            ? info->embedding_group_size
            : info->group_size;
    const size_t max_group = larger(info->embedding_group_size, info->group_size);
    const size_t columns = widest_input(info) + max_group,
                 groups = min_group ? columns / min_group + 1 : 0;
    s->quantized_values =
        allocate_array(a, s->rows, min_group ? columns : 0, sizeof *s->quantized_values);
    s->quantized_scales = allocate_array(a, s->rows, groups, sizeof *s->quantized_scales);
    s->quantized_sums = allocate_array(a, s->rows, groups, sizeof *s->quantized_sums);
}

static void lay_out(sl_session *s, arena *a) {
    const sl_info *info = &s->model->info;
    const size_t head_rows = (size_t)info->heads + 2 * (size_t)info->kv_heads;
    const size_t qkv = sl_product_stride(head_rows * info->head_dim);
    s->sequences = allocate_array(a, 1, s->slot_count, sizeof *s->sequences);
    s->attention = allocate_array(a, 1, s->threads, sizeof *s->attention);
    s->logits = allocate_array(a, s->rows, sl_product_stride(info->vocab_size), sizeof *s->logits);
    s->rotary = allocate_array(a, s->context, info->head_dim, sizeof *s->rotary);
    const size_t scratch = a->used;
    s->x = allocate_array(a, s->rows, info->dim, sizeof *s->x);
    s->input = allocate_array(a, s->rows, widest_input(info), sizeof *s->input);
    s->qkv = allocate_array(a, s->rows, qkv, sizeof *s->qkv);
    s->gate_up =
        allocate_array(a, s->rows, sl_product_stride(2 * (size_t)info->hidden), sizeof *s->gate_up);
    s->output = allocate_array(a, s->rows, sl_product_stride(info->dim), sizeof *s->output);
    lay_out_quantized(s, a);
    for (size_t i = 0; i < s->threads; i++)
        lay_out_attention(a->base ? &s->attention[i] : NULL, s, a);
    if (a->base) s->scratch.memory = a->base + scratch;
    s->scratch.bytes = a->used - scratch;
    for (size_t i = 0; i < s->slot_count; i++)
        lay_out_sequence(a->base ? &s->sequences[i] : NULL, s, a);
}

static void use_small_pages_for_large_caches(const sl_session *s) {
    const size_t keys = sl_keys_bytes(s->model, &s->sequences[0].cache);
    const size_t values = sl_values_bytes(s->model, &s->sequences[0].cache);
    if (keys < LARGE_CACHE_BYTES) return;
    for (size_t i = 0; i < s->slot_count; i++) {
        sl_pages_make_small(s->sequences[i].cache.keys, keys);
        sl_pages_make_small(s->sequences[i].cache.values, values);
    }
}

/* Choose the size of the pool. A parallel loop takes a microsecond to start. In that time one
 * thread reads about 50 KB of weights, so a very small model is faster on one thread, even for
 * prompts. In WebAssembly threads have not paid for models of 1 to 4 MB. */
static size_t automatic_threads(const sl_model *model) {
#ifdef __wasm__
    enum { PARALLEL_FROM_BYTES = 1 << 22, MAX_THREADS = 8 };
#else
    enum { PARALLEL_FROM_BYTES = 1 << 19, MAX_THREADS = 8 };
#endif
    const size_t processors = sl_processor_count();
    if (model->info.file_bytes < PARALLEL_FROM_BYTES) return 1;
    return processors < MAX_THREADS ? processors : MAX_THREADS;
}

static int check_session_options(const sl_model *model, const sl_session_options *options) {
    if (options->threads > SL_MAX_THREADS)
        return sl_fail(SL_ERROR_ARGUMENT, "threads is %" PRIu32 " and must be 0 (automatic) to %d",
                       options->threads, SL_MAX_THREADS);
    if (options->slots < 1 || options->slots > SL_MAX_SLOTS)
        return sl_fail(SL_ERROR_ARGUMENT, "slots is %" PRIu32 " and must be 1 to %d",
                       options->slots, SL_MAX_SLOTS);
    if (options->cache >= SL_CACHE_TYPES)
        return sl_fail(SL_ERROR_ARGUMENT, "cache is %" PRIu32 " and must be one of SL_CACHE_…",
                       options->cache);
    if (options->chunk > SL_MAX_CHUNK)
        return sl_fail(SL_ERROR_ARGUMENT, "chunk is %" PRIu32 " and must be 0 (automatic) to %d",
                       options->chunk, SL_MAX_CHUNK);
    if (options->context > model->info.context)
        return sl_fail(SL_ERROR_ARGUMENT,
                       "context is %" PRIu32 " and must be 0 (automatic) to %" PRIu32
                       ", the model's",
                       options->context, model->info.context);
    return SL_OK;
}

/* Return the largest number of tokens of a forward pass: a chunk of a prompt, no longer than the
 * context, or a token for each slot. */
static size_t count_rows(const sl_session_options *options, uint32_t context) {
    const size_t chunk = options->chunk ? options->chunk : SL_DEFAULT_CHUNK;
    return larger(smaller(chunk, context), options->slots);
}

/* Check the options and fill in a session without memory and threads. NULL options are the
 * defaults; *options becomes those in use. */
static int plan_session(sl_session *s, const sl_model *model, const sl_session_options **options) {
    static const sl_session_options defaults = SL_SESSION_OPTIONS_DEFAULTS;
    if (!*options) *options = &defaults;
    const sl_session_options *o = *options;
    const int status = check_session_options(model, o);
    if (status) return status;
    const uint32_t context = o->context ? o->context : model->info.context;
    *s = (sl_session){
        .model = model,
        .threads = o->threads ? o->threads : automatic_threads(model),
        .slot_count = o->slots,
        .context = context,
        .cache_type = sl_cache_type(model, o->cache),
        .rows = count_rows(o, context),
        .owns_memory = !o->memory,
        .scratch.is_bounded = o->memory != NULL,
    };
    arena a = {0};
    allocate_array(&a, 1, 1, sizeof *s);
    lay_out(s, &a);
    s->memory_bytes = a.used;
    return SL_OK;
}

static int reject_memory_bytes(const sl_session *s) {
    return sl_fail(SL_ERROR_MEMORY,
                   "not enough memory for %zu slots with a context of %" PRIu32
                   " tokens: use fewer slots",
                   s->slot_count, s->context);
}

size_t sl_session_bytes(const sl_model *model, const sl_session_options *options) {
    sl_session planned;
    if (plan_session(&planned, model, &options)) return 0;
    if (planned.memory_bytes < SL_TOO_LARGE) return planned.memory_bytes;
    reject_memory_bytes(&planned);
    return 0;
}

/* Check the caller's memory. */
static int check_session_memory(const sl_session *planned, const sl_session_options *options) {
    if (!options->memory && options->memory_bytes)
        return sl_fail(SL_ERROR_ARGUMENT,
                       "memory is NULL and memory_bytes is %zu: give both or neither",
                       options->memory_bytes);
    if ((uintptr_t)options->memory % BUFFER_ALIGNMENT)
        return sl_fail(SL_ERROR_ARGUMENT, "memory is at address %p and must be at a multiple of %d",
                       options->memory, BUFFER_ALIGNMENT);
    if (options->memory && options->memory_bytes < planned->memory_bytes)
        return sl_fail(SL_ERROR_ARGUMENT,
                       "memory_bytes is %zu and the session needs %zu: give what "
                       "sl_session_bytes returns",
                       options->memory_bytes, planned->memory_bytes);
    return SL_OK;
}

/* Put the session and its arrays into a block of zeros. */
static sl_session *place_session(const sl_session *planned, void *memory) {
    arena a = {.base = memory};
    sl_session *s = allocate_array(&a, 1, 1, sizeof *s);
    *s = *planned;
    lay_out(s, &a);
    if (s->owns_memory) use_small_pages_for_large_caches(s);
    return s;
}

/* Start the thread pool; without enough threads it stays NULL. A pass of one token of a small model
 * takes one thread at first. The pass of a prompt is often the only one of its kind, so it takes
 * all, which is likely faster. */
static void start_threads(sl_session *s, size_t min_threads) {
    s->pool = sl_thread_pool_new(min_threads, s->threads);
    if (!s->pool) return;
    const size_t threads = sl_thread_pool_size(s->pool);
    const bool is_small = s->model->info.file_bytes < LARGE_MODEL_BYTES;
    for (size_t kind = 0; kind < SL_PASS_KINDS; kind++)
        sl_autotune_init(&s->autotune[kind], threads, kind == 0 && is_small);
}

int sl_session_new(sl_session **session, const sl_model *model, const sl_session_options *options) {
    sl_session planned;
    *session = NULL;
    int status = plan_session(&planned, model, &options);
    if (status || (status = check_session_memory(&planned, options))) return status;
    const size_t bytes = planned.memory_bytes;
    void *memory = options->memory ? memset(options->memory, 0, bytes)
                                   : sl_pages_new(bytes, bytes >= HUGE_FROM_BYTES);
    if (!memory) return reject_memory_bytes(&planned);
    sl_session *s = place_session(&planned, memory);
    const size_t min_threads = options->threads ? options->threads : 1;
    if (s->threads > 1) start_threads(s, min_threads);
    if (min_threads > 1 && !s->pool) {
        sl_session_free(s);
        return sl_fail(SL_ERROR_MEMORY, "%zu threads cannot be started: use fewer", min_threads);
    }
    *session = s;
    return SL_OK;
}

sl_thread_pool *sl_session_pool(sl_session *s) {
    if (!s->pool || sl_thread_pool_is_mine(s->pool)) return s->pool;
    sl_thread_pool_free(s->pool);
    start_threads(s, 1);
    return s->pool;
}

void sl_sequence_reset(sl_sequence *sequence) {
    sequence->cache.position = 0;
    sequence->is_started = false;
    sequence->logits = NULL;
    sequence->draft_count = sequence->drafted = sequence->accepted = 0;
    sequence->stop = SL_IDLE;
}

size_t sl_count_cached(const sl_sequence *sequence, const int32_t *ids, size_t count) {
    const size_t cached = sequence->is_started ? sequence->cache.position : 0;
    const size_t max = cached < count ? cached : count - 1;
    size_t same = 0;
    while (same < max && sequence->ids[same] == ids[same]) same++;
    return same;
}

size_t sl_logits_stride(const sl_model *model) {
    return sl_product_stride(model->info.vocab_size);
}

void sl_session_free(sl_session *session) {
    if (!session) return;
    sl_thread_pool_free(session->pool);
    if (session->owns_memory) sl_pages_free(session, session->memory_bytes);
}
