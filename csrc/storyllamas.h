/* storyllamas.h: generate stories with a small Llama model.
 *
 *     sl_model *model;
 *     sl_session *session;
 *     if (sl_model_open(&model, "model.slm", NULL) ||
 *         sl_session_new(&session, model, NULL)) {
 *         fprintf(stderr, "%s\n", sl_error());
 *         return 1;
 *     }
 *     sl_options options = SL_OPTIONS_DEFAULTS;
 *     options.seed = 7;
 *
 *     const char *prompt = "Once upon a time";
 *     sl_piece piece;
 *     int status = sl_start(session, prompt, strlen(prompt), &options);
 *     while (!status && !(status = sl_next(session, &piece))) {
 *         fwrite(piece.text, 1, piece.length, stdout);
 *         if (piece.stop) break;
 *     }
 *     sl_session_free(session);
 *     sl_model_close(model);
 *
 * A model is read-only once it is open. Any number of threads may share it. A session holds one
 * sequence or a batch of them, with key-value caches, scratch memory and a thread pool.
 * sl_session_new allocates all of that, or takes it from memory of yours; generating a token
 * allocates nothing. One thread at a time may use a session. Free a model's sessions before you
 * close the model.
 *
 * The child of a fork may use and free all that it inherits. A session starts new threads there. If
 * another thread of the parent was within sl_next or sl_step, that session's sequences are lost in
 * the child: the next such call is SL_ERROR_ARGUMENT, unless one is started first.
 *
 * A function that can fail returns SL_OK (zero) or an error code; sl_error() then returns a message
 * for the user. The library never prints, never exits and never reads the environment.
 */

#ifndef STORYLLAMAS_H
#define STORYLLAMAS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* SL_API marks what a shared library exports. Define SL_BUILD_DLL to build one for Windows. */
#if defined(_WIN32) && defined(SL_BUILD_DLL)
#define SL_API __declspec(dllexport)
#elif defined(__GNUC__) && !defined(_WIN32)
#define SL_API __attribute__((visibility("default")))
#else
#define SL_API
#endif

/* The defaults of sl_options. */
#define SL_OPTIONS_DEFAULTS                                                                        \
    {                                                                                              \
        .temperature = 0.8f,                                                                       \
        .top_k = 0,                                                                                \
        .top_p = 0.9f,                                                                             \
        .min_p = 0.0f,                                                                             \
        .repetition_penalty = 1.0f,                                                                \
        .repetition_window = 64,                                                                   \
        .seed = 42,                                                                                \
        .max_tokens = 512,                                                                         \
        .ignore_eos = 0,                                                                           \
        .logprobs = 0,                                                                             \
    }

/* The defaults of sl_model_options: automatic. */
#define SL_MODEL_OPTIONS_DEFAULTS {.pages = SL_PAGES_AUTO, .kernels = NULL}

/* The defaults of sl_session_options: one slot, the rest automatic. */
#define SL_SESSION_OPTIONS_DEFAULTS                                                                \
    {.threads = 0, .slots = 1, .cache = SL_CACHE_AUTO, .chunk = 0, .context = 0}

/* The Python package reads the declarations between "cffi: begin" and "cffi: end". */
/* cffi: begin */

typedef struct sl_model sl_model;
typedef struct sl_session sl_session;
typedef struct sl_tokenizer sl_tokenizer;
typedef struct sl_word_cache sl_word_cache;

enum {
    SL_OK = 0,
    SL_ERROR_FILE,     /* the weight file cannot be opened or read */
    SL_ERROR_FORMAT,   /* the file is not a weight file, or it is damaged */
    SL_ERROR_MEMORY,   /* there is not enough memory */
    SL_ERROR_ARGUMENT, /* an argument is out of range */
    SL_ERROR_TEXT,     /* a text is not valid UTF-8 */
    SL_ERROR_NUMBER    /* the model's logits are not finite */
};

/* Return the message of the calling thread's last error: one sentence without a full stop, never
 * NULL. It is valid until the thread's next call that fails. */
SL_API const char *sl_error(void);

/* ---- Models ---------------------------------------------------------------------------------- */

/* Weight types: 32-bit floats, or integers of 8 or 4 bits with a scale for each group. */
enum { SL_F32 = 0, SL_Q8, SL_Q4, SL_TYPE_COUNT };

