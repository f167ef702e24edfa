/* error.c: the last error message of each thread. */

#include "error.h"

#include <stdarg.h>
#include <stdio.h>

#include "storyllamas.h"

static SL_THREAD_LOCAL char message[1024];

#ifdef __NEWLIB__
/* The C library of microcontrollers is often built without %zu. Write it as %lu, of the same size
 * there. */
static const char *replace_size_formats(const char *format) {
    static char copy[512];
    size_t i = 0;
    for (; format[i] && i < sizeof copy - 1; i++)
        copy[i] = i && format[i] == 'z' && format[i - 1] == '%' ? 'l' : format[i];
    copy[i] = '\0';
    return copy;
}
#else
static const char *replace_size_formats(const char *format) {
    return format;
}
#endif

int sl_fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, replace_size_formats(format), arguments);
    va_end(arguments);
    return code;
}

const char *sl_error(void) {
    return message;
}
