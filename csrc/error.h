/* error.h: how a function of the library reports an error. */

#ifndef STORYLLAMAS_ERROR_H
#define STORYLLAMAS_ERROR_H

#include "platform.h"

/* Set the calling thread's error message, see sl_error, and return the code. */
int sl_fail(int code, const char *format, ...) SL_PRINTF(2);

#endif
