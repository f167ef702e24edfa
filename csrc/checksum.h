/* checksum.h: the checksum of a weight file, which storyllamas.h defines.
 *
 * The checksums of the parts of a file combine to the checksum of the file, so several threads can
 * compute it. */

#ifndef STORYLLAMAS_CHECKSUM_H
#define STORYLLAMAS_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

enum { SL_CHECKSUM_LANES = 8 };

/* The state after some data, in whole blocks of 64 bytes. All zeros is the state before any. */
typedef struct {
    uint64_t a[SL_CHECKSUM_LANES], b[SL_CHECKSUM_LANES];
} sl_checksum;

/* Append data. An incomplete block at its end is ignored. */
void sl_checksum_update(sl_checksum *sum, const void *data, size_t bytes);

/* Append data of this length whose own checksum is `next`. */
void sl_checksum_combine(sl_checksum *sum, const sl_checksum *next, size_t bytes);

/* Change the checksum to that of the same data with 64-bit word number `word` set from `value` to
 * zero. bytes is the length of the data. */
void sl_checksum_clear_word(sl_checksum *sum, size_t word, uint64_t value, size_t bytes);

/* Return the number that the weight file stores. */
uint64_t sl_checksum_digest(const sl_checksum *sum);

#endif
