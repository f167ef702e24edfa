/* main.c: the command-line program. */

#include <errno.h>
#include <float.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "platform.h"
#include "storyllamas.h"

static const sl_options defaults = SL_OPTIONS_DEFAULTS;
static const sl_model_options model_defaults = SL_MODEL_OPTIONS_DEFAULTS;
static const sl_session_options session_defaults = SL_SESSION_OPTIONS_DEFAULTS;

typedef struct {
    const char *model;
    const char *draft;       /* NULL: none */
    uint32_t draft_tokens;   /* 0: not given */
    const char *prompt_text; /* as it is given: the prompt, or - for standard input */
    const char *prompt_file;
    char *prompt; /* [prompt_length] */
    size_t prompt_length;
    sl_options options;
    sl_model_options model_options;
    sl_session_options session_options;
    bool info;
    bool bench;
    bool ids;
} command;

static _Noreturn void fail(const char *format, ...) SL_PRINTF(1);

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

static void flush(void) {
    if (fflush(stdout) || ferror(stdout))
        fail("standard output cannot be written: %s", strerror(errno));
}

/* Some systems report only here that a file could not be written. */
static void close_output(void) {
    flush();
    if (fclose(stdout)) fail("standard output cannot be written: %s", strerror(errno));
}

/* ---- Arguments ------------------------------------------------------------------------------- */

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

/* Read the prompt from a file. One line break at its end does not count. */
static void read_prompt(command *c, FILE *file, const char *name) {
    enum { MAX_BYTES = 1 << 26 }; /* more than any context holds; a device may not end */
    size_t capacity = 1 << 12;
    char *text = malloc(capacity);
    for (size_t n = 1; text && n;) {
        n = fread(text + c->prompt_length, 1, capacity - c->prompt_length, file);
        c->prompt_length += n;
        if (c->prompt_length > MAX_BYTES)
            fail("the prompt in %s has more than %d bytes: give a shorter one", name, MAX_BYTES);
        if (c->prompt_length == capacity) {
            char *larger = realloc(text, capacity *= 2);
            if (!larger) free(text);
            text = larger;
        }
    }
    if (!text) fail("not enough memory for the prompt");
    if (ferror(file)) fail("%s cannot be read: %s", name, strerror(errno));
    c->prompt = text;
    if (c->prompt_length && text[c->prompt_length - 1] == '\n') {
        c->prompt_length--;
        if (c->prompt_length && text[c->prompt_length - 1] == '\r') c->prompt_length--;
    }
}

