/* bench.h: the speed of a model. */

#ifndef SL_PROGRAM_BENCH_H
#define SL_PROGRAM_BENCH_H

#include "../storyllamas.h"
#include "command.h"

/* Print the tokens per second of a prompt, and of a story with the given options. */
void bench(const command *c, const sl_info *info, sl_session *session);

#endif
