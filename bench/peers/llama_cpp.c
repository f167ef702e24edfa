/* llama_cpp.c: llama.cpp as a worker, see worker.h, through its C interface. It is compiled and
 * linked with the files of the llama-cpp-python package. -DREPACKS=0 leaves weights in the order of
 * the file; otherwise llama.cpp rearranges some types for the processor. Its key-value cache is
 * float16, the default, except for greedy sequences, which are compared and not measured. */

#define _POSIX_C_SOURCE 200809L

#include <llama.h>

#include "../worker.h"

enum { CONTEXT = 1024, BATCH = 512 };

static struct llama_model *model;
static struct llama_context *single;  /* one sequence */
static struct llama_context *batched; /* as many sequences as the first batch needs */
static int thread_count;

static void ignore_log(enum ggml_log_level level, const char *text, void *data) {
    (void)level, (void)text, (void)data;
}

static struct llama_context *new_context(int sequences, enum ggml_type cache) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)(CONTEXT * sequences);
    params.n_batch = BATCH;
    params.n_ubatch = BATCH;
    params.n_seq_max = (uint32_t)sequences;
    params.n_threads = params.n_threads_batch = thread_count;
    params.type_k = params.type_v = cache;
    params.no_perf = true;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context) bench_fail("llama.cpp cannot make a context");
    return context;
}

static void bench_load(const char *path, int threads) {
    llama_log_set(ignore_log, NULL);
    llama_backend_init();
    thread_count = threads;
    struct llama_model_params params = llama_model_default_params();
    params.use_extra_bufts = REPACKS;
    model = llama_model_load_from_file(path, params);
    if (!model) bench_fail("llama.cpp cannot load the model");
    single = new_context(1, GGML_TYPE_F16);
}

static int bench_vocab_size(void) {
    return llama_vocab_n_tokens(llama_model_get_vocab(model));
}

static void decode(struct llama_context *context, struct llama_batch batch) {
    if (llama_decode(context, batch)) bench_fail("llama.cpp cannot decode");
}

static struct llama_sampler *new_sampler(uint64_t seed) {
    struct llama_sampler *chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, llama_sampler_init_top_p(bench_top_p, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_dist((uint32_t)seed));
    return chain;
}

/* Generate a sequence after BOS and write it to ids, which may be NULL. */
static void generate_ids(struct llama_context *context, struct llama_sampler *sampler, int32_t *ids,
                         int steps) {
    llama_memory_clear(llama_get_memory(context), false);
    llama_token id = BENCH_BOS;
    for (int i = 0; i < steps; i++) {
        decode(context, llama_batch_get_one(&id, 1));
        id = llama_sampler_sample(sampler, context, -1);
        if (ids) ids[i] = id;
    }
    llama_sampler_free(sampler);
}

static void bench_story(int steps, uint64_t seed) {
    generate_ids(single, new_sampler(seed), NULL, steps);
}

static void bench_greedy(int32_t *ids, int steps) {
    struct llama_context *context = new_context(1, GGML_TYPE_F32);
    generate_ids(context, llama_sampler_init_greedy(), ids, steps);
    llama_free(context);
}

static void bench_prompt(const int32_t *ids, int count) {
    llama_memory_clear(llama_get_memory(single), false);
    decode(single, llama_batch_get_one((llama_token *)ids, count));
    llama_get_logits_ith(single, -1);
}

static int bench_batch(int sequences, int steps, uint64_t seed) {
    if (!batched) batched = new_context(sequences, GGML_TYPE_F16);
    llama_memory_clear(llama_get_memory(batched), false);
    struct llama_batch batch = llama_batch_init(sequences, 0, 1);
    struct llama_sampler **samplers = malloc((size_t)sequences * sizeof(struct llama_sampler *));
    for (int s = 0; s < sequences; s++) {
        samplers[s] = new_sampler(seed + (uint64_t)s);
        batch.token[s] = BENCH_BOS;
        batch.n_seq_id[s] = 1;
        batch.seq_id[s][0] = s;
        batch.logits[s] = true;
    }
    batch.n_tokens = sequences;
    for (int step = 0; step < steps; step++) {
        for (int s = 0; s < sequences; s++) batch.pos[s] = step;
        decode(batched, batch);
        for (int s = 0; s < sequences; s++)
            batch.token[s] = llama_sampler_sample(samplers[s], batched, s);
    }
    for (int s = 0; s < sequences; s++) llama_sampler_free(samplers[s]);
    free(samplers);
    llama_batch_free(batch);
    return 1;
}

static const char *bench_about(void) {
    return llama_print_system_info();
}
