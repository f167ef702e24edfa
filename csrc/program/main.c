/* main.c: the command-line program. */

#include <stdlib.h>

#include "../platform.h"
#include "../storyllamas.h"
#include "bench.h"
#include "command.h"
#include "info.h"
#include "output.h"
#include "prompt.h"
#include "story.h"

int main(int argc, char **argv) {
    argv = sl_program_start(&argc, argv);
    const command c = command_parse(argc, argv);
    prompt p = {0};
    if (!c.info && !c.bench) p = prompt_load(&c);
    sl_model *model, *draft_model = NULL;
    sl_session *session = NULL, *draft = NULL;
    check(sl_model_open(&model, c.model, &c.model_options));
    if (!c.info) check(sl_session_new(&session, model, &c.session_options));
    if (!c.info && c.draft) {
        check(sl_model_open(&draft_model, c.draft, &c.model_options));
        /* A small model is fastest on one thread, while the others wait for the large one. */
        sl_session_options options = c.session_options;
        options.threads = 1;
        check(sl_session_new(&draft, draft_model, &options));
        check(sl_set_draft(session, draft, c.draft_tokens));
    }
    if (c.info)
        print_info(model);
    else if (c.bench)
        bench(&c, sl_model_info(model), session);
    else
        print_story(&c, &p, model, session);
    close_output();
    sl_session_free(session);
    sl_session_free(draft);
    sl_model_close(model);
    sl_model_close(draft_model);
    free(p.text);
    return EXIT_SUCCESS;
}
