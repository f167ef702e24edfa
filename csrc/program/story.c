/* story.c: one story on standard output, its speed on standard error. */

#include "story.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "output.h"
#include "seconds.h"

static void print_prompt_ids(const sl_model *model, const prompt *p) {
    const size_t capacity = 3 * (p->length + 1);
    int32_t *ids = malloc(capacity * sizeof *ids);
    size_t count;
    if (!ids) fail("not enough memory for the prompt");
    const sl_tokenizer *tokenizer = sl_model_tokenizer(model);
    check(sl_encode(tokenizer, NULL, p->text, p->length, ids, capacity, &count));
    const int32_t bos_id = sl_model_info(model)->bos_id;
    if (sl_model_info(model)->adds_bos) printf("%" PRId32 " ", bos_id);
    for (size_t i = 0; i < count; i++) printf("%" PRId32 " ", ids[i]);
    free(ids);
}

void print_story(const command *c, const prompt *p, const sl_model *model, sl_session *session) {
    const double start = seconds();
    check(sl_start(session, p->text, p->length, &c->options));
    const double prompt_end = seconds();
    if (c->ids)
        print_prompt_ids(model, p);
    else
        fwrite(p->text, 1, p->length, stdout);
    sl_piece piece;
    do {
        flush();
        check(sl_next(session, &piece));
        if (!c->ids)
            fwrite(piece.text, 1, piece.length, stdout);
        else if (!piece.stop)
            printf("%" PRId32 " ", piece.id);
    } while (!piece.stop);
    putchar('\n');
    flush();
    const double end = seconds();
    const size_t prompt_tokens = sl_prompt_tokens(session);
    const size_t generated = sl_sequence_tokens(session) - prompt_tokens;
    fprintf(stderr, "%zu tokens after a prompt of %zu in %.3f s, %.0f tokens/s; stopped at %s\n",
            generated, prompt_tokens, end - start, (double)generated / (end - prompt_end),
            sl_stop_name(piece.stop));
    size_t drafted, accepted;
    sl_draft_counts(session, &drafted, &accepted);
    if (drafted) fprintf(stderr, "%zu of %zu drafted tokens accepted\n", accepted, drafted);
}
