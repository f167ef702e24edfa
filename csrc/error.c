/* error.c: the last error's sentence, one for each thread. */

#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

static _Thread_local char sentence[1024];

int sl_fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    return code;
}

const char *sl_error(void) {
    return sentence;
}
