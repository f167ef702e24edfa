/* storyllamas.h: tell stories with a small Llama model.
 *
 *     sl_model *model;
 *     sl_session *session;
 *     if (sl_model_open(&model, "model.slm", NULL) ||
 *         sl_session_new(&session, model, NULL)) {
 *         fprintf(stderr, "%s\n", sl_error());
 *         return 1;
 *     }
 *     sl_options options = SL_DEFAULTS;
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
 * A model is read-only once open: any number of threads may share it. A session is one story, or
 * some that are told together, with their key-value caches, scratch memory and threads, all made by
 * sl_session_new; one thread at a time may use it. Close the model after its sessions.
 *
 * Every function that can fail returns SL_OK (zero) or an error code, and sl_error() then has one
 * sentence for the user. The library never prints, never exits and never reads the environment.
 */

#ifndef STORYLLAMAS_H
#define STORYLLAMAS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SL_API __attribute__((visibility("default")))

/* How a story is told unless the caller says otherwise. */
#define SL_DEFAULTS                                                                                \
    {                                                                                              \
        .temperature = 0.8f,                                                                       \
        .top_k = 0,                                                                                \
        .top_p = 0.9f,                                                                             \
        .min_p = 0.0f,                                                                             \
        .repetition_penalty = 1.0f,                                                                \
        .repetition_window = 64,                                                                   \
        .seed = 42,                                                                                \
        .tokens = 256,                                                                             \
        .ignore_end = 0,                                                                           \
    }

/* The best kernels, on the pages that suit the file. */
#define SL_MODEL_DEFAULTS {.pages = SL_PAGES_AUTO, .kernels = NULL}

/* A session for one story, on as many threads as serve best. */
#define SL_SESSION_DEFAULTS {.threads = 0, .stories = 1}

/* cffi reads from here to "cffi: end", preprocessor lines left out. */
/* cffi: begin */

typedef struct sl_model sl_model;
typedef struct sl_session sl_session;
typedef struct sl_tokenizer sl_tokenizer;
typedef struct sl_word_cache sl_word_cache;

enum {
    SL_OK = 0,
    SL_ERROR_FILE,     /* the weight file cannot be opened or mapped */
    SL_ERROR_FORMAT,   /* it is not a weight file, or a damaged one */
    SL_ERROR_MEMORY,   /* there is not enough memory */
    SL_ERROR_ARGUMENT, /* an argument is out of its range */
    SL_ERROR_TEXT,     /* a text is not valid UTF-8 */
    SL_ERROR_NUMBER    /* the model's output is not finite */
};

/* The last error of the calling thread, one sentence without a full stop. Valid until the thread's
 * next failing call; never NULL. */
SL_API const char *sl_error(void);

/* ---- Models ---------------------------------------------------------------------------------- */

enum { SL_F32 = 0, SL_Q8 = 1, SL_Q4 = 2 };

typedef struct {
    uint32_t dim;      /* width of the residual stream */
    uint32_t layers;   /* transformer blocks */
    uint32_t heads;    /* query heads */
    uint32_t kv_heads; /* key and value heads; divides heads */
    uint32_t head_dim; /* width of a head; even */
    uint32_t hidden;   /* width of the feed-forward layer */
    uint32_t context;  /* most positions that the model attends to */
    uint32_t vocab_size;
    float rope_theta;        /* base of the rotary frequencies */
    float norm_eps;          /* added to the mean square in RMSNorm */
    uint32_t weight_type;    /* of the layers' matrices: SL_F32, SL_Q8 or SL_Q4 */
    uint32_t group_size;     /* columns that share a scale; 0 for SL_F32 */
    uint32_t embedding_type; /* of the embedding and the classifier */
    uint32_t embedding_group_size;
    int32_t unk_id; /* -1: there is none; likewise below */
    int32_t bos_id;
    int32_t eos_id;
    int32_t pad_id;
    uint32_t tied; /* 1: the classifier is the embedding */
    uint64_t parameters;
    uint64_t file_bytes;
    const char *kernels; /* the instruction set in use, such as "scalar" */
} sl_info;

/* Where the weights lie. Huge pages are worth up to 1.4 times the speed where a file is larger than
 * the processor's caches, but they are a copy of it for each process. */
enum {
    SL_PAGES_AUTO = 0, /* mapped; from 8 MB on, moved onto huge pages after a few tokens */
    SL_PAGES_SHARED,   /* the file is mapped, and its memory shared by all processes */
    SL_PAGES_HUGE      /* the file is copied, onto huge pages where the system has them */
};

typedef struct {
    int32_t pages;       /* one of SL_PAGES_… */
    const char *kernels; /* an instruction set, see sl_info; NULL: the best that there is */
} sl_model_options;