/* Return "f32", "q8" or "q4", or NULL if there is no such weight type. */
SL_API const char *sl_type_name(uint32_t type);

/* Scaling of the rotary frequencies, for a longer context than that of the training. */
enum {
    SL_ROPE_NONE = 0,
    SL_ROPE_LINEAR, /* all frequencies are divided by rope_factor */
    SL_ROPE_LLAMA3, /* only low frequencies are divided, as in Llama 3.1 */
    SL_ROPE_SCALINGS
};

typedef struct {
    uint32_t dim;      /* width of the residual stream */
    uint32_t layers;   /* transformer blocks */
    uint32_t heads;    /* query heads */
    uint32_t kv_heads; /* key and value heads; divides heads */
    uint32_t head_dim; /* width of a head; even */
    uint32_t hidden;   /* width of the feed-forward layer */
    uint32_t context;  /* the largest number of positions */
    uint32_t vocab_size;
    float rope_theta;              /* base of the rotary frequencies */
    float norm_eps;                /* added to the mean square in RMSNorm */
    uint32_t weight_type;          /* of the matrices in the layers: SL_F32, SL_Q8 or SL_Q4 */
    uint32_t group_size;           /* columns that share a scale; 0 for SL_F32 */
    uint32_t embedding_type;       /* of the embedding and the classifier */
    uint32_t embedding_group_size; /* 0 for SL_F32 */
    int32_t unk_id;                /* -1: there is none */
    int32_t bos_id;                /* -1: there is none */
    int32_t eos_id;                /* -1: there is none */
    int32_t pad_id;                /* -1: there is none */
    uint32_t tied;                 /* 1: the classifier is the embedding */
    uint32_t adds_bos;             /* 1: a prompt gets BOS in front */
    uint32_t rope_scaling;         /* one of SL_ROPE_…; for SL_ROPE_NONE the next four are 0 */
    float rope_factor;             /* frequencies are divided by it */
    float rope_low_freq_factor;    /* for SL_ROPE_LLAMA3, see attention.c; 0 for SL_ROPE_LINEAR */
    float rope_high_freq_factor;
    uint32_t rope_original_context;
    uint64_t parameters;
    uint64_t file_bytes;
    const char *kernels; /* name of the instruction set in use, such as "scalar" */
} sl_info;

/* The memory pages of the weights. Huge pages make generating up to 1.4 times faster if the file is
 * larger than the processor's caches, but each process then has its own copy of the file. */
enum {
    SL_PAGES_AUTO = 0, /* mapped; a file of 8 MB or more moves to huge pages after a few tokens */
    SL_PAGES_SHARED,   /* mapped: all processes share the memory */
    SL_PAGES_HUGE      /* copied, to huge pages if the system has them */
};

typedef struct {
    int32_t pages;       /* one of SL_PAGES_… */
    const char *kernels; /* name of an instruction set, see sl_kernels_name; NULL: the fastest */
} sl_model_options;

/* Open a weight file and check everything in it. options may be NULL for the defaults. Nobody may
 * write to the file while it is open, except with SL_PAGES_HUGE. You may replace it by renaming
 * another file. */
SL_API int sl_model_open(sl_model **model, const char *path, const sl_model_options *options);

/* Open a weight file that is in memory: data[bytes], the whole file, at a multiple of 64 bytes. The
 * model uses the data in place. It never copies, changes or frees them. Keep them as they are until
 * you close the model.
 *
 * The call checks everything as sl_model_open does, and a message calls the file "data". options
 * may be NULL for the defaults; its pages must be SL_PAGES_AUTO or SL_PAGES_SHARED, which mean the
 * same here. Data that are NULL or not aligned are SL_ERROR_ARGUMENT. Data that are empty, cut
 * short or damaged are SL_ERROR_FORMAT. */
SL_API int sl_model_open_memory(sl_model **model, const void *data, size_t bytes,
                                const sl_model_options *options);

/* Return the name of an instruction set that this processor runs, the fastest at index 0, or NULL
 * if the index is too high. */
SL_API const char *sl_kernels_name(size_t index);

/* NULL is a no-op. */
SL_API void sl_model_close(sl_model *model);

