/* model_file.c: opens a weight file and checks everything in it. */

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checksum.h"
#include "error.h"
#include "model.h"
#include "model_limits.h"
#include "pages.h"
#include "tokenizer/utf8.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the engine needs a little-endian processor: it uses weight files as they are"
#endif

enum {
    VERSION = 3,
    OLDEST_VERSION = 2, /* all that is new since is zero in it */
    HEADER_BYTES = 256,
    ALIGNMENT = 64,
    FLAG_TIED = 1 << 0,
    FLAG_DUMMY_PREFIX = 1 << 1,
    FLAG_BYTE_FALLBACK = 1 << 2,
    FLAG_METASPACE = 1 << 3,
    FLAG_PREFIX_FIRST = 1 << 4,
    FLAG_FUSE_UNK = 1 << 5,
    FLAG_IGNORE_MERGES = 1 << 6,
    FLAG_NO_BOS = 1 << 7,
    FLAGS = (1 << 8) - 1,
    /* Larger files move to huge pages: with small pages the processor's first-level TLB covers less
     * than this. */
    MIGRATE_FROM_BYTES = 1 << 23,
};

static const uint8_t magic[8] = {0x89, 'S', 'L', 'M', '\r', '\n', 0x1a, '\n'};

typedef struct {
    uint8_t magic[8];
    uint32_t version, header_bytes;
    uint64_t file_bytes, checksum;
    uint32_t dim, layers, heads, kv_heads, head_dim, hidden, context, vocab_size;
    float rope_theta, norm_eps;
    uint32_t weight_type, group_size;
    int32_t unk_id, bos_id, eos_id, pad_id;
    uint32_t flags, embedding_type;
    uint64_t tokenizer_offset, tokenizer_bytes, tensors_offset, tensors_bytes;
    uint32_t embedding_group_size;
    uint32_t tokenizer_kind, pre_tokenizer, strip, merge_count, added_count;
    uint32_t rope_scaling;
    float rope_factor, rope_low_freq_factor, rope_high_freq_factor;
    uint32_t rope_original_context;
    uint32_t extra_eos_count;
    uint64_t chat_template_bytes;
    uint8_t reserved[64];
} header;

_Static_assert(sizeof(header) == HEADER_BYTES, "the header has no padding");
_Static_assert(offsetof(header, checksum) == 24, "the checksum is at byte 24");

static int reject(const char *path, const char *reason) {
    return sl_fail(SL_ERROR_FORMAT, "weight file %s is damaged: %s; export it again", path, reason);
}

/* ---- Header ---------------------------------------------------------------------------------- */

/* Return whether the file looks like a llama2.c checkpoint. It begins with a magic number or, in
 * the oldest form, with seven dimensions. */
static bool is_llama2c(const void *file, size_t bytes) {
    int32_t field[7]; /* dim, hidden_dim, layers, heads, kv_heads, vocab_size, context */
    if (bytes < sizeof field) return false;
    memcpy(field, file, sizeof field);
    if (field[0] == 0x616b3432) return true;
    for (int i = 0; i < 7; i++)
        if ((i != 5 && field[i] <= 0) || field[i] == 0 || abs(field[i] / 2) > SL_MAX_DIMENSION)
            return false;
    return field[0] % field[3] == 0 && field[3] % field[4] == 0;
}