/* Open a weight file and check all of it; options may be NULL: SL_MODEL_DEFAULTS. Except for
 * SL_PAGES_HUGE the file must not be written to while it is open; replacing it by another through
 * a rename is fine. */
SL_API int sl_model_open(sl_model **model, const char *path, const sl_model_options *options);

/* Names of the instruction sets that this processor runs, the fastest first. NULL from `index` on
 * that is too high. */
SL_API const char *sl_kernels_name(size_t index);

/* Also of NULL. */
SL_API void sl_model_close(sl_model *model);

/* Valid as long as the model. */
SL_API const sl_info *sl_model_info(const sl_model *model);

/* ---- Text and tokens ------------------------------------------------------------------------- */

/* The tokenizer of a model, valid as long as the model. */
SL_API const sl_tokenizer *sl_model_tokenizer(const sl_model *model);

/* A SentencePiece byte-pair encoding. Arrays and text as in the weight file, see below. */
typedef struct {
    uint32_t size;           /* pieces; 1 … 2^20 */
    const float *scores;     /* [size] merge priority; the highest merges first */
    const uint32_t *offsets; /* [size + 1] piece i is text[offsets[i] … offsets[i + 1] - 1] */
    const uint8_t *types;    /* [size] */
    const char *text;        /* [text_bytes] */
    size_t text_bytes;
    int32_t unk_id;        /* -1: there is none */
    int32_t dummy_prefix;  /* 1: a space is put before a text */
    int32_t byte_fallback; /* 1: a character that no piece covers becomes its bytes */
} sl_vocabulary;

/* A tokenizer without a model. The arrays are checked, as those of a weight file, and copied. Any
 * number of threads may share a tokenizer. */
SL_API int sl_tokenizer_open(sl_tokenizer **tokenizer, const sl_vocabulary *vocabulary);

/* Also of NULL. */
SL_API void sl_tokenizer_close(sl_tokenizer *tokenizer);

/* Memory for the ids of words met before: 4 MiB, whatever the text. It makes encoding of much text
 * many times faster and never changes an id. One thread at a time may use it, with the tokenizer
 * that it was made for; close that one after it. */
SL_API int sl_word_cache_new(sl_word_cache **cache, const sl_tokenizer *tokenizer);

/* Also of NULL. */
SL_API void sl_word_cache_free(sl_word_cache *cache);

/* Write the ids of a text, as SentencePiece numbers them, without BOS and EOS.
 *
 * cache may be NULL. text[length] is UTF-8, NUL bytes allowed, at most 2^30 bytes; no text has no
 * ids. Control pieces spelt out in the text, such as "<s>", are plain text. *count becomes the
 * number of ids; where it exceeds capacity the call fails with SL_ERROR_ARGUMENT and the first
 * capacity ids are written. 3 * (length + 1) ids are always enough. What is in ids[] after the last
 * id is undefined. Takes linear time, and O(n log n) of a word of n bytes. */
SL_API int sl_encode(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                     size_t length, int32_t *ids, size_t capacity, size_t *count);

/* The same of many stories, one after the other: story i is text[offsets[i] … offsets[i + 1] - 1],
 * for i below stories. Before the ids of each stands bos_id and behind them eos_id, unless they are
 * negative, so that 3 * bytes + 5 * stories ids are always enough. */
SL_API int sl_encode_stories(const sl_tokenizer *tokenizer, sl_word_cache *cache, const char *text,
                             const uint64_t *offsets, size_t stories, int32_t bos_id,
                             int32_t eos_id, int32_t *ids, size_t capacity, size_t *count);

/* Write the text of ids[count] as valid UTF-8, without a final NUL.
 *
 * Control pieces have no text, the unknown piece is " \u2047 ", byte pieces join to characters, and
 * a byte that is part of none becomes U+FFFD. If the tokenizer puts a space before a text, that one
 * is left out. *length becomes the number of bytes; where it exceeds capacity the call fails with
 * SL_ERROR_ARGUMENT. What is in text[] after the last byte is undefined. */
SL_API int sl_decode(const sl_tokenizer *tokenizer, const int32_t *ids, size_t count, char *text,
                     size_t capacity, size_t *length);

/* ---- Stories --------------------------------------------------------------------------------- */

