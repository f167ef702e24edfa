/* llama_cpp.c: llama.cpp as a worker, through its C interface, compiled and linked with what the
 * llama-cpp-python package installs. Its key-value cache is as it is by default, float16, but for
 * greedy stories, which are compared and not measured. */

#define _POSIX_C_SOURCE 200809L

#include <llama.h>

#include "../worker.h"

enum { CONTEXT = 256 };

static struct llama_model *model;
static struct llama_context *one;  /* tells one story at a time */
static struct llama_context *many; /* made for as many stories as are first asked for */
static int thread_count;

static void be_quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)level, (void)text, (void)data;
}

static struct llama_context *new_context(int stories, enum ggml_type cache) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)(CONTEXT * stories);
    params.n_batch = CONTEXT;
    params.n_ubatch = CONTEXT;
    params.n_seq_max = (uint32_t)stories;
    params.n_threads = params.n_threads_batch = thread_count;
    params.type_k = params.type_v = cache;
    params.no_perf = true;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context) bench_fail("llama.cpp cannot make a context");
    return context;
}

static void bench_load(const char *path, int threads) {
    llama_log_set(be_quiet, NULL);
    llama_backend_init();
    thread_count = threads;
    model = llama_model_load_from_file(path, llama_model_default_params());
    if (!model) bench_fail("llama.cpp cannot load the model");
    one = new_context(1, GGML_TYPE_F16);
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

/* Tell steps tokens after BOS to ids, which may be NULL. */
static void tell(struct llama_context *context, struct llama_sampler *sampler, int32_t *ids,
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
    tell(one, new_sampler(seed), NULL, steps);
}

static void bench_greedy(int32_t *ids, int steps) {
    struct llama_context *context = new_context(1, GGML_TYPE_F32);
    tell(context, llama_sampler_init_greedy(), ids, steps);
    llama_free(context);
}

static void bench_prompt(const int32_t *ids, int count) {
    llama_memory_clear(llama_get_memory(one), false);
    decode(one, llama_batch_get_one((llama_token *)ids, count));
    llama_get_logits_ith(one, -1);
}

static int bench_batch(int stories, int steps, uint64_t seed) {
    if (!many) many = new_context(stories, GGML_TYPE_F16);
    llama_memory_clear(llama_get_memory(many), false);
    struct llama_batch batch = llama_batch_init(stories, 0, 1);
    struct llama_sampler **samplers = malloc((size_t)stories * sizeof(struct llama_sampler *));
    for (int s = 0; s < stories; s++) {
        samplers[s] = new_sampler(seed + (uint64_t)s);
        batch.token[s] = BENCH_BOS;
        batch.n_seq_id[s] = 1;
        batch.seq_id[s][0] = s;
        batch.logits[s] = true;
    }
    batch.n_tokens = stories;
    for (int step = 0; step < steps; step++) {
        for (int s = 0; s < stories; s++) batch.pos[s] = step;
        decode(many, batch);
        for (int s = 0; s < stories; s++)
            batch.token[s] = llama_sampler_sample(samplers[s], many, s);
    }
    for (int s = 0; s < stories; s++) llama_sampler_free(samplers[s]);
    free(samplers);
    llama_batch_free(batch);
    return 1;
}

static const char *bench_about(void) {
    return llama_print_system_info();
}
