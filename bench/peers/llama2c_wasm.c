/* llama2c_wasm.c: llama2.c's run.c as a WebAssembly module, for bench/web.py. Compile it with the
 * user's checkout on the include path. */

#define TESTING
#include "run.c"

#define EXPORT(name) __attribute__((export_name(#name))) name

enum { BOS = 1 };

static Transformer transformer;

void *EXPORT(allocate)(size_t bytes) {
    return malloc(bytes);
}

/* Use a checkpoint that is in memory, as read_checkpoint does with a file. */
void EXPORT(load)(char *data) {
    Config *config = &transformer.config;
    memcpy(config, data, sizeof *config);
    const int is_shared = config->vocab_size > 0;
    config->vocab_size = abs(config->vocab_size);
    memory_map_weights(&transformer.weights, config, (float *)(data + sizeof *config), is_shared);
    malloc_run_state(&transformer.state, config);
}

/* Generate a sequence of `steps` tokens after BOS. */
void EXPORT(story)(int steps, float temperature, float top_p, uint64_t seed) {
    Sampler sampler;
    build_sampler(&sampler, transformer.config.vocab_size, temperature, top_p, seed);
    for (int position = 0, id = BOS; position < steps; position++)
        id = sample(&sampler, forward(&transformer, id, position));
    free_sampler(&sampler);
}