/* Return the shape, types and token ids of a model. The result is valid as long as the model. */
SL_API const sl_info *sl_model_info(const sl_model *model);

/* Return the chat template of a model, in the language of Jinja, and its length in bytes. It is
 * valid UTF-8 without a final NUL, and valid as long as the model. NULL: there is none. */
SL_API const char *sl_chat_template(const sl_model *model, size_t *length);

/* Return the ids besides eos_id that end a sequence, such as that of the token that ends a turn of
 * a chat, and their number. They rise, and are valid as long as the model. */
SL_API const uint32_t *sl_extra_eos_ids(const sl_model *model, size_t *count);

/* ---- Text and tokens ------------------------------------------------------------------------- */

/* Return the tokenizer of a model. It is valid as long as the model. Do not close it. */
SL_API const sl_tokenizer *sl_model_tokenizer(const sl_model *model);

/* Kinds of byte-pair encoding. The last two merge by rank, as Hugging Face's tokenizer.json. */
enum {
    SL_SENTENCEPIECE = 0, /* neighbours that form a piece merge, the highest score first */
    SL_BPE,               /* characters merge; U+2581 replaces a space */
    SL_BYTE_LEVEL,        /* bytes merge */
    SL_TOKENIZER_KINDS
};

/* Pre-tokenizers cut a text into words. No merge crosses the end of a word.
 * tokenizer/pretokenize.c has the regular expressions of the last three. */
enum {
    SL_PRE_NONE = 0, /* the text is one word */
    SL_PRE_SPACES,   /* a word begins at every space; only for SL_BPE */
    SL_PRE_GPT2,     /* only for SL_BYTE_LEVEL, as the next two are */
    SL_PRE_LLAMA3,
    SL_PRE_SMOLLM,
    SL_PRE_TOKENIZERS
};

/* Spaces that decoding removes from the text of SL_BPE ids. */
enum {
    SL_STRIP_NONE = 0,
    SL_STRIP_SPACE, /* one space at the beginning of the text */
    SL_STRIP_FIRST, /* every space of the first piece */
    SL_STRIPS
};

/* A merge of two neighbouring pieces. The rank of a merge is its index; the lowest merges first. */
typedef struct {
    uint32_t left;
    uint32_t right;
} sl_merge_pair;

/* Flags of an added token. */
enum {
    SL_ADDED_SPECIAL = 1 << 0,     /* only sl_encode_special finds it in a text */
    SL_ADDED_LSTRIP = 1 << 1,      /* the match includes the whitespace before it */
    SL_ADDED_RSTRIP = 1 << 2,      /* the match includes the whitespace after it */
    SL_ADDED_NORMALIZED = 1 << 3,  /* is searched for after spaces have become U+2581 */
    SL_ADDED_SINGLE_WORD = 1 << 4, /* is found only where no neighbouring character is \w */
    SL_ADDED_APART = 1 << 5,       /* only a match in a text gives its id, never a merge */
    SL_ADDED_FLAGS = (1 << 6) - 1
};

/* A piece that is found in a text before the text is cut into words. */
typedef struct {
    uint32_t id;
    uint32_t flags;
} sl_added_token;

/* A byte-pair vocabulary. The arrays and the text are those of the weight file, which is described
 * below. */
typedef struct {
    uint32_t size;           /* pieces; 1 … 2^20 */
    const float *scores;     /* [size] merge priority, the highest merges first; SL_SENTENCEPIECE */
    const uint32_t *offsets; /* [size + 1] piece i is text[offsets[i] … offsets[i + 1] - 1] */
    const uint8_t *types;    /* [size] */
    const char *text;        /* [text_bytes] */
    size_t text_bytes;
    int32_t unk_id;        /* -1: there is none */
    int32_t dummy_prefix;  /* 1: a text gets a space in front */
    int32_t byte_fallback; /* 1: a character without a piece becomes byte pieces */

    /* Zero for SL_SENTENCEPIECE. */
    int32_t kind;          /* SL_SENTENCEPIECE, SL_BPE or SL_BYTE_LEVEL */
    int32_t pre_tokenizer; /* one of SL_PRE_… */
    int32_t strip;         /* one of SL_STRIP_… */
    /* When a text is normalized: when it gets the dummy prefix and its spaces become U+2581.
     * 1: after all added tokens are found, each text between them; a text that begins with a space
     * gets no prefix. 0: before normalized added tokens are found; every text gets the prefix. */
    int32_t metaspace;
    int32_t prefix_first;  /* 1: only the beginning of the whole text gets the dummy prefix */
    int32_t fuse_unk;      /* 1: neighbouring unknown pieces become one */
    int32_t ignore_merges; /* 1: a word that is a piece is not merged */
    uint32_t merge_count;
    const sl_merge_pair *merges; /* [merge_count] */
    uint32_t added_count;
    const sl_added_token *added; /* [added_count], sorted by id */
} sl_vocabulary;