/* How to pick the next token. The filters apply in this order, each to what the last one left:
 *
 *   1. repetition_penalty: the logit of every token among the last repetition_window ones (prompt
 *      included) is divided by it if positive and multiplied by it if not (Keskar et al. 2019,
 *      arXiv:1909.05858);
 *   2. temperature: logits are divided by it and turned to probabilities; at 0 the largest logit
 *      wins (the lowest id among equals) and the rest of this list is idle;
 *   3. top_k: the k most probable tokens stay, of equals those of lower id;
 *   4. top_p: of these, the fewest most probable tokens that together have at least the share p
 *      stay (Holtzman et al. 2020, arXiv:1904.09751);
 *   5. min_p: tokens less probable than min_p times the most probable go (Nguyen et al. 2024,
 *      arXiv:2407.01082).
 *
 * The tokens that are left are laid end to end, each as long as it is probable: by falling
 * probability (of equals the lower id first) if top_k, top_p or min_p is on, by id if none is. The
 * token at u times the total length is drawn. u = (x >> 11) / 2^53 where x is the next number of
 * xoshiro256** (Blackman & Vigna 2018, arXiv:1805.01407); its four words of state are the first
 * four numbers of splitmix64 started at seed. One number is used a token, none at temperature 0. */
typedef struct {
    float temperature;         /* 0 … 1000; 0 is greedy */
    int32_t top_k;             /* 0 and up; 0 is off */
    float top_p;               /* above 0, up to 1; 1 is off */
    float min_p;               /* 0 up to below 1; 0 is off */
    float repetition_penalty;  /* above 0, up to 1000; 1 is off */
    int32_t repetition_window; /* 0 and up */
    uint64_t seed;
    int32_t tokens;     /* most tokens to tell, the prompt not counted; 1 and up */
    int32_t ignore_end; /* 1: go on past EOS and BOS, for measuring speed */
} sl_options;

enum {
    SL_RUNNING = 0,
    SL_STOP_EOS,      /* the model ended the story */
    SL_STOP_BOS,      /* the model began another */
    SL_STOP_TOKENS,   /* options.tokens are told */
    SL_STOP_CONTEXT,  /* prompt and story fill the context */
    SL_STOP_CALLBACK, /* the callback of sl_generate asked for it */
    SL_IDLE,          /* no story has been begun */
    SL_STOPS
};

/* "running", "eos", "bos", "tokens", "context", "callback" or "idle". */
SL_API const char *sl_stop_name(int32_t stop);

/* What sl_next tells. A character that is split into several tokens comes whole with the last of
 * them, so text may be empty; it is valid UTF-8 in any case. */
typedef struct {
    const char *text; /* valid until the session's next call; not ended by NUL */
    size_t length;    /* in bytes */
    int32_t id;       /* the token, or -1 for a stop that is not a token */
    int32_t stop;     /* SL_RUNNING or why the story ends here */
} sl_piece;

enum { SL_MOST_STORIES = 256 };

/* The story of a session does not depend on any of these. */
typedef struct {
    /* At most so many compute together, the caller's among them, 1 … 64; 0: as many as serve best.
     * Whether more than one is faster is measured as the work goes on. */
    uint32_t threads;
    uint32_t stories; /* places for stories that are told together; 1 … SL_MOST_STORIES */
} sl_session_options;

/* options may be NULL: SL_SESSION_DEFAULTS. */
SL_API int sl_session_new(sl_session **session, const sl_model *model,
                          const sl_session_options *options);

/* Also of NULL. */
SL_API void sl_session_free(sl_session *session);

/* Begin a story: BOS and the prompt's ids go through the model. An empty prompt is fine. A prompt
 * whose ids are more than the context is refused. */
SL_API int sl_start(sl_session *session, const char *prompt, size_t length,
                    const sl_options *options);

/* Begin a story with ids[count], count at least 1; BOS, if wanted, is among them. */
SL_API int sl_start_ids(sl_session *session, const int32_t *ids, size_t count,
                        const sl_options *options);

/* Tell the next token. After a stop the same stop is told again, without text. */
SL_API int sl_next(sl_session *session, sl_piece *piece);

/* How many tokens the story has so far, the prompt's and the told ones (EOS is not one). */
SL_API size_t sl_prompt_tokens(const sl_session *session);
SL_API size_t sl_story_tokens(const sl_session *session);

/* sl_start and sl_next in one: tell(data, piece) is called for every piece and ends the story by
 * returning non-zero. *stop becomes why the story ended. */
typedef int (*sl_tell)(void *data, const sl_piece *piece);
SL_API int sl_generate(sl_session *session, const char *prompt, size_t length,
                       const sl_options *options, sl_tell tell, void *data, int32_t *stop);

/* ---- Many stories at once -------------------------------------------------------------------- */

/* A session with several places tells a token of each place's story in one step, which reads the
 * weights once for all of them. Stories begin and end at any time, each with its own prompt, seed
 * and options, and each is the one that it would have been alone:
 *
 *     sl_join(session, place, prompt, length, &options);      for some places
 *     while (!sl_step(session, pieces))
 *         for every place: use pieces[place]; if it has stopped, perhaps join another
 *
 * sl_start, sl_next and the others that name no place are about place 0. */