/* Set the prompt from what is given. */
static void load_prompt(command *c) {
    const char *source = c->prompt_file ? c->prompt_file : c->prompt_text;
    if (source && !strcmp(source, "-")) {
        read_prompt(c, stdin, "standard input");
    } else if (c->prompt_file) {
        FILE *file = sl_program_file(source);
        if (!file) fail("%s cannot be read: %s", source, strerror(errno));
        read_prompt(c, file, source);
        fclose(file);
    } else {
        c->prompt_length = source ? strlen(source) : 0;
        c->prompt = malloc(c->prompt_length + 1);
        if (!c->prompt) fail("not enough memory for the prompt");
        memcpy(c->prompt, source ? source : "", c->prompt_length);
    }
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

static command parse(int argc, char **argv) {
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
    c.model = argv[optind++];
    if (optind < argc) set_prompt(&c, argv[optind++]);
    if (optind < argc)
        fail("\"%s\" is one argument too many: put the prompt in quotes", argv[optind]);
    return c;
}

/* ---- Generating ------------------------------------------------------------------------------ */

static double seconds(void) {
    return 1e-9 * (double)sl_clock();
}

static void print_prompt_ids(const sl_model *model, const command *c) {
    const size_t capacity = 3 * (c->prompt_length + 1);
    int32_t *ids = malloc(capacity * sizeof *ids);
    size_t count;
    if (!ids) fail("not enough memory for the prompt");
    const sl_tokenizer *tokenizer = sl_model_tokenizer(model);
    check(sl_encode(tokenizer, NULL, c->prompt, c->prompt_length, ids, capacity, &count));
    const int32_t bos_id = sl_model_info(model)->bos_id;
    if (sl_model_info(model)->adds_bos) printf("%" PRId32 " ", bos_id);
    for (size_t i = 0; i < count; i++) printf("%" PRId32 " ", ids[i]);
    free(ids);
}

static void print_story(const command *c, const sl_model *model, sl_session *session) {
    const double start = seconds();
    check(sl_start(session, c->prompt, c->prompt_length, &c->options));
    const double prompt_end = seconds();
    if (c->ids)
        print_prompt_ids(model, c);
    else
        fwrite(c->prompt, 1, c->prompt_length, stdout);
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

/* ---- Information and speed ------------------------------------------------------------------- */

static void print_rope_scaling(const sl_info *info) {
    if (info->rope_scaling == SL_ROPE_LINEAR)
        printf("rope scaling  linear, by %g\n", (double)info->rope_factor);
    if (info->rope_scaling == SL_ROPE_LLAMA3)
        printf("rope scaling  llama3, by %g from %" PRIu32 " positions\n",
               (double)info->rope_factor, info->rope_original_context);
}

static void print_type(const char *name, uint32_t type, uint32_t group_size) {
    printf("%-13s %s", name, sl_type_name(type));
    if (group_size) printf(", a scale for %" PRIu32 " columns", group_size);
    putchar('\n');
}

static void print_chat(const sl_model *model) {
    size_t count, length;
    const uint32_t *ids = sl_extra_eos_ids(model, &count);
    const char *template = sl_chat_template(model, &length);
    if (count) printf("extra eos    ");
    for (size_t i = 0; i < count; i++) printf(" %" PRIu32, ids[i]);
    if (count) putchar('\n');
    if (template) printf("chat template %zu bytes\n", length);
}

static void print_info(const sl_model *model) {
    const sl_info *info = sl_model_info(model);
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
    printf("classifier    %s\n", info->tied ? "tied to the embedding" : "not tied");
    printf("rope theta    %g\n", (double)info->rope_theta);
    print_rope_scaling(info);
    printf("norm epsilon  %g\n", (double)info->norm_eps);
    printf("special ids   unk %" PRId32 ", bos %" PRId32 ", eos %" PRId32 ", pad %" PRId32 "\n",
           info->unk_id, info->bos_id, info->eos_id, info->pad_id);
    print_chat(model);
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

/* Print the tokens per second of a prompt, and of a story with the given options. */
static void bench(const command *c, const sl_info *info, sl_session *session) {
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

int main(int argc, char **argv) {
    argv = sl_program_start(&argc, argv);
    command c = parse(argc, argv);
    if (!c.info && !c.bench) load_prompt(&c);
    sl_model *model, *draft_model = NULL;
    sl_session *session = NULL, *draft = NULL;
    check(sl_model_open(&model, c.model, &c.model_options));
    if (!c.info) check(sl_session_new(&session, model, &c.session_options));
    if (!c.info && c.draft) {
        check(sl_model_open(&draft_model, c.draft, &c.model_options));
        /* A small model is fastest on one thread, while the others wait for the large one. */
        c.session_options.threads = 1;
        check(sl_session_new(&draft, draft_model, &c.session_options));
        check(sl_set_draft(session, draft,
                           c.draft_tokens ? c.draft_tokens : SL_DEFAULT_DRAFT_TOKENS));
    }
    if (c.info)
        print_info(model);
    else if (c.bench)
        bench(&c, sl_model_info(model), session);
    else
        print_story(&c, model, session);
    close_output();
    sl_session_free(session);
    sl_session_free(draft);
    sl_model_close(model);
    sl_model_close(draft_model);
    free(c.prompt);
    return EXIT_SUCCESS;
}