static int check_kind(const sl_model *model, const header *head, const char *path) {
    const size_t shown = model->file_bytes < sizeof magic ? model->file_bytes : sizeof magic;
    if (memcmp(model->file, magic, shown) != 0 || shown < sizeof magic) {
        if (is_llama2c(model->file, model->file_bytes))
            return sl_fail(SL_ERROR_FORMAT,
                           "%s is a llama2.c checkpoint: import it with "
                           "`storyllamas import %s --out model.slm`",
                           path, path);
        return sl_fail(SL_ERROR_FORMAT,
                       "%s is not a StoryLlamas weight file: give one that export wrote", path);
    }
    if (model->file_bytes < sizeof *head)
        return sl_fail(SL_ERROR_FORMAT,
                       "weight file %s is cut short: it has %zu bytes and a header has %d", path,
                       model->file_bytes, HEADER_BYTES);
    if (head->version < OLDEST_VERSION || head->version > VERSION)
        return sl_fail(SL_ERROR_FORMAT,
                       "weight file %s has version %" PRIu32
                       " and this program reads versions %d and %d: export the model again",
                       path, head->version, OLDEST_VERSION, VERSION);
    if (head->file_bytes != model->file_bytes)
        return sl_fail(SL_ERROR_FORMAT,
                       "weight file %s is %zu bytes long and its header says %llu: it was cut "
                       "short or appended to; export it again",
                       path, model->file_bytes, (unsigned long long)head->file_bytes);
    if (model->file_bytes % ALIGNMENT)
        return reject(path, "its length is not a multiple of 64 bytes");
    return SL_OK;
}

/* The word that holds the checksum counts as zero in it. */
static bool is_checksum_valid(const sl_model *model, const header *head, sl_checksum sum) {
    sl_checksum_clear_word(&sum, offsetof(header, checksum) / sizeof head->checksum, head->checksum,
                           model->file_bytes);
    return sl_checksum_digest(&sum) == head->checksum;
}

static int check_dimensions(const header *head, const char *path) {
    const struct {
        const char *name;
        uint32_t value, max;
    } dimensions[] = {
        {"dim", head->dim, SL_MAX_DIMENSION},
        {"layers", head->layers, SL_MAX_LAYERS},
        {"heads", head->heads, SL_MAX_DIMENSION},
        {"kv_heads", head->kv_heads, SL_MAX_DIMENSION},
        {"head_dim", head->head_dim, SL_MAX_DIMENSION},
        {"hidden", head->hidden, SL_MAX_DIMENSION},
        {"context", head->context, SL_MAX_CONTEXT},
        {"vocab_size", head->vocab_size, SL_MAX_DIMENSION},
    };
    for (size_t i = 0; i < sizeof dimensions / sizeof *dimensions; i++)
        if (dimensions[i].value < 1 || dimensions[i].value > dimensions[i].max)
            return sl_fail(SL_ERROR_FORMAT,
                           "weight file %s is damaged: its %s is %" PRIu32
                           " and must be 1 to %" PRIu32 "; export it again",
                           path, dimensions[i].name, dimensions[i].value, dimensions[i].max);
    if (head->heads % head->kv_heads) return reject(path, "kv_heads does not divide heads");
    if (head->head_dim % 2) return reject(path, "head_dim is odd");
    if ((uint64_t)head->heads * head->head_dim > SL_MAX_DIMENSION)
        return reject(path, "heads times head_dim is out of range");
    return SL_OK;
}

static int check_type(uint32_t type, uint32_t group_size, const char *path) {
    if (!sl_type_name(type)) return reject(path, "a weight type is unknown");
    if (!sl_is_quantized(type))
        return group_size ? reject(path, "a group size of f32 weights is not 0") : SL_OK;
    const uint32_t multiple = sl_group_multiple(type);
    if (group_size == 0 || group_size > SL_MAX_GROUP_SIZE || group_size % multiple)
        return sl_fail(SL_ERROR_FORMAT,
                       "weight file %s is damaged: its group size is %" PRIu32
                       " and must be a multiple of %" PRIu32 " up to %d; export it again",
                       path, group_size, multiple, SL_MAX_GROUP_SIZE);
    return SL_OK;
}

static bool is_special_id(const header *head, int32_t id) {
    return id >= -1 && id < (int64_t)head->vocab_size;
}

