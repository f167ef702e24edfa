/* main.c: generates a story with the model in the flash partition "model". */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "esp_err.h"
#include "esp_heap_caps.h"
#include "esp_partition.h"
#include "esp_timer.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "storyllamas.h"

static const char prompt[] = "Once upon a time";

static void print_error(const char *message) {
    printf("error: %s\n", message);
}

/* Map the partition with the weight file. Returns its start, and the length of the file, or NULL
 * after an error. The engine reads the weights from there, so it stays mapped. */
static const void *map_model(size_t *bytes) {
    enum { FILE_BYTES_OFFSET = 16 }; /* of the length in the file, see storyllamas.h */
    const void *data;
    esp_partition_mmap_handle_t handle;
    const esp_partition_t *partition =
        esp_partition_find_first(ESP_PARTITION_TYPE_DATA, ESP_PARTITION_SUBTYPE_ANY, "model");
    if (!partition) {
        print_error("there is no partition \"model\": flash partitions.csv");
        return NULL;
    }
    const esp_err_t failure =
        esp_partition_mmap(partition, 0, partition->size, ESP_PARTITION_MMAP_DATA, &data, &handle);
    if (failure != ESP_OK) {
        print_error(esp_err_to_name(failure));
        return NULL;
    }
    uint64_t length;
    memcpy(&length, (const char *)data + FILE_BYTES_OFFSET, sizeof length);
    if (length > partition->size) { /* erased flash has ones */
        print_error("the partition \"model\" has no whole weight file: write one into it");
        return NULL;
    }
    *bytes = (size_t)length;
    return data;
}

/* Allocate a session's memory: inside the chip, which is faster, or else in PSRAM. */
static void *allocate(size_t bytes) {
    enum { ALIGNMENT = 64 };
    void *memory = heap_caps_aligned_alloc(ALIGNMENT, bytes, MALLOC_CAP_INTERNAL | MALLOC_CAP_8BIT);
    return memory ? memory
                  : heap_caps_aligned_alloc(ALIGNMENT, bytes, MALLOC_CAP_SPIRAM | MALLOC_CAP_8BIT);
}

/* Generate a story. Returns an error code of the engine. */
static int generate(sl_session *session, const sl_options *options) {
    sl_piece piece;
    int status = sl_start(session, prompt, strlen(prompt), options);
    if (status) return status;
    const int64_t start = esp_timer_get_time();
    printf("%s", prompt);
    do {
        if ((status = sl_next(session, &piece))) return status;
        fwrite(piece.text, 1, piece.length, stdout);
        fflush(stdout);
        vTaskDelay(1); /* lets the idle task run, which the watchdog expects */
    } while (!piece.stop);
    const size_t tokens = sl_sequence_tokens(session) - sl_prompt_tokens(session);
    const double seconds = (double)(esp_timer_get_time() - start) / 1e6;
    printf("\n\ntokens: %u in %.1f s\n", (unsigned)tokens, seconds);
    return SL_OK;
}

static int print_story(const sl_model *model) {
    enum { CONTEXT = 256 }; /* positions of a story, unless the model has fewer */
    const uint32_t max = sl_model_info(model)->context;
    sl_session_options small = {.threads = 1, .slots = 1, .cache = SL_CACHE_Q8, .chunk = 1};
    sl_options options = SL_OPTIONS_DEFAULTS;
    sl_session *session;
    small.context = max < CONTEXT ? max : CONTEXT;
    small.memory_bytes = sl_session_bytes(model, &small);
    small.memory = allocate(small.memory_bytes);
    if (!small.memory) {
        printf("error: no free block of memory has the %u bytes of a session\n",
               (unsigned)small.memory_bytes);
        return SL_OK;
    }
    int status = sl_session_new(&session, model, &small);
    if (!status) status = generate(session, &options);
    printf("session: %u bytes\n", (unsigned)small.memory_bytes);
    printf("free stack: %u bytes\n", (unsigned)uxTaskGetStackHighWaterMark(NULL));
    heap_caps_free(small.memory);
    return status;
}

void app_main(void) {
    size_t bytes;
    sl_model *model;
    const void *data = map_model(&bytes);
    if (!data) return;
    if (sl_model_open_memory(&model, data, bytes, NULL) || print_story(model))
        print_error(sl_error());
}
