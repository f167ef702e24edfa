/* stand_in.c: runs an example for the ESP32 on this machine. The flash partition "model" has the
 * contents of a file. No memory is free inside the chip, so that the example has to use PSRAM.
 *
 * usage: story FILE [BYTES OF PSRAM] */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "esp_heap_caps.h"
#include "esp_partition.h"
#include "esp_timer.h"
#include "freertos/task.h"

void app_main(void);

enum { PAGE = 1 << 16 };

static esp_partition_t partition;
static void *flash;
static size_t free_bytes = SIZE_MAX;

const char *esp_err_to_name(esp_err_t code) {
    return code == ESP_ERR_NO_MEM ? "ESP_ERR_NO_MEM" : "UNKNOWN ERROR";
}

const esp_partition_t *esp_partition_find_first(esp_partition_type_t type,
                                                esp_partition_subtype_t subtype,
                                                const char *label) {
    const int is_model = type == ESP_PARTITION_TYPE_DATA && subtype == ESP_PARTITION_SUBTYPE_ANY &&
                         strcmp(label, "model") == 0;
    return is_model && flash ? &partition : NULL;
}

esp_err_t esp_partition_mmap(const esp_partition_t *mapped, size_t offset, size_t size,
                             esp_partition_mmap_memory_t memory, const void **data,
                             esp_partition_mmap_handle_t *handle) {
    (void)memory;
    if (offset + size > mapped->size) return ESP_ERR_NO_MEM;
    *data = (const char *)flash + offset;
    *handle = 1;
    return ESP_OK;
}

void *heap_caps_aligned_alloc(size_t alignment, size_t size, uint32_t caps) {
    if (caps & MALLOC_CAP_INTERNAL || size > free_bytes) return NULL;
    return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

void heap_caps_free(void *memory) {
    free(memory);
}

int64_t esp_timer_get_time(void) {
    return (int64_t)clock() * 1000000 / CLOCKS_PER_SEC;
}

void vTaskDelay(TickType_t ticks) {
    (void)ticks;
}

UBaseType_t uxTaskGetStackHighWaterMark(TaskHandle_t task) {
    (void)task;
    return 0;
}

/* Put a file into a partition of whole pages. The rest is ones, as in erased flash. */
static void read_flash(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return;
    fseek(file, 0, SEEK_END);
    const size_t bytes = (size_t)ftell(file);
    rewind(file);
    partition.size = (uint32_t)(bytes / PAGE + 1) * PAGE;
    flash = aligned_alloc(PAGE, partition.size);
    memset(flash, 0xff, partition.size);
    if (fread(flash, 1, bytes, file) < bytes) abort();
    fclose(file);
}

int main(int argc, char **argv) {
    if (argc > 1) read_flash(argv[1]);
    if (argc > 2) free_bytes = strtoul(argv[2], NULL, 10);
    app_main();
    return 0;
}
