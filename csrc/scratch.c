/* scratch.c: scratch memory of a call. */

#include "scratch.h"

#include <stdlib.h>

#include "sizes.h"

enum { SCRATCH_ALIGNMENT = 16 };

void *sl_scratch_take(sl_scratch *scratch, size_t count, size_t size) {
    const size_t bytes = sl_size_multiply(count, size);
    const size_t rounded = sl_size_round_up(bytes, SCRATCH_ALIGNMENT);
    if (bytes == SL_TOO_LARGE) return NULL;
    if (scratch->memory && rounded <= scratch->bytes - scratch->used) {
        void *const taken = scratch->memory + scratch->used;
        scratch->used += rounded;
        return taken;
    }
    return scratch->is_bounded ? NULL : malloc(bytes);
}

void sl_scratch_give(sl_scratch *scratch, void *memory) {
    const uintptr_t start = (uintptr_t)scratch->memory, at = (uintptr_t)memory;
    if (scratch->memory && at >= start && at < start + scratch->bytes)
        scratch->used = (size_t)(at - start);
    else
        free(memory);
}
