/* heap.c: gives newlib's malloc the RAM behind the variables, and counts its calls. */

#include <errno.h>
#include <reent.h>
#include <stddef.h>

#include "board.h"

static size_t used, largest, calls;

/* Add bytes to the heap. Returns their start. */
void *_sbrk(ptrdiff_t bytes) {
    uint8_t *const start = heap_start + used;
    if (bytes > heap_end - start || bytes < heap_start - start) {
        errno = ENOMEM;
        return (void *)-1;
    }
    used += (size_t)bytes;
    if (used > largest) largest = used;
    return start;
}

/* newlib calls these around each allocation and each release. */
void __malloc_lock(struct _reent *reent) {
    (void)reent;
    calls++;
}

void __malloc_unlock(struct _reent *reent) {
    (void)reent;
}

size_t heap_bytes(void) {
    return largest;
}

size_t heap_calls(void) {
    return calls;
}
