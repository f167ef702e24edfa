/* story.h: one story on standard output. */

#ifndef SL_PROGRAM_STORY_H
#define SL_PROGRAM_STORY_H

#include "../storyllamas.h"
#include "command.h"
#include "prompt.h"

/* Generate a story and print it token by token, then its speed to standard error. */
void print_story(const command *c, const prompt *p, const sl_model *model, sl_session *session);

#endif