/* Make a tokenizer without a model. The call checks the arrays and copies them. Any number of
 * threads may share a tokenizer. */
SL_API int sl_tokenizer_open(sl_tokenizer **tokenizer, const sl_vocabulary *vocabulary);

/* NULL is a no-op. */
SL_API void sl_tokenizer_close(sl_tokenizer *tokenizer);

/* Make a cache of words and their ids, 4 MiB for any text. It makes encoding a long text many times
 * faster and never changes an id. Use it with the tokenizer that it was made for, from one thread
 * at a time, and free it before you close the tokenizer. */
SL_API int sl_word_cache_new(sl_word_cache **cache, const sl_tokenizer *tokenizer);

/* NULL is a no-op. */
SL_API void sl_word_cache_free(sl_word_cache *cache);

/* Return a piece as the vocabulary spells it, such as "<s>", and its length in bytes. It has no
 * final NUL, and is valid as long as the tokenizer. NULL: the id is not in the vocabulary. */
SL_API const char *sl_token_text(const sl_tokenizer *tokenizer, int32_t id, size_t *length);

/* Encode a text: write the ids that SentencePiece or, for the other kinds, the tokenizers library
 * of Hugging Face gives it, without BOS and EOS.
 *
 * text[length] is UTF-8, at most 2^30 bytes, and may contain NUL bytes. An empty text has no ids.
 * A control piece or special token written in the text, such as "<s>", is plain text; other added
 * tokens are found. cache may be NULL. The call sets *count to the number of ids. If
 * that exceeds capacity it writes the first ids and fails with SL_ERROR_ARGUMENT.
 * 3 * (length + 1) ids are always enough. The contents of ids[] after the last id are undefined.
 * The time is linear in the text, and O(n log n) in a word of n bytes. */
SL_API int sl_encode(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                     size_t length, int32_t *ids, size_t capacity, size_t *count);

/* Encode a text whose author you trust, such as a chat template. As sl_encode, but a control
 * piece or special token written in the text becomes its id. */
SL_API int sl_encode_special(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                             size_t length, int32_t *ids, size_t capacity, size_t *count);

/* Encode many stories into one array of ids. Story i is text[offsets[i] … offsets[i + 1] - 1], for
 * i below stories. bos_id comes before each story's ids and eos_id after them, unless negative.
 * 3 * bytes + 5 * stories ids are always enough. Otherwise as sl_encode. */
SL_API int sl_encode_stories(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                             const uint64_t *offsets, size_t stories, int32_t bos_id,
                             int32_t eos_id, int32_t *ids, size_t capacity, size_t *count);

/* Decode ids[count]: write their text as valid UTF-8, without a final NUL.
 *
 * A control piece has no text. The unknown piece of SL_SENTENCEPIECE is " \u2047 ". Byte pieces
 * form characters; a byte that is part of no character becomes U+FFFD. For SL_BYTE_LEVEL, the bytes
 * of an incomplete character become one U+FFFD. The dummy prefix is removed. The call sets *length
 * to the number of bytes. If that exceeds capacity it fails with SL_ERROR_ARGUMENT. The contents of
 * text[] after the last byte are undefined. */
SL_API int sl_decode(const sl_tokenizer *tokenizer, const int32_t *ids, size_t count, char *text,
                     size_t capacity, size_t *length);

/* ---- Generating ------------------------------------------------------------------------------ */

