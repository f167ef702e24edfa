/* prompt.c: the text that a story begins with, from where the command line says. */

#include "prompt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../platform.h"
#include "output.h"

/* Read the prompt from a file. A byte order mark and one line break at its end do not count. */
static prompt read_prompt(FILE *file, const char *name) {
    enum { MAX_BYTES = 1 << 26 }; /* more than any context holds; a device may not end */
    prompt p = {0};
    size_t capacity = 1 << 12;
    char *text = malloc(capacity);
    for (size_t n = 1; text && n;) {
        n = fread(text + p.length, 1, capacity - p.length, file);
        p.length += n;
        if (p.length > MAX_BYTES)
            fail("the prompt in %s has more than %d bytes: give a shorter one", name, MAX_BYTES);
        if (p.length == capacity) {
            char *larger = realloc(text, capacity *= 2);
            if (!larger) free(text);
            text = larger;
        }
    }
    if (!text) fail("not enough memory for the prompt");
    if (ferror(file)) fail("%s cannot be read: %s", name, strerror(errno));
    static const char byte_order_mark[] = "\xef\xbb\xbf";
    const size_t mark = sizeof byte_order_mark - 1;
    if (p.length >= mark && !memcmp(text, byte_order_mark, mark))
        memmove(text, text + mark, p.length -= mark);
    p.text = text;
    if (p.length && text[p.length - 1] == '\n') {
        p.length--;
        if (p.length && text[p.length - 1] == '\r') p.length--;
    }
    return p;
}

prompt prompt_load(const command *c) {
    const char *source = c->prompt_file ? c->prompt_file : c->prompt_text;
    if (source && !strcmp(source, "-")) return read_prompt(stdin, "standard input");
    if (c->prompt_file) {
        if (!*source) fail("the name of the file with the prompt is empty: name a file");
        FILE *file = sl_program_file(source);
        if (!file) fail("%s cannot be read: %s", source, strerror(errno));
        const prompt p = read_prompt(file, source);
        fclose(file);
        return p;
    }
    prompt p = {.length = source ? strlen(source) : 0};
    p.text = malloc(p.length + 1);
    if (!p.text) fail("not enough memory for the prompt");
    memcpy(p.text, source ? source : "", p.length);
    return p;
}
