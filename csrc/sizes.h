/* sizes.h: sizes of memory. Any sum or product that does not fit size_t is SL_TOO_LARGE. */

#ifndef STORYLLAMAS_SIZES_H
#define STORYLLAMAS_SIZES_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define SL_TOO_LARGE SIZE_MAX

static inline size_t sl_size_add(size_t a, size_t b) {
    return a > SL_TOO_LARGE - b ? SL_TOO_LARGE : a + b;
}

static inline size_t sl_size_multiply(size_t a, size_t b) {
    if (a == SL_TOO_LARGE || b == SL_TOO_LARGE) return SL_TOO_LARGE;
    return b && a > SL_TOO_LARGE / b ? SL_TOO_LARGE : a * b;
}

/* Round a size up to a multiple of a power of two. */
static inline size_t sl_size_round_up(size_t size, size_t multiple) {
    const size_t padded = sl_size_add(size, multiple - 1);
    return padded == SL_TOO_LARGE ? SL_TOO_LARGE : padded & ~(multiple - 1);
}

/* Allocate `count` elements of `size` bytes. Returns NULL if they do not fit size_t or memory. */
static inline void *sl_allocate(size_t count, size_t size) {
    const size_t bytes = sl_size_multiply(count, size);
    return bytes == SL_TOO_LARGE ? NULL : malloc(bytes);
}

#endif