/* Return what is wrong with the scaling of rotary frequencies, or NULL. */
static const char *check_rope(const header *head) {
    const float factor = head->rope_factor, low = head->rope_low_freq_factor;
    const float high = head->rope_high_freq_factor;
    const bool is_llama3 = head->rope_scaling == SL_ROPE_LLAMA3;
    if (head->rope_scaling >= SL_ROPE_SCALINGS) return "its rope_scaling is unknown";
    if (head->rope_scaling == SL_ROPE_NONE ? factor != 0 : !(isfinite(factor) && factor > 0))
        return "its rope_factor does not fit its rope_scaling";
    if (!is_llama3 && (low != 0 || high != 0 || head->rope_original_context != 0))
        return "it has factors of rotary frequencies that its rope_scaling does not use";
    if (is_llama3 && !(low > 0 && low < high && isfinite(high) && head->rope_original_context > 0))
        return "its factors of rotary frequencies are out of range";
    return NULL;
}

/* Return whether a file of version 2 has zeros where version 3 has fields. */
static bool is_as_old_as_it_says(const header *head) {
    static const uint8_t zeros[sizeof(header) - offsetof(header, tokenizer_kind)];
    return head->version > OLDEST_VERSION ||
           (memcmp(&head->tokenizer_kind, zeros, sizeof zeros) == 0 &&
            head->flags < FLAG_METASPACE);
}

static int check_header(const header *head, const char *path) {
    if (head->header_bytes != HEADER_BYTES) return reject(path, "header_bytes is not 256");
    int status = check_dimensions(head, path);
    if (status) return status;
    if (!(isfinite(head->rope_theta) && head->rope_theta > 0))
        return reject(path, "rope_theta is not a positive number");
    if (!(isfinite(head->norm_eps) && head->norm_eps >= 0))
        return reject(path, "norm_eps is negative or not a number");
    if ((status = check_type(head->weight_type, head->group_size, path))) return status;
    if ((status = check_type(head->embedding_type, head->embedding_group_size, path)))
        return status;
    if (sl_is_quantized(head->weight_type) != sl_is_quantized(head->embedding_type))
        return reject(path, "only one of its weight types is f32");
    if (!is_special_id(head, head->unk_id)) return reject(path, "unk_id is out of range");
    if (!is_special_id(head, head->bos_id)) return reject(path, "bos_id is out of range");
    if (!is_special_id(head, head->eos_id)) return reject(path, "eos_id is out of range");
    if (!is_special_id(head, head->pad_id)) return reject(path, "pad_id is out of range");
    if (head->flags & ~(uint32_t)FLAGS) return reject(path, "it sets an unknown flag");
    const char *reason = check_rope(head);
    if (reason) return reject(path, reason);
    if (!is_as_old_as_it_says(head))
        return reject(path, "its version is 2 and it has fields of version 3");
    for (size_t i = 0; i < sizeof head->reserved; i++)
        if (head->reserved[i]) return reject(path, "a reserved byte of the header is not zero");
    return SL_OK;
}

/* ---- Sections -------------------------------------------------------------------------------- */

/* Goes through the sections of the file. A section that does not fit the file sets `failure`. */
typedef struct {
    const uint8_t *file;
    uint64_t bytes;
    uint64_t position;
    const char *failure; /* NULL: none yet */
} cursor;

/* Return the next section, count * size bytes, and skip the zeros after it. */
static const void *take(cursor *at, uint64_t count, uint64_t size) {
    const uint64_t left = at->bytes - at->position;
    if (at->failure) return NULL;
    if (size && count > left / size) {
        at->failure = "its sections do not fit the file";
        return NULL;
    }
    const uint8_t *section = at->file + at->position;
    at->position += count * size;
    for (; at->position % ALIGNMENT; at->position++)
        if (at->file[at->position]) at->failure = "the padding between sections is not zero";
    return section;
}

static const float *take_vector(cursor *at, uint32_t size) {
    return take(at, size, sizeof(float));
}

/* Return the next matrix. `like` has its type and group size. */
static sl_matrix take_matrix(cursor *at, sl_matrix like, uint64_t rows, uint32_t columns) {
    like.rows = (uint32_t)rows;
    like.columns = columns;
    like.tiles = take(at, sl_padded_rows(like.rows) / SL_TILE_ROWS, sl_matrix_tile_bytes(&like));
    return like;
}

