/* command.c: the command line of the program. */

#include "command.h"

#include <errno.h>
#include <float.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../platform.h"
#include "output.h"

static const sl_options defaults = SL_OPTIONS_DEFAULTS;
static const sl_model_options model_defaults = SL_MODEL_OPTIONS_DEFAULTS;
static const sl_session_options session_defaults = SL_SESSION_OPTIONS_DEFAULTS;

static void print_help(void) {
    printf(
        "run: generate a story with a StoryLlamas weight file\n"
        "\n"
        "usage: run MODEL.slm [options] [PROMPT]\n"
        "\n"
        "The program writes the story to standard output token by token, then its speed to\n"
        "standard error. The story ends when the model generates its end-of-story token,\n"
        "after --max-tokens tokens, or when the context is full.\n"
        "\n"
        "options\n"
        "  -i, --prompt TEXT            text that the story begins with, in UTF-8;\n"
        "                               - reads it from standard input\n"
        "  -f, --prompt-file FILE       read that text from FILE; a line break at its end\n"
        "                               does not count, nor at that of standard input\n"
        "  -n, --max-tokens N           generate at most N tokens, 1 and up (%" PRId32 ");\n"
        "                               -n 0: until the context is full\n"
        "      --ignore-eos             continue after the end-of-story token\n"
        "  -s, --seed N                 0 and up; same seed, same story (%" PRIu64 ");\n"
        "                               random takes one and prints it on standard error\n"
        "  -t, --temperature X          0 to 1000; 0 takes the most probable token (%g)\n"
        "  -k, --top-k N                sample from the N most probable tokens;\n"
        "                               0 is off (%" PRId32 ")\n"
        "  -p, --top-p X                sample from the most probable tokens that together\n"
        "                               have probability X, above 0, up to 1; 1 is off (%g);\n"
        "                               -p 0 is also off\n"
        "      --min-p X                exclude tokens less probable than X times the most\n"
        "                               probable one, 0 up to below 1; 0 is off (%g)\n"
        "      --repetition-penalty X   divide the logits of recent tokens by X, above 0,\n"
        "                               up to 1000; 1 is off (%g)\n"
        "      --repetition-window N    the last N tokens are recent, 0 and up (%" PRId32 ")\n"
        "      --threads N              use N threads; 0 is automatic (%" PRIu32 ")\n"
        "      --pages KIND             shared maps the file; huge copies it to huge pages,\n"
        "                               which is faster if it is large; auto maps it and\n"
        "                               moves a large file to huge pages later (auto)\n"
        "      --cache TYPE             keep keys and values as f32, f16 or q8 (8 bits, half the\n"
        "                               memory of f16); auto: with quantized weights q8\n"
        "                               if head_dim is 64 or more, else f16; with f32\n"
        "                               weights f32 (auto)\n"
        "      --draft FILE             let a smaller model with the same tokenizer draft tokens:\n"
        "                               the same story in less time if the model is many\n"
        "                               times larger\n"
        "      --draft-tokens N         tokens that it drafts at a time, 1 to %d (%d)\n"
        "      --ids                    print token ids instead of text, the prompt included\n"
        "      --info                   print what is in the weight file\n"
        "      --bench                  measure the speed: medians of five runs\n"
        "  -m MODE                      generate; for chat there is `storyllamas chat`\n"
        "  -z FILE                      ignored: the tokenizer is in the weight file\n"
        "  -h, --help                   print this help\n"
        "\n"
        "The short options are those of llama2.c. The environment variable SL_KERNELS selects\n"
        "one of the instruction sets that --info lists.\n"
        "\n"
        "examples\n"
        "  run model.slm \"Once upon a time\"\n"
        "  run model.slm --temperature 0 --max-tokens 100 --prompt \"Tom had a red ball\"\n"
        "  run model.slm -t 0.8 -p 0.9 -s 42 -n 256 -i \"One day\"\n"
        "  run model.slm --seed random -f beginning.txt\n",
        defaults.max_tokens, defaults.seed, (double)defaults.temperature, defaults.top_k,
        (double)defaults.top_p, (double)defaults.min_p, (double)defaults.repetition_penalty,
        defaults.repetition_window, session_defaults.threads, SL_MAX_DRAFT_TOKENS,
        SL_DEFAULT_DRAFT_TOKENS);
}

