/* pages.h: memory and files from the operating system, in pages. */

#ifndef STORYLLAMAS_PAGES_H
#define STORYLLAMAS_PAGES_H

#include <stdbool.h>

#include "checksum.h"

/* Return zeroed memory that starts at a page, or NULL if there is not enough or bytes is
 * SL_TOO_LARGE. If `huge` is set the pages are huge ones where the system has them. A page takes up
 * memory from its first use on. */
void *sl_pages_new(size_t bytes, bool huge);

/* Turn the whole pages in a range of huge ones into small pages, before their first use. */
void sl_pages_make_small(void *start, size_t bytes);

/* Free memory of sl_pages_new or sl_pages_open; bytes is its length. NULL is a no-op. */
void sl_pages_free(void *pages, size_t bytes);

/* Map or copy a whole file and compute its checksum. kind is one of SL_PAGES_…: SL_PAGES_HUGE
 * copies the file to huge pages, the others map it. Free *pages with sl_pages_free, after an error
 * too. */
int sl_pages_open(const char *path, int32_t kind, void **pages, size_t *bytes, sl_checksum *sum);

/* Compute the checksum of a file that is already in memory: data[bytes], bytes at least 1. Large
 * data take several threads. The message of an error calls the file `name`. */
int sl_pages_checksum(const void *data, size_t bytes, const char *name, sl_checksum *sum);

#endif