static int take_tokenizer(sl_model *model, const header *head, cursor *at, const char *path) {
    const uint64_t size = head->vocab_size;
    const uint64_t scores = head->tokenizer_kind == SL_SENTENCEPIECE ? size * sizeof(float) : 0;
    const uint64_t offsets = (size + 1) * sizeof(uint32_t);
    const uint64_t merges = head->merge_count * (uint64_t)sizeof(sl_merge_pair);
    const uint64_t added = head->added_count * (uint64_t)sizeof(sl_added_token);
    const uint64_t tables = scores + offsets + merges + added + size;
    const uint8_t *section = take(at, head->tokenizer_bytes, 1);
    if (at->failure) return reject(path, at->failure);
    if (head->tokenizer_bytes < tables) return reject(path, "its tokenizer is cut short");
    const sl_vocabulary vocabulary = {
        .size = head->vocab_size,
        .scores = (const float *)section,
        .offsets = (const uint32_t *)(section + scores),
        .merges = (const sl_merge_pair *)(section + scores + offsets),
        .added = (const sl_added_token *)(section + scores + offsets + merges),
        .types = section + scores + offsets + merges + added,
        .text = (const char *)section + tables,
        .text_bytes = (size_t)(head->tokenizer_bytes - tables),
        .unk_id = head->unk_id,
        .dummy_prefix = (head->flags & FLAG_DUMMY_PREFIX) != 0,
        .byte_fallback = (head->flags & FLAG_BYTE_FALLBACK) != 0,
        .kind = (int32_t)head->tokenizer_kind,
        .pre_tokenizer = (int32_t)head->pre_tokenizer,
        .strip = (int32_t)head->strip,
        .metaspace = (head->flags & FLAG_METASPACE) != 0,
        .prefix_first = (head->flags & FLAG_PREFIX_FIRST) != 0,
        .fuse_unk = (head->flags & FLAG_FUSE_UNK) != 0,
        .ignore_merges = (head->flags & FLAG_IGNORE_MERGES) != 0,
        .merge_count = head->merge_count,
        .added_count = head->added_count,
    };
    return sl_tokenizer_index(&model->tokenizer, &vocabulary, path);
}

static bool are_extra_eos_ids(const header *head, const uint32_t *ids) {
    for (uint32_t i = 0; i < head->extra_eos_count; i++)
        if (ids[i] >= head->vocab_size || (i && ids[i] <= ids[i - 1]) ||
            (int32_t)ids[i] == head->eos_id)
            return false;
    return true;
}

static int take_chat(sl_model *model, const header *head, cursor *at, const char *path) {
    const uint64_t ids_bytes = head->extra_eos_count * (uint64_t)sizeof(uint32_t);
    const uint64_t bytes = head->chat_template_bytes;
    if (bytes > SL_MAX_CHAT_TEMPLATE) return reject(path, "its chat template is too long");
    const uint8_t *section = take(at, ids_bytes + bytes, 1);
    if (at->failure) return reject(path, at->failure);
    if (head->tensors_offset != at->position)
        return reject(path, "tensors_offset is not the end of the chat section");
    model->extra_eos_ids = (const uint32_t *)section;
    model->extra_eos_count = head->extra_eos_count;
    if (!are_extra_eos_ids(head, model->extra_eos_ids))
        return reject(path, "its extra EOS ids are out of range or do not rise");
    if (bytes) model->chat_template = (const char *)section + ids_bytes;
    model->chat_template_bytes = (size_t)bytes;
    if (bytes && sl_utf8_valid(model->chat_template, (size_t)bytes) < bytes)
        return reject(path, "its chat template is not valid UTF-8");
    return SL_OK;
}