/* Options of sampling the next token. The steps apply in this order, each to the tokens that remain
 * after the step before:
 *
 *   1. repetition_penalty: among the tokens that occur in the last repetition_window positions,
 *      prompt included, a positive logit is divided by the penalty and any other is multiplied by
 *      it (Keskar et al. 2019, arXiv:1909.05858);
 *   2. temperature: the logits are divided by it; softmax turns them into probabilities. At 0 the
 *      token with the largest logit is taken, the lowest id among equals, and steps 3 to 5 are
 *      skipped;
 *   3. top_k: the k most probable tokens remain, among equals those of lower id;
 *   4. top_p: the most probable tokens remain, as few as have at least the fraction p of the
 *      remaining probability together (Holtzman et al. 2020, arXiv:1904.09751);
 *   5. min_p: tokens less probable than min_p times the most probable one are removed
 *      (Nguyen et al. 2024, arXiv:2407.01082).
 *
 * Then one of the remaining tokens is drawn. If top_k, top_p or min_p is on they are sorted from
 * the most to the least probable, the lower id first among equals; else by id. The result is the
 * first token at which the running sum of probabilities exceeds u times their total.
 * u = (x >> 11) / 2^53, where x is the next number of xoshiro256** (Blackman & Vigna 2018,
 * arXiv:1805.01407). The generator's four words of state are the first four numbers of splitmix64
 * started at the seed. Each token uses one number, or none at temperature 0. */
typedef struct {
    float temperature;         /* 0 … 1000; 0 is greedy */
    int32_t top_k;             /* 0 and up; 0 is off */
    float top_p;               /* above 0, up to 1; 1 is off */
    float min_p;               /* 0 up to below 1; 0 is off */
    float repetition_penalty;  /* above 0, up to 1000; 1 is off */
    int32_t repetition_window; /* 0 and up */
    uint64_t seed;
    int32_t max_tokens; /* to generate, not counting the prompt; 1 and up */
    int32_t ignore_eos; /* 1: continue after EOS and BOS, to measure speed */
    int32_t
        logprobs; /* 0 … SL_MAX_LOGPROBS; each piece shows as many of the most probable tokens */
} sl_options;

enum { SL_MAX_LOGPROBS = 20 };

enum {
    SL_RUNNING = 0,
    SL_STOP_EOS,        /* the model generated EOS or one of sl_extra_eos_ids: the story ends */
    SL_STOP_BOS,        /* the model generated BOS: another story begins */
    SL_STOP_MAX_TOKENS, /* options.max_tokens tokens are generated */
    SL_STOP_CONTEXT,    /* the sequence fills the context */
    SL_STOP_CALLBACK,   /* the callback of sl_generate returned non-zero */
    SL_IDLE,            /* no sequence has been started */
    SL_STOP_COUNT
};

/* Return "running", "eos", "bos", "max_tokens", "context", "callback" or "idle". */
SL_API const char *sl_stop_name(int32_t stop);

/* A token and its log probability, the natural logarithm, in the model's own distribution: that of
 * temperature 1 before any step of sl_options. */
typedef struct {
    int32_t id;
    float logprob;
} sl_logprob;

/* A generated token. The text is always valid UTF-8. A character of several tokens comes with
 * the last of them, so the text of a token may be empty. */
typedef struct {
    const char *text;      /* valid until the session's next call; no final NUL */
    size_t length;         /* in bytes */
    int32_t id;            /* the token; -1: the sequence stopped without one */
    int32_t stop;          /* SL_RUNNING, or why the sequence ends here */
    float logprob;         /* of the token; 0 if options.logprobs is 0 or there is no token */
    size_t top_count;      /* options.logprobs, or fewer in a small vocabulary; 0 without a token */
    const sl_logprob *top; /* [top_count], the most probable first; valid as long as text */
} sl_piece;

enum { SL_MAX_SLOTS = 256 };

/* Types of the keys and values in the key-value cache. */
enum {
    SL_CACHE_AUTO = 0, /* with quantized weights q8 if head_dim is 64 or more, else f16; else f32 */
    SL_CACHE_F32,
    SL_CACHE_F16,
    SL_CACHE_Q8, /* 8-bit integers with an f32 scale for each position's key and value in a head */
    SL_CACHE_TYPES
};

enum { SL_MAX_CHUNK = 1024 };

