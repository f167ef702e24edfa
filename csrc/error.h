/* error.h: how a function of the library reports an error. */

#ifndef STORYLLAMAS_ERROR_H
#define STORYLLAMAS_ERROR_H

/* Set the calling thread's error message, see sl_error, and return the code. */
int sl_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
