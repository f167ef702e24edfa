/* llama2c_probe.c: prints what llama2.c computes. Compile it with the user's checkout on the
 * include path; -DQUANTIZED selects runq.c instead of run.c.
 *
 *     probe MODEL < ids               write the logits after each id, as raw floats
 *     probe MODEL TOKENIZER < text    print BOS and the ids of the text
 */

#define TESTING
#ifdef QUANTIZED
#include "runq.c"
#else
#include "run.c"
#endif

static void print_ids(const Transformer *transformer, char *tokenizer_path) {
    static char text[1 << 20];
    text[fread(text, 1, sizeof text - 1, stdin)] = '\0';
    Tokenizer tokenizer;
    build_tokenizer(&tokenizer, tokenizer_path, transformer->config.vocab_size);
    int *ids = malloc((strlen(text) + 3) * sizeof *ids), count;
    encode(&tokenizer, text, 1, 0, ids, &count);
    for (int i = 0; i < count; i++) printf("%d ", ids[i]);
    free(ids);
    free_tokenizer(&tokenizer);
}

static void write_logits(Transformer *transformer) {
    for (int position = 0, id; scanf("%d", &id) == 1; position++) {
        const float *logits = forward(transformer, id, position);
        fwrite(logits, sizeof *logits, (size_t)transformer->config.vocab_size, stdout);
    }
}

int main(int argc, char **argv) {
    Transformer transformer;
    build_transformer(&transformer, argv[1]);
    if (argc > 2)
        print_ids(&transformer, argv[2]);
    else
        write_logits(&transformer);
    free_transformer(&transformer);
    return 0;
}
