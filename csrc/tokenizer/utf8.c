/* utf8.c: finds the characters in a text. */

#include "utf8.h"

#include <stdint.h>
#include <string.h>

int sl_utf8_character(const char *text, size_t length) {
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) return 1;
    /* The first byte gives the size and the range of the second byte. The range excludes overlong
     * forms, surrogates and code points beyond U+10FFFF. */
    int size = 0;
    uint8_t low = 0x80, high = 0xbf;
    if (s[0] >= 0xc2 && s[0] <= 0xdf) size = 2;
    if (s[0] >= 0xe0 && s[0] <= 0xef) size = 3;
    if (s[0] >= 0xf0 && s[0] <= 0xf4) size = 4;
    if (s[0] == 0xe0) low = 0xa0;
    if (s[0] == 0xed) high = 0x9f;
    if (s[0] == 0xf0) low = 0x90;
    if (s[0] == 0xf4) high = 0x8f;
    for (int i = 1; i < size; i++) {
        if ((size_t)i == length) return -1;
        if (s[i] < low || s[i] > high) return 0;
        low = 0x80;
        high = 0xbf;
    }
    return size;
}

size_t sl_utf8_valid(const char *text, size_t length) {
    size_t at = 0;
    while (at < length) {
        uint64_t eight;
        if (length - at >= sizeof eight) {
            memcpy(&eight, text + at, sizeof eight);
            if (!(eight & UINT64_C(0x8080808080808080))) {
                at += sizeof eight;
                continue;
            }
        }
        const int size = sl_utf8_character(text + at, length - at);
        if (size <= 0) break;
        at += (size_t)size;
    }
    return at;
}
