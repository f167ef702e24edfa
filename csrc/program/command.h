/* command.h: the command line of the program. */

#ifndef SL_PROGRAM_COMMAND_H
#define SL_PROGRAM_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "../storyllamas.h"

/* What the command line asks for. Strings are those of argv and the environment. */
typedef struct {
    const char *model;       /* path of the weight file */
    const char *draft;       /* NULL: none */
    uint32_t draft_tokens;   /* tokens that it drafts at a time */
    const char *prompt_text; /* as it is given: the prompt, or - for standard input */
    const char *prompt_file; /* NULL: none */
    sl_options options;
    sl_model_options model_options;
    sl_session_options session_options;
    bool info;  /* print what is in the weight file, and generate nothing */
    bool bench; /* measure the speed */
    bool ids;   /* print token ids instead of text */
} command;

/* Read the command line; fail with a sentence if an argument is wrong, and exit after --help.
   Permutes argv: options come first. */
command command_parse(int argc, char **argv);

#endif