/* Of these, only the type of the cache and the context change what is generated. */
typedef struct {
    /* Size of the thread pool, with the calling thread counted, 1 … 64; 0: automatic. The session
     * measures how many of these threads are fastest, and uses as many. */
    uint32_t threads;
    uint32_t slots; /* largest number of sequences in a batch, 1 … SL_MAX_SLOTS */
    uint32_t cache; /* one of SL_CACHE_… */
    /* Largest number of a prompt's tokens that go through the model together, 1 … SL_MAX_CHUNK; 0:
     * automatic, 128. Fewer take less memory, and prompts take longer. */
    uint32_t chunk;
    /* Largest number of positions of a sequence, 1 … the model's context; 0: automatic, the model's
     * context. Fewer take less memory; a sequence ends earlier with SL_STOP_CONTEXT. */
    uint32_t context;
    /* [memory_bytes] at a multiple of 64 bytes: the caller's memory for the session. It holds all
     * that the session needs, but for threads: with one thread the session allocates nothing, then
     * or later. Keep it until you free the session, and free it yourself. NULL: allocated. */
    void *memory;
    size_t memory_bytes; /* at least sl_session_bytes */
} sl_session_options;

/* Return the bytes of memory that a session with these options takes, or 0 after an error. The
 * options' memory does not matter. options may be NULL for the defaults. */
SL_API size_t sl_session_bytes(const sl_model *model, const sl_session_options *options);

/* Make a session. options may be NULL for the defaults. */
SL_API int sl_session_new(sl_session **session, const sl_model *model,
                          const sl_session_options *options);

/* NULL is a no-op. */
SL_API void sl_session_free(sl_session *session);

/* Start a sequence: put BOS and the ids of the prompt through the model. The prompt may be empty. A
 * prompt with more tokens than the context is SL_ERROR_ARGUMENT. A session in the caller's memory
 * has no other memory to encode a prompt: a word of hundreds of bytes, or a long prompt if the
 * chunk is small, may be SL_ERROR_MEMORY. */
SL_API int sl_start(sl_session *session, const char *prompt, size_t length,
                    const sl_options *options);

/* Start a sequence with ids[count], count at least 1. They include BOS if you want it. */
SL_API int sl_start_ids(sl_session *session, const int32_t *ids, size_t count,
                        const sl_options *options);

/* Start a sequence as sl_start_ids does, with the same result, but faster: ids that the sequence in
 * slot 0 also begins with stay in the key-value cache and are not computed again. Use it for a
 * conversation, where the ids begin with those of the turns before. The call sets *kept to the
 * number of ids that stayed; kept may be NULL. After an error the old sequence is still there, but
 * not after SL_ERROR_NUMBER. */
SL_API int sl_continue_ids(sl_session *session, const int32_t *ids, size_t count,
                           const sl_options *options, size_t *kept);

/* Generate the next token. After the sequence has stopped, a call returns the same stop again, with
 * an empty text. */
SL_API int sl_next(sl_session *session, sl_piece *piece);

/* Return the number of tokens in the prompt, and in the whole sequence so far: prompt and generated
 * tokens, without a final EOS. */
SL_API size_t sl_prompt_tokens(const sl_session *session);
SL_API size_t sl_sequence_tokens(const sl_session *session);

/* Start a sequence and generate all of it. The call passes each piece to callback(data, piece),
 * which stops the sequence by returning non-zero. It sets *stop to why the sequence ended. */
typedef int (*sl_callback)(void *data, const sl_piece *piece);
SL_API int sl_generate(sl_session *session, const char *prompt, size_t length,
                       const sl_options *options, sl_callback callback, void *data, int32_t *stop);

/* ---- Speculative decoding -------------------------------------------------------------------- */

enum { SL_MAX_DRAFT_TOKENS = 64, SL_DEFAULT_DRAFT_TOKENS = 3 };