static float parse_real(const char *name, const char *text) {
    char *end;
    const double value = strtod(text, &end);
    if (*text == '\0' || text[strspn(text, "+-.0123456789eE")] || *end || !(fabs(value) <= DBL_MAX))
        fail("%s is \"%s\" and must be a number", name, text);
    return (float)value;
}

static uint64_t parse_integer(const char *name, const char *text, uint64_t min, uint64_t max) {
    errno = 0;
    const bool is_digits = *text && !text[strspn(text, "0123456789")];
    const uint64_t value = is_digits ? strtoull(text, NULL, 10) : 0;
    if (!is_digits || errno || value < min || value > max)
        fail("%s is \"%s\" and must be a whole number from %" PRIu64 " to %" PRIu64, name, text,
             min, max);
    return value;
}

static int32_t parse_pages(const char *text) {
    static const char *const names[] = {
        [SL_PAGES_AUTO] = "auto", [SL_PAGES_SHARED] = "shared", [SL_PAGES_HUGE] = "huge"};
    for (int32_t kind = SL_PAGES_AUTO; kind <= SL_PAGES_HUGE; kind++)
        if (!strcmp(text, names[kind])) return kind;
    fail("--pages is \"%s\" and must be auto, shared or huge", text);
}

static uint32_t parse_cache(const char *text) {
    static const char *const names[SL_CACHE_TYPES] = {[SL_CACHE_AUTO] = "auto",
                                                      [SL_CACHE_F32] = "f32",
                                                      [SL_CACHE_F16] = "f16",
                                                      [SL_CACHE_Q8] = "q8"};
    for (uint32_t type = 0; type < SL_CACHE_TYPES; type++)
        if (!strcmp(text, names[type])) return type;
    fail("--cache is \"%s\" and must be auto, f32, f16 or q8", text);
}

/* Take a seed of 32 bits from the system and print it, so that the story can be repeated. */
static uint64_t take_seed(void) {
    uint32_t seed;
    const int failure = sl_program_entropy(&seed, sizeof seed);
    if (failure)
        fail(SL_ENTROPY " has no random seed (%s): give a number with --seed", strerror(failure));
    fprintf(stderr, "seed %" PRIu32 "\n", seed);
    return seed;
}

static void check_mode(const char *mode) {
    if (!strcmp(mode, "chat"))
        fail("-m is \"chat\", and this program only generates: use `storyllamas chat MODEL.slm`");
    if (strcmp(mode, "generate")) fail("-m is \"%s\" and must be generate", mode);
}

static void set_prompt(command *c, const char *prompt) {
    const char *before = c->prompt_text ? c->prompt_text : c->prompt_file;
    if (before) fail("the prompt is given twice: \"%s\" and \"%s\"", before, prompt);
    c->prompt_text = prompt;
}

static void set_prompt_file(command *c, const char *path) {
    set_prompt(c, path);
    c->prompt_text = NULL;
    c->prompt_file = path;
}

/* Options without a letter, and those that differ from llama2.c's option with the letter. */
enum {
    MAX_TOKENS = 256,
    IGNORE_EOS,
    TOP_P,
    MIN_P,
    REPETITION_PENALTY,
    REPETITION_WINDOW,
    THREADS,
    PAGES,
    CACHE,
    DRAFT,
    DRAFT_TOKENS,
    IDS,
    INFO,
    BENCH
};

