/* scratch.h: scratch memory of a call. It comes from a block first, then from the system. */

#ifndef STORYLLAMAS_SCRATCH_H
#define STORYLLAMAS_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t *memory; /* [bytes], at a multiple of 64; NULL: all comes from the system */
    size_t bytes;
    size_t used;
    bool is_bounded; /* nothing comes from the system */
} sl_scratch;

/* Return `count` elements of `size` bytes, or NULL if there is not enough memory. */
void *sl_scratch_take(sl_scratch *scratch, size_t count, size_t size);

/* Give memory back, in the reverse order of taking it. NULL is a no-op. */
void sl_scratch_give(sl_scratch *scratch, void *memory);

#endif
