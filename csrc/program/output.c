/* output.c: errors and standard output. */

#include "output.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../storyllamas.h"

_Noreturn void fail(const char *format, ...) {
    va_list arguments;
    fputs("error: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

void check(int status) {
    if (status) fail("%s", sl_error());
}

void flush(void) {
    if (fflush(stdout) || ferror(stdout))
        fail("standard output cannot be written: %s", strerror(errno));
}

/* Some systems report only here that a file could not be written. */
void close_output(void) {
    flush();
    if (fclose(stdout)) fail("standard output cannot be written: %s", strerror(errno));
}
