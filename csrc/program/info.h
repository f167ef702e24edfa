/* info.h: what is in a weight file. */

#ifndef SL_PROGRAM_INFO_H
#define SL_PROGRAM_INFO_H

#include "../storyllamas.h"

/* Print the shape of a model, its weight types, and the kernels of this machine. */
void print_info(const sl_model *model);

#endif