/* Let a smaller model draft tokens for the sequence in slot 0. Before a pass of the large model,
 * the small one generates up to `tokens` tokens, 1 … SL_MAX_DRAFT_TOKENS, and fewer than the chunk
 * of the large one's session. The pass computes the logits after each of them. Those that the large
 * model samples itself are accepted, up to the first that it does not (Leviathan et al. 2023,
 * arXiv:2211.17192). Both models draw with the same random numbers, and each token is sampled from
 * the large model's logits. So what is generated stays the same, bit by bit. In the article, a
 * drafted token is accepted with the ratio of its probabilities. A large model whose keys or values
 * overflow at a drafted token may end with SL_ERROR_NUMBER.
 *
 * The session has one slot. The models have the same vocabulary. The draft's sequence in slot 0
 * ends. Until the session is freed, or has another draft or none, do not use the draft session
 * yourself, not from another thread either, and do not free it. NULL: no draft. */
SL_API int sl_set_draft(sl_session *session, sl_session *draft, uint32_t tokens);

/* Set *drafted to the number of tokens that were drafted since the sequence in slot 0 was started,
 * and *accepted to how many of them the model has accepted so far. */
SL_API void sl_draft_counts(const sl_session *session, size_t *drafted, size_t *accepted);

/* ---- Batched generation ---------------------------------------------------------------------- */

/* A session with several slots generates a token for the sequence in each slot in one step, which
 * reads the weights once for all of them. Sequences start and stop at any time. Each has its own
 * prompt, seed and options, and is bit-identical to the same sequence alone:
 *
 *     sl_start_slot(session, slot, prompt, length, &options);      for some slots
 *     while (!sl_step(session, pieces))
 *         for every slot: use pieces[slot]; if it has stopped, you may start another
 *
 * The functions without a slot argument, such as sl_start and sl_next, use slot 0. */

/* Start a sequence in a slot, 0 … slots - 1. It replaces the sequence in the slot. The next step
 * puts its prompt through the model. Errors are those of sl_start. */
SL_API int sl_start_slot(sl_session *session, size_t slot, const char *prompt, size_t length,
                         const sl_options *options);

/* Start a sequence in a slot with ids[count]; see sl_start_ids. */
SL_API int sl_start_slot_ids(sl_session *session, size_t slot, const int32_t *ids, size_t count,
                             const sl_options *options);

/* Generate the next token in every slot: pieces[slots], each as from sl_next. The stop of a slot
 * without a sequence is SL_IDLE. If the logits of a sequence are not finite the call fails with
 * SL_ERROR_NUMBER and its slot becomes idle. The other sequences still get their pieces, and you
 * may continue them. */
SL_API int sl_step(sl_session *session, sl_piece *pieces);

/* ---- Scoring --------------------------------------------------------------------------------- */

/* Compute the logits after each of ids[count]: logits[count][vocab_size]. count is 1 … context.
 * This function and sl_score end the sequence in slot 0. */
SL_API int sl_logits(sl_session *session, const int32_t *ids, size_t count, float *logits);

/* Compute log-probabilities in nats: scores[i] is that of ids[i + 1] after ids[0 … i], for i below
 * count - 1. count is 2 … context + 1. */
SL_API int sl_score(sl_session *session, const int32_t *ids, size_t count, double *scores);

/* cffi: end */

