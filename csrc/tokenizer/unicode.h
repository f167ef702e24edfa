/* unicode.h: the classes of characters in the pre-tokenizers' regular expressions. */

#ifndef STORYLLAMAS_UNICODE_H
#define STORYLLAMAS_UNICODE_H

#include <stddef.h>
#include <stdint.h>

/* Classes of characters; a character may have several. */
enum {
    SL_LETTER = 1 << 0,         /* \p{L} */
    SL_NUMBER = 1 << 1,         /* \p{N} */
    SL_WHITE = 1 << 2,          /* \s */
    SL_WORD_CHARACTER = 1 << 3, /* \w, next to which a single_word token does not match */
    SL_DIGIT = 1 << 4,          /* isolated by the pre-tokenizer Digits */
    SL_OTHER = 1 << 5           /* [^\s\p{L}\p{N}] */
};

extern const uint32_t sl_unicode_ranges[];
extern const uint32_t sl_unicode_range_count;
extern const uint8_t sl_ascii_classes[256];

/* Code points start … end - 1, which have the same classes. */
typedef struct {
    uint32_t start;
    uint32_t end;
    uint32_t classes;
} sl_unicode_range;

/* Return the range of a code point. */
sl_unicode_range sl_unicode_range_of(uint32_t point);

/* Return the code point of the valid UTF-8 character at text. */
static inline uint32_t sl_code_point(const char *text) {
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) return s[0];
    if (s[0] < 0xe0) return (s[0] & 0x1fu) << 6 | (s[1] & 0x3fu);
    if (s[0] < 0xf0) return (s[0] & 0x0fu) << 12 | (s[1] & 0x3fu) << 6 | (s[2] & 0x3fu);
    return (s[0] & 0x07u) << 18 | (s[1] & 0x3fu) << 12 | (s[2] & 0x3fu) << 6 | (s[3] & 0x3fu);
}

/* Return the bytes of the valid UTF-8 character that begins with this byte. */
static inline uint32_t sl_code_bytes(char first) {
    const uint8_t byte = (uint8_t)first;
    return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

/* Return the start of the character that ends before text[at]; at is above 0. */
static inline size_t sl_code_before(const char *text, size_t at) {
    do at--;
    while (((uint8_t)text[at] & 0xc0) == 0x80);
    return at;
}

#endif
