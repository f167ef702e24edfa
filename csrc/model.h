/* model.h: a model in memory. Its arrays are in the weight file, which is mapped, copied or in the
 * caller's memory. */

#ifndef STORYLLAMAS_MODEL_H
#define STORYLLAMAS_MODEL_H

#include "kernels/kernels.h"
#include "matrix.h"
#include "migration.h"
#include "storyllamas.h"
#include "tokenizer/tokenizer.h"

/* The tensors of a layer, with the shapes that storyllamas.h gives. */
typedef struct {
    const float *attention_norm;
    sl_matrix qkv;    /* query, key and value */
    sl_matrix output; /* of attention */
    const float *feed_forward_norm;
    sl_matrix gate_up;
    sl_matrix down;
} sl_layer;

struct sl_model {
    sl_info info;
    sl_tokenizer tokenizer;
    const sl_kernels *kernels;
    const void *file; /* [file_bytes]: pages, or the data of sl_model_open_memory */
    size_t file_bytes;
    void *pages; /* that the model frees, from sl_pages_open; NULL: the file is the caller's */
    const uint32_t *extra_eos_ids; /* [extra_eos_count] */
    size_t extra_eos_count;
    const char *chat_template; /* [chat_template_bytes]; NULL: none */
    size_t chat_template_bytes;
    sl_migration *migration; /* of the file to huge pages; NULL: none */
    sl_matrix embedding;
    sl_layer *layers; /* [layers] */
    const float *norm;
    sl_matrix classifier;
};

#endif