/* The weight file, version 3
 * --------------------------
 *
 * All numbers are little-endian. Sections, tensors and the file itself are padded with zeros to
 * multiples of 64 bytes.
 *
 *     offset  type    field
 *          0  u8[8]   magic: 89 53 4c 4d 0d 0a 1a 0a ("\x89SLM\r\n\x1a\n")
 *          8  u32     version: 3
 *         12  u32     header_bytes: 256
 *         16  u64     file_bytes: the length of the file
 *         24  u64     checksum: of the whole file, with this field taken as zero
 *         32  u32[8]  dim, layers, heads, kv_heads, head_dim, hidden, context, vocab_size
 *         64  f32     rope_theta
 *         68  f32     norm_eps
 *         72  u32     weight_type, of the matrices in the layers: SL_F32, SL_Q8 or SL_Q4
 *         76  u32     group_size: a multiple of 4 for q8 and of 8 for q4, up to 16384; 0 for f32
 *         80  i32[4]  unk_id, bos_id, eos_id, pad_id; -1 for none
 *         96  u32     flags: 1 tied classifier, 2 dummy prefix, 4 byte fallback, 8 metaspace,
 *                      16 prefix_first, 32 fuse_unk, 64 ignore_merges, 128 a prompt gets no BOS in
 *                      front; the rest zero
 *        100  u32     embedding_type, of the embedding and the classifier: SL_F32 if and only if
 *                      weight_type is SL_F32
 *        104  u64     tokenizer_offset: 256
 *        112  u64     tokenizer_bytes: without the padding after it
 *        120  u64     tensors_offset: the end of the chat section, rounded up to 64
 *        128  u64     tensors_bytes: with the padding after each tensor
 *        136  u32     embedding_group_size: for embedding_type, in the range of group_size
 *        140  u32     tokenizer_kind: SL_SENTENCEPIECE, SL_BPE or SL_BYTE_LEVEL
 *        144  u32     pre_tokenizer: one of SL_PRE_…
 *        148  u32     strip: one of SL_STRIP_…
 *        152  u32     merge_count
 *        156  u32     added_count
 *        160  u32     rope_scaling: one of SL_ROPE_…
 *        164  f32[3]  rope_factor, rope_low_freq_factor, rope_high_freq_factor
 *        176  u32     rope_original_context
 *        180  u32     extra_eos_count
 *        184  u64     chat_template_bytes: up to 2^20; 0: there is none
 *        192  u8[64]  zero
 *
 *     tokenizer, V pieces, M merges, A added tokens; see sl_vocabulary
 *          f32 scores[V]         only for SL_SENTENCEPIECE: merge priority, the highest first
 *          u32 offsets[V + 1]    piece i is text[offsets[i] … offsets[i + 1] - 1]
 *          u32 merges[M][2]      ids of the left and the right piece; the first merges first
 *          u32 added[A][2]       id, flags; sorted by id
 *          u8  types[V]          1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
 *          u8  text[offsets[V]]  UTF-8, U+2581 for a space, byte pieces spelt "<0xNN>"; the bytes
 *                                themselves for SL_BYTE_LEVEL, but for added tokens
 *
 *     chat, after the padding of the tokenizer; empty if both of its sizes are 0
 *          u32 extra_eos[extra_eos_count]   rising ids, not eos_id, that end a sequence, too
 *          u8  template[chat_template_bytes]  UTF-8, in the language of Jinja
 *
 *     tensors, in this order; [R, C] is a matrix that maps C inputs to R outputs
 *          embedding                 [vocab_size, dim]
 *          for every layer
 *              attention_norm        dim
 *              attention.qkv         [(heads + 2 kv_heads) head_dim, dim]: query, key, value
 *              attention.output      [dim, heads head_dim]
 *              feed_forward_norm     dim
 *              feed_forward.gate_up  [2 hidden, dim]: gate, up
 *              feed_forward.down     [dim, hidden]
 *          norm                      dim
 *          classifier                [vocab_size, dim], unless tied
 *
 * A vector is plain f32. A matrix is split into tiles of 16 rows; the last tile is padded with rows
 * of zeros:
 *
 *     f32   f32 [tile][column][16 rows]
 *     q8    [tile] { bf16 scale[groups][16 rows], rounded up to 64 bytes with zeros;
 *                    u8   weight[groups][group_size / 4][16 rows][4 columns] }
 *     q4    [tile] { bf16 scale[groups][16 rows], rounded up to 64 bytes with zeros;
 *                    u8   weight[groups][group_size / 8][16 rows][4 bytes] }
 *
 * A q8 weight is scale * (byte - 128). In block k of a q4 row, byte j of the four holds column
 * 8k + j in its low four bits and column 8k + 4 + j in its high four bits. A q4 weight is
 * scale * (bits - 8); its scale may be negative. A bf16 is the upper half of an f32. Columns are
 * padded to whole groups with zero weights: bytes of 128 for q8, bits of 8 for q4.
 *
 * Checksum: u64 word i of the file belongs to lane i mod 8. For each word its lane computes
 * a += word, then b += a, modulo 2^64 (Fletcher). Then the a and b of each lane are folded in
 * order: start with h = 0xcbf29ce484222325; for each x, h = (h ^ x) * 0x100000001b3, then h ^= h
 * >> 32.
 *
 * Versions: a change to the meaning of any byte increases the version. A reader takes its own
 * version and version 2, in which all that is new in version 3 is zero; it rejects every other one.
 */

#ifdef __cplusplus
}
#endif

#endif
