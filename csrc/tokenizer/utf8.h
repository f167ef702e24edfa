/* utf8.h: finds the characters in a text. */

#ifndef STORYLLAMAS_UTF8_H
#define STORYLLAMAS_UTF8_H

#include <stddef.h>

/* Return the length of the UTF-8 character at the beginning of a text, 0 if it is not valid, or -1
 * if the text ends within it. length is at least 1. */
int sl_utf8_character(const char *text, size_t length);

/* Return the number of bytes before the first that is not valid UTF-8. */
size_t sl_utf8_valid(const char *text, size_t length);

#endif
