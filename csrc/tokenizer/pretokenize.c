/* pretokenize.c: the regular expressions of byte-level pre-tokenizers, as functions.
 *
 *     GPT-2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *     SmolLM   every digit is a word, then GPT-2's on the text between digits
 *     Llama 3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}
 *              | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *
 * Each function returns the end of a match of one or two of them. One matches at any character. */

#include "pretokenize.h"

#include <stdbool.h>

#include "../storyllamas.h"

/* Return the classes of a character, by its range. */
static inline uint32_t classes_beyond_ascii(sl_word_scan *scan, size_t at) {
    const uint32_t point = sl_code_point(scan->text + at);
    if (point - scan->range.start >= scan->range.end - scan->range.start)
        scan->range = sl_unicode_range_of(point);
    return scan->range.classes;
}

/* Return the classes of the character at `at`; 0 at the end of the text. */
static inline uint32_t classes_at(sl_word_scan *scan, size_t at) {
    if (at >= scan->length) return 0;
    const uint32_t classes = sl_ascii_classes[(uint8_t)scan->text[at]];
    return classes ? classes : classes_beyond_ascii(scan, at);
}

/* Return the end of the run of characters that have one of the classes and none of the others. */
static inline size_t run_end(sl_word_scan *scan, size_t at, uint32_t classes, uint32_t others) {
    for (uint32_t found; (found = classes_at(scan, at)) & classes && !(found & others);)
        at += sl_code_bytes(scan->text[at]);
    return at;
}

static bool is_newline(char byte) {
    return byte == '\n' || byte == '\r';
}

/* Return the end of an English contraction such as 's, or `at` if there is none. */
static size_t contraction_end(const sl_word_scan *scan, size_t at, bool any_case) {
    const size_t left = scan->length - at;
    if (left < 2 || scan->text[at] != '\'') return at;
    const char fold = any_case ? 0x20 : 0;
    const char *text = scan->text + at;
    const char first = (char)(text[1] | fold);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    if (left < 3) return at;
    const char second = (char)(text[2] | fold);
    if ((first == 'r' || first == 'v') && second == 'e') return at + 3;
    if (first == 'l' && second == 'l') return at + 3;
    /* U+017F equals s if case is ignored. */
    if (any_case && text[1] == '\xc5' && text[2] == '\xbf') return at + 3;
    return at;
}

/* \s+(?!\S)|\s+. Return the end of a run of whitespace if the text ends there, else the start of
 * its last character, unless that is the only one. */
static size_t whitespace_end(sl_word_scan *scan, size_t at, size_t run, size_t text_end) {
    if (run == text_end) return run;
    const size_t last = sl_code_before(scan->text, run);
    return last > at ? last : run;
}

/* Match GPT-2's expression. A character of the classes `apart` ends a word and begins none. */
static inline size_t gpt2_end(sl_word_scan *scan, size_t at, uint32_t apart) {
    const size_t contraction = contraction_end(scan, at, false);
    if (contraction > at) return contraction;
    const bool space = scan->text[at] == ' ';
    const uint32_t first = classes_at(scan, at + space);
    const uint32_t word = first & (SL_LETTER | SL_NUMBER | SL_OTHER);
    if (word && !(first & apart)) return run_end(scan, at + space, word, apart);
    const size_t run = run_end(scan, at, SL_WHITE, 0);
    const bool ends = run == scan->length || classes_at(scan, run) & apart;
    return whitespace_end(scan, at, run, ends ? run : scan->length);
}

static size_t smollm_end(sl_word_scan *scan, size_t at) {
    if (classes_at(scan, at) & SL_DIGIT) return at + sl_code_bytes(scan->text[at]);
    return gpt2_end(scan, at, SL_DIGIT);
}

/* \p{N}{1,3} */
static size_t number_end(sl_word_scan *scan, size_t at) {
    for (int i = 0; i < 3 && classes_at(scan, at) & SL_NUMBER; i++)
        at += sl_code_bytes(scan->text[at]);
    return at;
}

/* \s*[\r\n]+. Return the end of the last line break in a run of whitespace, or `at` if there is
 * none. */
static size_t line_break_end(const sl_word_scan *scan, size_t at, size_t run) {
    while (run > at && !is_newline(scan->text[run - 1])) run--;
    return run;
}

static size_t llama3_end(sl_word_scan *scan, size_t at) {
    const size_t contraction = contraction_end(scan, at, true);
    if (contraction > at) return contraction;
    const uint32_t first = classes_at(scan, at);
    if (first & SL_LETTER) return run_end(scan, at, SL_LETTER, 0);
    if (first & SL_NUMBER) return number_end(scan, at);
    const size_t second = at + sl_code_bytes(scan->text[at]);
    if (!is_newline(scan->text[at]) && classes_at(scan, second) & SL_LETTER)
        return run_end(scan, second, SL_LETTER, 0);
    const size_t other = at + (scan->text[at] == ' ');
    if (classes_at(scan, other) & SL_OTHER) {
        size_t end = run_end(scan, other, SL_OTHER, 0);
        while (end < scan->length && is_newline(scan->text[end])) end++;
        return end;
    }
    const size_t run = run_end(scan, at, SL_WHITE, 0), lines = line_break_end(scan, at, run);
    return lines > at ? lines : whitespace_end(scan, at, run, scan->length);
}

size_t sl_word_end(sl_word_scan *scan, size_t at) {
    switch (scan->rule) {
    case SL_PRE_LLAMA3:
        return llama3_end(scan, at);
    case SL_PRE_SMOLLM:
        return smollm_end(scan, at);
    default:
        return gpt2_end(scan, at, 0);
    }
}
