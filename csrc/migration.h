/* migration.h: moves a mapped file onto huge pages while other threads read it. */

#ifndef STORYLLAMAS_MIGRATION_H
#define STORYLLAMAS_MIGRATION_H

#include <stdbool.h>
#include <stddef.h>

typedef struct sl_migration sl_migration;

/* Prepare to move a file that sl_pages_open mapped. The addresses stay the same. Returns NULL if
 * the system cannot do it; the file then stays where it is, and the functions below do nothing. */
sl_migration *sl_migration_new(void *pages, size_t bytes);

/* Count a forward pass that begins. The fourth starts the migration, so that it does not slow down
 * the first token. */
void sl_migration_count_pass(sl_migration *migration);

/* Return whether the migration's thread is copying now. */
bool sl_migration_is_running(const sl_migration *migration);

/* Stop a migration that is not finished, and free it. Call this before sl_pages_free. */
void sl_migration_free(sl_migration *migration);

#endif
