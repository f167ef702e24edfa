/* error.c: the last error message of each thread. */

#include "error.h"

#include <stdarg.h>
#include <stdio.h>

#include "storyllamas.h"

static SL_THREAD_LOCAL char message[1024];

int sl_fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return code;
}

const char *sl_error(void) {
    return message;
}