/* Begin a story at a place, 0 … stories - 1, in place of the one that is there. Its prompt goes
 * through the model with the next step. Errors are those of sl_start. */
SL_API int sl_join(sl_session *session, size_t place, const char *prompt, size_t length,
                   const sl_options *options);

/* The same with ids[count]; see sl_start_ids. */
SL_API int sl_join_ids(sl_session *session, size_t place, const int32_t *ids, size_t count,
                       const sl_options *options);

/* Tell the next token of every place: pieces[stories], one for each place as sl_next tells it;
 * where no story has been begun its stop is SL_IDLE. On SL_ERROR_NUMBER the story whose logits are
 * not finite is idle and the others can go on. */
SL_API int sl_step(sl_session *session, sl_piece *pieces);

/* ---- Measuring ------------------------------------------------------------------------------- */

/* Logits of the token after each of ids[count]: logits[count][vocab_size]. count is 1 … context.
 * This and sl_score end a story that the session was telling. */
SL_API int sl_logits(sl_session *session, const int32_t *ids, size_t count, float *logits);

/* Log-probabilities in nats: scores[i] of ids[i + 1] given ids[0 … i], for count - 1 of them.
 * count is 2 … context + 1. */
SL_API int sl_score(sl_session *session, const int32_t *ids, size_t count, double *scores);

/* cffi: end */

/* The weight file, version 2
 * --------------------------
 *
 * Everything is little-endian. The sections and every tensor start at a multiple of 64 bytes, the
 * file ends at one, and the bytes between them are zero.
 *
 *     offset  type    field
 *          0  u8[8]   magic: 89 53 4c 4d 0d 0a 1a 0a ("\x89SLM\r\n\x1a\n")
 *          8  u32     version: 2
 *         12  u32     header_bytes: 256
 *         16  u64     file_bytes: the length of the file
 *         24  u64     checksum: of the whole file, with this field taken as zero
 *         32  u32[8]  dim, layers, heads, kv_heads, head_dim, hidden, context, vocab_size
 *         64  f32     rope_theta
 *         68  f32     norm_eps
 *         72  u32     weight_type, of the layers' matrices: SL_F32, SL_Q8 or SL_Q4
 *         76  u32     group_size: a multiple of 4 for q8 and of 8 for q4, up to 16384; 0 for f32
 *         80  i32[4]  unk_id, bos_id, eos_id, pad_id; -1 for none
 *         96  u32     flags: 1 tied classifier, 2 dummy prefix, 4 byte fallback; the rest zero
 *        100  u32     embedding_type, of the embedding and the classifier: likewise, SL_F32 if and
 *                      only if weight_type is
 *        104  u64     tokenizer_offset: 256
 *        112  u64     tokenizer_bytes: without the padding after it
 *        120  u64     tensors_offset: the end of the tokenizer, rounded up to 64
 *        128  u64     tensors_bytes: with the padding after each tensor
 *        136  u32     embedding_group_size: likewise
 *        140  u8[116] zero
 *
 *     tokenizer, V pieces
 *          f32 scores[V]         merge priority; the highest merges first
 *          u32 offsets[V + 1]    piece i is text[offsets[i] … offsets[i + 1] - 1]
 *          u8  types[V]          1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
 *          u8  text[offsets[V]]  UTF-8, U+2581 for a space; byte pieces are spelt "<0xNN>"
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
 * A vector is plain f32. A matrix is cut into tiles of 16 rows, R rounded up with rows of zeros:
 *
 *     f32   f32 [tile][column][16 rows]
 *     q8    [tile] { bf16 scale[groups][16 rows], rounded up to 64 bytes with zeros;
 *                    u8   weight[groups][group_size / 4][16 rows][4 columns] }
 *     q4    [tile] { bf16 scale[groups][16 rows], rounded up to 64 bytes with zeros;
 *                    u8   weight[groups][group_size / 8][16 rows][4 bytes] }
 *
 * A q8 weight is scale * (byte - 128). Byte j of the four in block k of a q4 row holds column
 * 8k + j in its low and 8k + 4 + j in its high four bits; a q4 weight is scale * (those - 8), and
 * its scale may be negative. A bf16 is the upper half of an f32. Columns are rounded up to whole
 * groups with zero weights: bytes of 128, halves of 8.
 *
 * Checksum: u64 word i of the file goes to lane i mod 8, where a += word and then b += a, both
 * modulo 2^64 (Fletcher). The lanes' a and b, in order, are then folded: from
 * h = 0xcbf29ce484222325, h = (h ^ x) * 0x100000001b3 and then h ^= h >> 32.
 *
 * Version rule: a reader refuses every version but its own, and whatever changes the meaning of a
 * single byte raises the version. */

#ifdef __cplusplus
}
#endif

#endif
