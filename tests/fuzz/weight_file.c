/* weight_file.c: a libFuzzer target that opens its input as a weight file and uses all of it.
 *
 * The mutator corrects the length and the checksum, which almost any random change makes wrong. So
 * the fuzzer reaches the checks after them. Most of its changes are to fields of the header. */

#define _GNU_SOURCE /* memfd_create */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checksum.h"
#include "storyllamas.h"

enum { HEADER_BYTES = 256, FILE_BYTES_AT = 16, CHECKSUM_AT = 24, ALIGNMENT = 64, STEPS = 6 };

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- The mutator ----------------------------------------------------------------------------- */

/* Set the length and the checksum to the values that the reader expects. */
static void repair(uint8_t *data, size_t size) {
    const uint64_t bytes = size;
    uint64_t digest = 0;
    memcpy(data + FILE_BYTES_AT, &bytes, sizeof bytes);
    memcpy(data + CHECKSUM_AT, &digest, sizeof digest);
    sl_checksum sum = {0};
    sl_checksum_update(&sum, data, size);
    digest = sl_checksum_digest(&sum);
    memcpy(data + CHECKSUM_AT, &digest, sizeof digest);
}

/* Change one field of 32 bits slightly, or to a value that is likely to be a limit. */
static void change_field(uint8_t *data, size_t end, uint32_t random) {
    static const uint32_t limits[] = {0,       1,       2,       3,         64,
                                      1 << 14, 1 << 17, 1 << 20, INT32_MAX, UINT32_MAX};
    const size_t at = (random >> 8) % (end / 4) * 4;
    uint32_t field;
    memcpy(&field, data + at, sizeof field);
    switch (random & 7) {
    case 0:
    case 1:
        field++;
        break;
    case 2:
    case 3:
        field--;
        break;
    case 4:
        field *= 2;
        break;
    case 5:
        field /= 2;
        break;
    default:
        field = limits[(random >> 3 & 31) % (sizeof limits / sizeof *limits)];
    }
    memcpy(data + at, &field, sizeof field);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    uint32_t random = seed * 2654435761u;
    random ^= random >> 15;
    if (size < HEADER_BYTES)
        size = LLVMFuzzerMutate(data, size, max_size);
    else if (random % 4 < 2)
        change_field(data, random & 16 ? HEADER_BYTES : size, random >> 4);
    else if (random % 4 == 2) /* the header stays, all else changes */
        size = HEADER_BYTES +
               LLVMFuzzerMutate(data + HEADER_BYTES, size - HEADER_BYTES, max_size - HEADER_BYTES);
    else
        size = LLVMFuzzerMutate(data, size, max_size);
    if (size % ALIGNMENT && random & 1 << 20) {
        const size_t padded = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        if (padded <= max_size) {
            memset(data + size, 0, padded - size);
            size = padded;
        }
    }
    if (size >= HEADER_BYTES && size % ALIGNMENT == 0) repair(data, size);
    return size;
}

/* ---- Using a model --------------------------------------------------------------------------- */

/* Encode a text with and without the cache, which must give the same ids, and decode it. */
static void use_text(const sl_tokenizer *tokenizer, const char *text, size_t length) {
    const size_t capacity = 3 * (length + 1);
    int32_t *ids = malloc(capacity * sizeof *ids), *cached = malloc(capacity * sizeof *ids);
    sl_word_cache *cache;
    size_t count, cached_count, back_length;
    if (!ids || !cached || sl_word_cache_new(&cache, tokenizer)) abort();
    const int status = sl_encode(tokenizer, NULL, text, length, ids, capacity, &count);
    const int again = sl_encode(tokenizer, cache, text, length, cached, capacity, &cached_count);
    if (status != again || (status && status != SL_ERROR_TEXT)) abort();
    if (!status && (count != cached_count || memcmp(ids, cached, count * sizeof *ids))) abort();
    if (!status) {
        char *back = malloc(1);
        if (sl_decode(tokenizer, ids, count, back, 0, &back_length) == SL_OK && back_length)
            abort();
        back = realloc(back, back_length + 1);
        if (sl_decode(tokenizer, ids, count, back, back_length, &back_length)) abort();
        free(back);
    }
    sl_word_cache_free(cache);
    free(ids);
    free(cached);
}

/* Read the chat section to its end. */
static void use_chat(const sl_model *model) {
    size_t count, length;
    const uint32_t *ids = sl_extra_eos_ids(model, &count);
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= sl_model_info(model)->vocab_size) abort();
    const char *template = sl_chat_template(model, &length);
    if (!template != !length || (template && memchr(template, 0xff, length))) abort();
}

static void use_session(const sl_model *model, uint32_t cache) {
    enum { SLOTS = 2 };
    const sl_session_options session_options = {
        .threads = 1, .slots = SLOTS, .cache = cache, .chunk = 3};
    sl_options options = SL_OPTIONS_DEFAULTS;
    sl_session *session;
    if (sl_session_new(&session, model, &session_options)) return;
    sl_piece pieces[SLOTS];
    for (size_t slot = 0; slot < SLOTS; slot++)
        sl_start_slot(session, slot, "ab a", slot ? 4 : 0, &options);
    for (int step = 0; step < STEPS; step++) {
        const int status = sl_step(session, pieces);
        if (status && status != SL_ERROR_NUMBER) abort();
    }
    const int32_t ids[] = {0, 0, 0};
    for (size_t count = 1; count <= 3; count++) {
        size_t kept;
        if (!sl_continue_ids(session, ids, count, &options, &kept) && kept >= count) abort();
    }
    sl_session_free(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int file = -1;
    static char path[64];
    if (file < 0) {
        file = memfd_create("model", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    }
    if (file < 0 || ftruncate(file, 0) || pwrite(file, data, size, 0) != (ssize_t)size) abort();
    sl_model *model;
    if (sl_model_open(&model, path, &(sl_model_options){.pages = SL_PAGES_HUGE})) {
        if (model || !*sl_error()) abort();
        return 0;
    }
    use_chat(model);
    const sl_tokenizer *tokenizer = sl_model_tokenizer(model);
    use_text(tokenizer, "ab a\xc3\xa9 <s> ", 12);
    if (size > HEADER_BYTES) { /* the text of some pieces, valid or not */
        const size_t length = size - HEADER_BYTES < 300 ? size - HEADER_BYTES : 300;
        use_text(tokenizer, (const char *)data + HEADER_BYTES, length);
        use_text(tokenizer, (const char *)data + size / 2, size / 2 < 300 ? size / 2 : 300);
    }
    /* Wide models would take all the time. */
    const sl_info *info = sl_model_info(model);
    const uint64_t work = info->parameters + (uint64_t)info->head_dim * info->kv_heads;
    if (work < 1 << 18 && info->context <= 1 << 12)
        use_session(model, data[CHECKSUM_AT] % SL_CACHE_TYPES); /* as good as any other choice */
    sl_model_close(model);
    return 0;
}
