/* prompt.h: the text that a story begins with. */

#ifndef SL_PROGRAM_PROMPT_H
#define SL_PROGRAM_PROMPT_H

#include <stddef.h>

#include "command.h"

typedef struct {
    char *text; /* [length] bytes, to be freed */
    size_t length;
} prompt;

/* Read the prompt from the argument, the file or the standard input that the command line names;
   fail if that is not possible. Without any of them it is empty. */
prompt prompt_load(const command *c);

#endif