static void parse_option(command *c, int option, const char *value) {
    sl_options *o = &c->options;
    switch (option) {
    case 'i':
        set_prompt(c, value);
        break;
    case 'f':
        set_prompt_file(c, value);
        break;
    case 'm':
        check_mode(value);
        break;
    case 'y':
        fail("-y is a system prompt, and this program only generates: use `storyllamas chat "
             "MODEL.slm --system TEXT`");
    case 's':
        if (!strcmp(value, "random"))
            o->seed = take_seed();
        else
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
    case REPETITION_WINDOW:
        o->repetition_window = (int32_t)parse_integer("--repetition-window", value, 0, INT32_MAX);
        break;
    case MAX_TOKENS:
        o->max_tokens = (int32_t)parse_integer("--max-tokens", value, 1, INT32_MAX);
        break;
    case IGNORE_EOS:
        o->ignore_eos = 1;
        break;
    case 'n': /* as in llama2.c, 0 is until the context is full */
        o->max_tokens = (int32_t)parse_integer("-n", value, 0, INT32_MAX);
        if (o->max_tokens == 0) o->max_tokens = INT32_MAX;
        break;
    case 'p': /* as in llama2.c, 0 is off */
        o->top_p = parse_real("-p", value);
        if (o->top_p == 0) o->top_p = 1;
        break;
    case THREADS:
        c->session_options.threads = (uint32_t)parse_integer("--threads", value, 0, UINT32_MAX);
        break;
    case PAGES:
        c->model_options.pages = parse_pages(value);
        break;
    case CACHE:
        c->session_options.cache = parse_cache(value);
        break;
    case DRAFT:
        c->draft = value;
        break;
    case DRAFT_TOKENS:
        c->draft_tokens = (uint32_t)parse_integer("--draft-tokens", value, 1, SL_MAX_DRAFT_TOKENS);
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
        close_output();
        exit(EXIT_SUCCESS);
    }
}

command command_parse(int argc, char **argv) {
    static const char shorts[] = ":i:f:n:s:t:k:p:m:y:z:h";
    static const struct option longs[] = {
        {"prompt", required_argument, NULL, 'i'},
        {"prompt-file", required_argument, NULL, 'f'},
        {"max-tokens", required_argument, NULL, MAX_TOKENS},
        {"ignore-eos", no_argument, NULL, IGNORE_EOS},
        {"seed", required_argument, NULL, 's'},
        {"temperature", required_argument, NULL, 't'},
        {"top-k", required_argument, NULL, 'k'},
        {"top-p", required_argument, NULL, TOP_P},
        {"min-p", required_argument, NULL, MIN_P},
        {"repetition-penalty", required_argument, NULL, REPETITION_PENALTY},
        {"repetition-window", required_argument, NULL, REPETITION_WINDOW},
        {"threads", required_argument, NULL, THREADS},
        {"pages", required_argument, NULL, PAGES},
        {"cache", required_argument, NULL, CACHE},
        {"draft", required_argument, NULL, DRAFT},
        {"draft-tokens", required_argument, NULL, DRAFT_TOKENS},
        {"ids", no_argument, NULL, IDS},
        {"info", no_argument, NULL, INFO},
        {"bench", no_argument, NULL, BENCH},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    command c = {
        .options = defaults, .model_options = model_defaults, .session_options = session_defaults};
    c.model_options.kernels = getenv("SL_KERNELS");
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        if (option == ':') fail("%s needs a value; --help lists the options", argv[optind - 1]);
        if (option == '?' && optopt < MAX_TOKENS &&
            !strchr(shorts, optopt)) /* it may be within "-nx" */
            fail("-%c is not an option; --help lists the options", optopt);
        if (option == '?') fail("%s is not an option; --help lists the options", argv[optind - 1]);
        parse_option(&c, option, optarg);
    }
    if (optind == argc)
        fail("no weight file is given: run MODEL.slm [PROMPT]; --help lists the options");
    if (c.draft_tokens && !c.draft)
        fail("--draft-tokens is %" PRIu32 " and there is no draft: name one with --draft",
             c.draft_tokens);
    if (!c.draft_tokens) c.draft_tokens = SL_DEFAULT_DRAFT_TOKENS;
    c.model = argv[optind++];
    if (optind < argc) set_prompt(&c, argv[optind++]);
    if (optind < argc)
        fail("\"%s\" is one argument too many: put the prompt in quotes", argv[optind]);
    return c;
}
