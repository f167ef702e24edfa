/* main.c: the command line of the engine. */

#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "storyllamas.h"

static const sl_options defaults = SL_DEFAULTS;
static const sl_model_options opening_defaults = SL_MODEL_DEFAULTS;
static const sl_session_options session_defaults = SL_SESSION_DEFAULTS;

typedef struct {
    const char *model;
    const char *prompt;
    sl_options options;
    sl_model_options opening;
    sl_session_options session;
    bool info;
    bool bench;
    bool ids;
} command;

static _Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

static _Noreturn void fail(const char *format, ...) {
    va_list arguments;
    fputs("error: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

static void check(int status) {
    if (status) fail("%s", sl_error());
}

/* ---- Arguments ------------------------------------------------------------------------------- */

static void print_help(void) {
    printf(
        "run: tell a story with a StoryLlamas weight file\n"
        "\n"
        "usage: run MODEL.slm [options] [PROMPT]\n"
        "\n"
        "The story goes to standard output as it is told, a line about speed to standard error.\n"
        "It ends with the model's end-of-story token, after --tokens tokens, or when the model's\n"
        "context is full. Without a prompt the model begins by itself.\n"
        "\n"
        "options\n"
        "  -i, --prompt TEXT            how the story begins, in UTF-8\n"
        "  -n, --tokens N               most tokens to tell, 1 and up (%" PRId32 ");\n"
        "                               0 after -n is until the context is full\n"
        "  -s, --seed N                 0 and up; the same seed tells the same story (%" PRIu64
        ")\n"
        "  -t, --temperature X          0 to 1000; 0 always takes the likeliest token (%g)\n"
        "  -k, --top-k N                choose among the N likeliest tokens; 0 is off (%" PRId32
        ")\n"
        "  -p, --top-p X                choose among the likeliest tokens that together have\n"
        "                               probability X, above 0, up to 1; 1 is off (%g);\n"
        "                               0 after -p is off too\n"
        "      --min-p X                leave out tokens less likely than X times the likeliest,\n"
        "                               0 up to below 1; 0 is off (%g)\n"
        "      --repetition-penalty X   divide the logits of the last %" PRId32
        " tokens by X, above 0,\n"
        "                               up to 1000; 1 is off (%g)\n"
        "      --threads N              compute on N threads; 0 is as many as serve best (%" PRIu32
        ")\n"
        "      --pages KIND             shared (the file is mapped), huge (it is copied onto huge "
        "pages,\n"
        "                               which is faster if it is large) or auto (mapped, and "
        "copied\n"
        "                               beside the story if it is large) (auto)\n"
        "      --ids                    print token ids, the prompt's too, instead of text\n"
        "      --info                   print what is in the weight file\n"
        "      --bench                  measure speed: medians of five runs\n"
        "  -z FILE                      ignored: the tokenizer is in the weight file\n"
        "  -h, --help                   print this\n"
        "\n"
        "The short options are those of llama2.c. The environment variable SL_KERNELS forces one "
        "of\n"
        "the instruction sets that --info lists.\n"
        "\n"
        "examples\n"
        "  run model.slm \"Once upon a time\"\n"
        "  run model.slm --temperature 0 --tokens 100 --prompt \"Tom had a red ball\"\n"
        "  run model.slm -t 0.8 -p 0.9 -s 42 -n 256 -i \"One day\"\n",
        defaults.tokens, defaults.seed, (double)defaults.temperature, defaults.top_k,
        (double)defaults.top_p, (double)defaults.min_p, defaults.repetition_window,
        (double)defaults.repetition_penalty, session_defaults.threads);
}

static float parse_real(const char *name, const char *text) {
    char *end;
    const double value = strtod(text, &end);
    if (*text == '\0' || text[strspn(text, "+-.0123456789eE")] || *end || !isfinite(value))
        fail("%s is \"%s\" and must be a number", name, text);
    return (float)value;
}

static uint64_t parse_integer(const char *name, const char *text, uint64_t least, uint64_t most) {
    errno = 0;
    const bool is_digits = *text && !text[strspn(text, "0123456789")];
    const uint64_t value = is_digits ? strtoull(text, NULL, 10) : 0;
    if (!is_digits || errno || value < least || value > most)
        fail("%s is \"%s\" and must be a whole number from %" PRIu64 " to %" PRIu64, name, text,
             least, most);
    return value;
}

static int32_t parse_pages(const char *text) {
    static const char *const names[] = {
        [SL_PAGES_AUTO] = "auto", [SL_PAGES_SHARED] = "shared", [SL_PAGES_HUGE] = "huge"};
    for (int32_t kind = SL_PAGES_AUTO; kind <= SL_PAGES_HUGE; kind++)
        if (!strcmp(text, names[kind])) return kind;
    fail("--pages is \"%s\" and must be auto, shared or huge", text);
}

static void set_prompt(command *c, const char *prompt) {
    if (c->prompt) fail("the prompt is given twice: \"%s\" and \"%s\"", c->prompt, prompt);
    c->prompt = prompt;
}

enum { MIN_P = 256, REPETITION_PENALTY, IDS, INFO, BENCH, TOP_P, TOKENS, THREADS, PAGES };

static void parse_option(command *c, int option, const char *value) {
    sl_options *o = &c->options;
    switch (option) {
    case 'i':
        set_prompt(c, value);
        break;
    case 's':
        o->seed = parse_integer("--seed", value, 0, UINT64_MAX);
        break;
    case 't':
        o->temperature = parse_real("--temperature", value);
        break;
    case 'k':
        o->top_k = (int32_t)parse_integer("--top-k", value, 0, INT32_MAX);
        break;
    case TOP_P:
        o->top_p = parse_real("--top-p", value);
        break;
    case MIN_P:
        o->min_p = parse_real("--min-p", value);
        break;
    case REPETITION_PENALTY:
        o->repetition_penalty = parse_real("--repetition-penalty", value);
        break;
    case TOKENS:
        o->tokens = (int32_t)parse_integer("--tokens", value, 1, INT32_MAX);
        break;
    case 'n': /* llama2.c's: 0 is as many as fit */
        o->tokens = (int32_t)parse_integer("-n", value, 0, INT32_MAX);
        if (o->tokens == 0) o->tokens = INT32_MAX;
        break;
    case 'p': /* llama2.c's: 0 is off */
        o->top_p = parse_real("-p", value);
        if (o->top_p == 0) o->top_p = 1;
        break;
    case THREADS:
        c->session.threads = (uint32_t)parse_integer("--threads", value, 0, UINT32_MAX);
        break;
    case PAGES:
        c->opening.pages = parse_pages(value);
        break;
    case IDS:
        c->ids = true;
        break;
    case INFO:
        c->info = true;
        break;
    case BENCH:
        c->bench = true;
        break;
    case 'z':
        break;
    case 'h':
        print_help();
        exit(EXIT_SUCCESS);
    }
}

static command parse(int argc, char **argv) {
    static const char shorts[] = ":i:n:s:t:k:p:z:h";
    static const struct option longs[] = {
        {"prompt", required_argument, NULL, 'i'},
        {"tokens", required_argument, NULL, TOKENS},
        {"seed", required_argument, NULL, 's'},
        {"temperature", required_argument, NULL, 't'},
        {"top-k", required_argument, NULL, 'k'},
        {"top-p", required_argument, NULL, TOP_P},
        {"min-p", required_argument, NULL, MIN_P},
        {"repetition-penalty", required_argument, NULL, REPETITION_PENALTY},
        {"threads", required_argument, NULL, THREADS},
        {"pages", required_argument, NULL, PAGES},
        {"ids", no_argument, NULL, IDS},
        {"info", no_argument, NULL, INFO},
        {"bench", no_argument, NULL, BENCH},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    command c = {.options = defaults, .opening = opening_defaults, .session = session_defaults};
    c.opening.kernels = getenv("SL_KERNELS");
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        if (option == ':') fail("%s needs a value; --help explains", argv[optind - 1]);
        if (option == '?' && optopt < MIN_P && !strchr(shorts, optopt)) /* perhaps within "-nx" */
            fail("-%c is no option; --help lists them", optopt);
        if (option == '?') fail("%s is no option; --help lists them", argv[optind - 1]);
        parse_option(&c, option, optarg);
    }
    if (optind == argc) fail("no weight file is given: run MODEL.slm [PROMPT]; --help explains");
    c.model = argv[optind++];
    if (optind < argc) set_prompt(&c, argv[optind++]);
    if (optind < argc)
        fail("\"%s\" is one argument too many: put the prompt in quotes", argv[optind]);
    if (!c.prompt) c.prompt = "";
    return c;
}

/* ---- Telling --------------------------------------------------------------------------------- */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void flush(void) {
    if (fflush(stdout)) fail("the story cannot be written: %s", strerror(errno));
}

static void print_prompt_ids(const sl_model *model, const char *prompt) {
    const size_t capacity = 3 * (strlen(prompt) + 1);
    int32_t *ids = malloc(capacity * sizeof *ids);
    size_t count;
    if (!ids) fail("not enough memory for the prompt");
    const sl_tokenizer *tokenizer = sl_model_tokenizer(model);
    check(sl_encode(tokenizer, NULL, prompt, strlen(prompt), ids, capacity, &count));
    const int32_t bos_id = sl_model_info(model)->bos_id;
    if (bos_id >= 0) printf("%" PRId32 " ", bos_id);
    for (size_t i = 0; i < count; i++) printf("%" PRId32 " ", ids[i]);
    free(ids);
}

static void print_story(const command *c, const sl_model *model, sl_session *session) {
    const double start = seconds();
    check(sl_start(session, c->prompt, strlen(c->prompt), &c->options));
    const double prompted = seconds();
    if (c->ids)
        print_prompt_ids(model, c->prompt);
    else
        fputs(c->prompt, stdout);
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
    const size_t told = sl_story_tokens(session) - prompt_tokens;
    fprintf(stderr, "%zu tokens after a prompt of %zu in %.3f s, %.0f tokens/s; stopped at %s\n",
            told, prompt_tokens, end - start, (double)told / (end - prompted),
            sl_stop_name(piece.stop));
}

/* ---- Looking and measuring ------------------------------------------------------------------- */

static void print_type(const char *what, uint32_t type, uint32_t group_size) {
    if (type == SL_F32)
        printf("%-13s f32\n", what);
    else
        printf("%-13s %s, a scale for %" PRIu32 " columns\n", what, type == SL_Q8 ? "q8" : "q4",
               group_size);
}

static void print_info(const sl_info *info) {
    printf("parameters    %" PRIu64 "\n", info->parameters);
    printf("file          %" PRIu64 " bytes\n", info->file_bytes);
    print_type("weights", info->weight_type, info->group_size);
    print_type("embedding", info->embedding_type, info->embedding_group_size);
    printf("dim           %" PRIu32 "\n", info->dim);
    printf("layers        %" PRIu32 "\n", info->layers);
    printf("heads         %" PRIu32 "\n", info->heads);
    printf("kv heads      %" PRIu32 "\n", info->kv_heads);
    printf("head dim      %" PRIu32 "\n", info->head_dim);
    printf("hidden        %" PRIu32 "\n", info->hidden);
    printf("context       %" PRIu32 "\n", info->context);
    printf("vocabulary    %" PRIu32 "\n", info->vocab_size);
    printf("classifier    %s\n", info->tied ? "tied to the embedding" : "of its own");
    printf("rope theta    %g\n", (double)info->rope_theta);
    printf("norm epsilon  %g\n", (double)info->norm_eps);
    printf("special ids   unk %" PRId32 ", bos %" PRId32 ", eos %" PRId32 ", pad %" PRId32 "\n",
           info->unk_id, info->bos_id, info->eos_id, info->pad_id);
    printf("kernels       %s of", info->kernels);
    for (size_t i = 0; sl_kernels_name(i); i++) printf(" %s", sl_kernels_name(i));
    putchar('\n');
}

enum { RUNS = 5, BENCH_PROMPT = 128 };

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double values[RUNS]) {
    qsort(values, RUNS, sizeof *values, compare);
    return values[RUNS / 2];
}

/* Tokens a second of a prompt, and of a story with the options given. */
static void bench(const command *c, const sl_info *info, sl_session *session) {
    const size_t half = info->context > 1 ? info->context / 2 : 1;
    const size_t prompt = half < BENCH_PROMPT ? half : BENCH_PROMPT;
    int32_t ids[BENCH_PROMPT];
    for (size_t i = 0; i < prompt; i++) ids[i] = (int32_t)(i * 31 % info->vocab_size);
    sl_options options = c->options;
    options.ignore_end = 1;
    double prompt_speed[RUNS], story_speed[RUNS];
    size_t told = 0;
    for (int run = 0; run < RUNS; run++) {
        const double start = seconds();
        check(sl_start_ids(session, ids, prompt, &options));
        prompt_speed[run] = (double)prompt / (seconds() - start);
        check(sl_start_ids(session, ids, 1, &options));
        const double begun = seconds();
        for (sl_piece piece = {0}; !piece.stop;) check(sl_next(session, &piece));
        told = sl_story_tokens(session) - 1;
        story_speed[run] = (double)told / (seconds() - begun);
    }
    printf("prompt of %zu tokens  %8.0f tokens/s\n", prompt, median(prompt_speed));
    printf("story of %zu tokens   %8.0f tokens/s\n", told, median(story_speed));
}

int main(int argc, char **argv) {
    const command c = parse(argc, argv);
    sl_model *model;
    sl_session *session;
    check(sl_model_open(&model, c.model, &c.opening));
    check(sl_session_new(&session, model, &c.session));
    if (c.info)
        print_info(sl_model_info(model));
    else if (c.bench)
        bench(&c, sl_model_info(model), session);
    else
        print_story(&c, model, session);
    flush();
    sl_session_free(session);
    sl_model_close(model);
    return EXIT_SUCCESS;
}