static int take_tensors(sl_model *model, const header *head, cursor *at, const char *path) {
    const sl_info *info = &model->info;
    const uint64_t attention = (uint64_t)info->heads * info->head_dim;
    const uint64_t qkv = attention + 2 * (uint64_t)info->kv_heads * info->head_dim;
    const uint64_t start = at->position;
    const sl_matrix stored = {.type = info->weight_type, .group_size = info->group_size};
    const sl_matrix embedding = {.type = info->embedding_type,
                                 .group_size = info->embedding_group_size};
    /* Each tensor takes up bytes, so a small file does not make many layers. */
    if (info->layers > (at->bytes - start) / ALIGNMENT)
        return reject(path, "its sections do not fit the file");
    model->layers = calloc(info->layers, sizeof *model->layers);
    if (!model->layers) return sl_fail(SL_ERROR_MEMORY, "not enough memory to open %s", path);
    model->embedding = take_matrix(at, embedding, info->vocab_size, info->dim);
    for (uint32_t i = 0; i < info->layers; i++) {
        sl_layer *layer = &model->layers[i];
        layer->attention_norm = take_vector(at, info->dim);
        layer->qkv = take_matrix(at, stored, qkv, info->dim);
        layer->output = take_matrix(at, stored, info->dim, (uint32_t)attention);
        layer->feed_forward_norm = take_vector(at, info->dim);
        layer->gate_up = take_matrix(at, stored, 2 * (uint64_t)info->hidden, info->dim);
        layer->down = take_matrix(at, stored, info->dim, info->hidden);
    }
    model->norm = take_vector(at, info->dim);
    model->classifier = model->embedding;
    if (!info->tied) model->classifier = take_matrix(at, embedding, info->vocab_size, info->dim);
    if (at->failure) return reject(path, at->failure);
    if (at->position != at->bytes) return reject(path, "something follows its last tensor");
    if (head->tensors_bytes != at->position - start)
        return reject(path, "tensors_bytes is not the size of its tensors");
    return SL_OK;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static void fill_info(sl_model *model, const header *head) {
    const uint64_t dim = head->dim, attention = (uint64_t)head->heads * head->head_dim;
    const uint64_t qkv = attention + 2 * (uint64_t)head->kv_heads * head->head_dim;
    const uint64_t layer = 2 * dim + dim * (qkv + attention + 3 * (uint64_t)head->hidden);
    const uint64_t tied = head->flags & FLAG_TIED;
    model->info = (sl_info){
        .dim = head->dim,
        .layers = head->layers,
        .heads = head->heads,
        .kv_heads = head->kv_heads,
        .head_dim = head->head_dim,
        .hidden = head->hidden,
        .context = head->context,
        .vocab_size = head->vocab_size,
        .rope_theta = head->rope_theta,
        .norm_eps = head->norm_eps,
        .weight_type = head->weight_type,
        .group_size = head->group_size,
        .embedding_type = head->embedding_type,
        .embedding_group_size = head->embedding_group_size,
        .unk_id = head->unk_id,
        .bos_id = head->bos_id,
        .eos_id = head->eos_id,
        .pad_id = head->pad_id,
        .tied = (uint32_t)tied,
        .adds_bos = head->bos_id >= 0 && !(head->flags & FLAG_NO_BOS),
        .rope_scaling = head->rope_scaling,
        .rope_factor = head->rope_factor,
        .rope_low_freq_factor = head->rope_low_freq_factor,
        .rope_high_freq_factor = head->rope_high_freq_factor,
        .rope_original_context = head->rope_original_context,
        .parameters = (tied ? 1 : 2) * head->vocab_size * dim + head->layers * layer + dim,
        .file_bytes = head->file_bytes,
        .kernels = model->kernels->name,
    };
}

static int load_model(sl_model *model, const sl_checksum *sum, const char *path) {
    int status;
    const header *head = model->file;
    if ((status = check_kind(model, head, path))) return status;
    if (!is_checksum_valid(model, head, *sum)) return reject(path, "its checksum does not match");
    if ((status = check_header(head, path))) return status;
    if (head->tokenizer_offset != HEADER_BYTES)
        return reject(path, "tokenizer_offset is not the end of the header");
    fill_info(model, head);
    cursor at = {model->file, model->file_bytes, HEADER_BYTES, NULL};
    if ((status = take_tokenizer(model, head, &at, path))) return status;
    if ((status = take_chat(model, head, &at, path))) return status;
    return take_tensors(model, head, &at, path);
}

static int choose_kernels(sl_model *model, const char *name) {
    model->kernels = sl_kernels_find(name);
    if (model->kernels) return SL_OK;
    char names[128] = "";
    for (size_t i = 0; sl_kernels_name(i); i++) {
        const size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", sl_kernels_name(i));
    }
    return sl_fail(SL_ERROR_ARGUMENT, "this processor has no kernels \"%s\": use one of %s", name,
                   names);
}

static const sl_model_options default_options = SL_MODEL_OPTIONS_DEFAULTS;

/* Make a model without a file. */
static int new_model(sl_model **model, const char *kernels, const char *path) {
    *model = calloc(1, sizeof **model);
    if (!*model) return sl_fail(SL_ERROR_MEMORY, "not enough memory to open %s", path);
    return choose_kernels(*model, kernels);
}

/* Close a model that cannot be opened. Returns the status. */
static int give_up(sl_model **model, int status) {
    sl_model_close(*model);
    *model = NULL;
    return status;
}

int sl_model_open(sl_model **model, const char *path, const sl_model_options *options) {
    if (!options) options = &default_options;
    sl_checksum sum = {0};
    int status = new_model(model, options->kernels, path);
    if (status) return give_up(model, status);
    sl_model *m = *model;
    status = sl_pages_open(path, options->pages, &m->pages, &m->file_bytes, &sum);
    m->file = m->pages;
    if (!status) status = load_model(m, &sum, path);
    if (status) return give_up(model, status);
    if (options->pages == SL_PAGES_AUTO && m->file_bytes >= MIGRATE_FROM_BYTES)
        m->migration = sl_migration_new(m->pages, m->file_bytes);
    return SL_OK;
}

static int check_memory(const void *data, size_t bytes, int32_t pages) {
    if (pages != SL_PAGES_AUTO && pages != SL_PAGES_SHARED)
        return sl_fail(SL_ERROR_ARGUMENT,
                       "pages is %" PRId32
                       " and a file in memory is used in place: set SL_PAGES_AUTO or "
                       "SL_PAGES_SHARED",
                       pages);
    if (bytes == 0) return sl_fail(SL_ERROR_FORMAT, "weight file data is empty: export it again");
    if (!data || (uintptr_t)data % ALIGNMENT)
        return sl_fail(SL_ERROR_ARGUMENT,
                       "data is at address %p and must be at a multiple of %d: align it, such as "
                       "with aligned_alloc",
                       data, ALIGNMENT);
    return SL_OK;
}

int sl_model_open_memory(sl_model **model, const void *data, size_t bytes,
                         const sl_model_options *options) {
    static const char name[] = "data"; /* in messages, in place of a path */
    if (!options) options = &default_options;
    sl_checksum sum = {0};
    int status = new_model(model, options->kernels, name);
    if (!status) status = check_memory(data, bytes, options->pages);
    if (!status) status = sl_pages_checksum(data, bytes, name, &sum);
    if (status) return give_up(model, status);
    (*model)->file = data;
    (*model)->file_bytes = bytes;
    status = load_model(*model, &sum, name);
    return status ? give_up(model, status) : SL_OK;
}

void sl_model_close(sl_model *model) {
    if (!model) return;
    sl_migration_free(model->migration);
    sl_tokenizer_free(&model->tokenizer);
    free(model->layers);
    sl_pages_free(model->pages, model->file_bytes);
    free(model);
}

const sl_info *sl_model_info(const sl_model *model) {
    return &model->info;
}

const char *sl_chat_template(const sl_model *model, size_t *length) {
    *length = model->chat_template_bytes;
    return model->chat_template;
}

const uint32_t *sl_extra_eos_ids(const sl_model *model, size_t *count) {
    *count = model->extra_eos_count;
    return model->extra_eos_ids;
}

const sl_tokenizer *sl_model_tokenizer(const sl_model *model) {
    return &model->tokenizer;
}
