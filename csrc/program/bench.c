/* bench.c: the speed of a model, for --bench. */

#include "bench.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "output.h"
#include "seconds.h"

enum { RUNS = 5, BENCH_PROMPT = 128 };

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double values[RUNS]) {
    qsort(values, RUNS, sizeof *values, compare);
    return values[RUNS / 2];
}

void bench(const command *c, const sl_info *info, sl_session *session) {
    const size_t half = info->context > 1 ? info->context / 2 : 1;
    const size_t prompt = half < BENCH_PROMPT ? half : BENCH_PROMPT;
    int32_t ids[BENCH_PROMPT];
    for (size_t i = 0; i < prompt; i++) ids[i] = (int32_t)(i * 31 % info->vocab_size);
    sl_options options = c->options;
    options.ignore_eos = 1;
    double prompt_speed[RUNS], story_speed[RUNS];
    size_t generated = 0;
    for (int run = 0; run < RUNS; run++) {
        const double start = seconds();
        check(sl_start_ids(session, ids, prompt, &options));
        prompt_speed[run] = (double)prompt / (seconds() - start);
        check(sl_start_ids(session, ids, 1, &options));
        const double story_start = seconds();
        for (sl_piece piece = {0}; !piece.stop;) check(sl_next(session, &piece));
        generated = sl_sequence_tokens(session) - 1;
        story_speed[run] = (double)generated / (seconds() - story_start);
    }
    printf("prompt of %zu tokens  %8.0f tokens/s\n", prompt, median(prompt_speed));
    printf("story of %zu tokens   %8.0f tokens/s\n", generated, median(story_speed));
}
