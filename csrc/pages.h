/* pages.h: loads a weight file and computes its checksum. */

#ifndef STORYLLAMAS_PAGES_H
#define STORYLLAMAS_PAGES_H

#include "checksum.h"
#include "platform.h"

/* Map or copy a whole file and compute its checksum. kind is one of SL_PAGES_…: SL_PAGES_HUGE
 * copies the file to huge pages, the others map it. Free *pages with sl_pages_free, after an error
 * too. */
int sl_pages_open(const char *path, int32_t kind, void **pages, size_t *bytes, sl_checksum *sum);

/* Compute the checksum of a file that is already in memory: data[bytes], bytes at least 1. Large
 * data take several threads. The message of an error calls the file `name`. */
int sl_pages_checksum(const void *data, size_t bytes, const char *name, sl_checksum *sum);

#endif
