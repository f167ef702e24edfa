/* info.c: what is in a weight file, for --info. */

#include "info.h"

#include <inttypes.h>
#include <stdio.h>

static void print_rope_scaling(const sl_info *info) {
    if (info->rope_scaling == SL_ROPE_LINEAR)
        printf("rope scaling  linear, by %g\n", (double)info->rope_factor);
    if (info->rope_scaling == SL_ROPE_LLAMA3)
        printf("rope scaling  llama3, by %g from %" PRIu32 " positions\n",
               (double)info->rope_factor, info->rope_original_context);
}

static void print_type(const char *name, uint32_t type, uint32_t group_size) {
    printf("%-13s %s", name, sl_type_name(type));
    if (group_size) printf(", a scale for %" PRIu32 " columns", group_size);
    putchar('\n');
}

static void print_chat(const sl_model *model) {
    size_t count, length;
    const uint32_t *ids = sl_extra_eos_ids(model, &count);
    const char *template = sl_chat_template(model, &length);
    if (count) printf("extra eos    ");
    for (size_t i = 0; i < count; i++) printf(" %" PRIu32, ids[i]);
    if (count) putchar('\n');
    if (template) printf("chat template %zu bytes\n", length);
}

void print_info(const sl_model *model) {
    const sl_info *info = sl_model_info(model);
    printf("parameters    %" PRIu64 "\n", info->parameters);
    printf("file          %" PRIu64 " bytes\n", info->file_bytes);
    print_type("weights", info->weight_type, info->group_size);
    print_type("embedding", info->embedding_type, info->embedding_group_size);
    printf("dim           %" PRIu32 "\n", info->dim);
    printf("layers        %" PRIu32 "\n", info->layers);
    printf("heads         %" PRIu32 "\n", info->heads);
    printf("kv heads      %" PRIu32 "\n", info->kv_heads);
    printf("head dim      %" PRIu32 "\n", info->head_dim);
    printf("hidden        %" PRIu32 "\n", info->hidden);
    printf("context       %" PRIu32 "\n", info->context);
    printf("vocabulary    %" PRIu32 "\n", info->vocab_size);
    printf("classifier    %s\n", info->tied ? "tied to the embedding" : "not tied");
    printf("rope theta    %g\n", (double)info->rope_theta);
    print_rope_scaling(info);
    printf("norm epsilon  %g\n", (double)info->norm_eps);
    printf("special ids   unk %" PRId32 ", bos %" PRId32 ", eos %" PRId32 ", pad %" PRId32 "\n",
           info->unk_id, info->bos_id, info->eos_id, info->pad_id);
    print_chat(model);
    printf("kernels       %s of", info->kernels);
    for (size_t i = 0; sl_kernels_name(i); i++) printf(" %s", sl_kernels_name(i));
    putchar('\n');
}
