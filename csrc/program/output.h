/* output.h: what every part of the program writes: errors and standard output. */

#ifndef SL_PROGRAM_OUTPUT_H
#define SL_PROGRAM_OUTPUT_H

#include "../platform.h"

/* Print "error: " and a sentence to standard error, and exit with EXIT_FAILURE. */
_Noreturn void fail(const char *format, ...) SL_PRINTF(1);

/* Fail with sl_error() if the status of a function of the engine is not 0. */
void check(int status);

/* Write what standard output has buffered; fail if that is not possible. */
void flush(void);

/* Flush and close standard output; fail if that is not possible. */
void close_output(void);

#endif
