/* none.c: a program without an operating system, or one that makes no use of it: one thread, no
 * files, no clock. The C library needs malloc. */

#include "../platform.h"

#ifdef SL_PLATFORM_NONE

#include <stdlib.h>
#include <string.h>

#include "../sizes.h"

/* Not every C library has aligned_alloc. The address of the block is in front of the memory. */
void *sl_pages_new(size_t bytes, bool huge) {
    enum { PAGE_ALIGNMENT = 64 };
    (void)huge;
    const size_t reserved = sl_size_add(bytes, sizeof(void *) + PAGE_ALIGNMENT - 1);
    uint8_t *block = reserved == SL_TOO_LARGE ? NULL : calloc(1, reserved);
    if (!block) return NULL;
    uint8_t *memory = block + sizeof block;
    memory += -(uintptr_t)memory & (PAGE_ALIGNMENT - 1);
    memcpy(memory - sizeof block, &block, sizeof block);
    return memory;
}

void sl_pages_make_small(void *start, size_t bytes) {
    (void)start, (void)bytes;
}

void sl_pages_free(void *pages, size_t bytes) {
    void *block = NULL;
    (void)bytes;
    if (pages) memcpy(&block, (uint8_t *)pages - sizeof block, sizeof block);
    free(block);
}

int sl_file_open(sl_file *file, const char *path) {
    (void)file, (void)path;
    return SL_FILE_UNSUPPORTED;
}

void sl_file_close(const sl_file *file) {
    (void)file;
}

int sl_file_read(const sl_file *file, uint8_t *target, size_t start, size_t end) {
    (void)file, (void)target, (void)start, (void)end;
    return SL_FILE_UNSUPPORTED;
}

int sl_file_map(const sl_file *file, size_t bytes, void **pages) {
    (void)file, (void)bytes;
    *pages = NULL;
    return SL_FILE_UNSUPPORTED;
}

int64_t sl_process(void) {
    return 0;
}

#ifndef SL_HAS_THREADS

size_t sl_processor_count(void) {
    return 1;
}

int64_t sl_clock(void) {
    return 0;
}

#endif

bool sl_has_dot_product(void) {
#ifdef __ARM_FEATURE_DOTPROD
    return true;
#else
    return false;
#endif
}

bool sl_has_matrix_product(void) {
#ifdef __ARM_FEATURE_MATMUL_INT8
    return true;
#else
    return false;
#endif
}

bool sl_request_tiles(void) {
    return false;
}

#endif
