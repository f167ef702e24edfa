/* vocabulary.c: checks a vocabulary. */

#include "vocabulary.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "../error.h"
#include "../model_limits.h"
#include "utf8.h"

enum { MAX_MERGES = 1 << 24 };

/* ---- Errors ---------------------------------------------------------------------------------- */

int sl_reject_vocabulary(const char *path, const char *reason) {
    if (!path) return sl_fail(SL_ERROR_FORMAT, "the vocabulary is damaged: %s", reason);
    return sl_fail(SL_ERROR_FORMAT, "weight file %s is damaged: %s; export it again", path, reason);
}

int sl_reject_piece(const char *path, int32_t id, const char *reason) {
    if (!path)
        return sl_fail(SL_ERROR_FORMAT, "the vocabulary is damaged: piece %" PRId32 " %s", id,
                       reason);
    return sl_fail(SL_ERROR_FORMAT,
                   "weight file %s is damaged: piece %" PRId32
                   " of its tokenizer %s; export it again",
                   path, id, reason);
}

/* ---- Checking -------------------------------------------------------------------------------- */

static int check_arrays(const sl_vocabulary *vocabulary, const char *path) {
    const uint32_t size = vocabulary->size, *offsets = vocabulary->offsets;
    if (size < 1 || size > SL_MAX_DIMENSION)
        return sl_reject_vocabulary(path, "it has no pieces or too many");
    if (vocabulary->unk_id < -1 || vocabulary->unk_id >= (int64_t)size)
        return sl_reject_vocabulary(path, "unk_id is out of range");
    if (offsets[0] != 0) return sl_reject_vocabulary(path, "its first piece is not at offset 0");
    for (uint32_t i = 0; i < size; i++)
        if (offsets[i] > offsets[i + 1])
            return sl_reject_vocabulary(path, "the offsets of its pieces run backwards");
    if (offsets[size] != vocabulary->text_bytes)
        return sl_reject_vocabulary(path, "its pieces do not end with the tokenizer");
    return SL_OK;
}

/* Check that the rules fit the kind. Returns the reason if they do not, or NULL. */
static const char *check_rules(const sl_vocabulary *vocabulary) {
    const int32_t kind = vocabulary->kind, pre = vocabulary->pre_tokenizer;
    const bool characters = kind == SL_BPE;
    if (kind < 0 || kind >= SL_TOKENIZER_KINDS) return "its tokenizer is of an unknown kind";
    if (vocabulary->merge_count > MAX_MERGES || vocabulary->added_count > vocabulary->size)
        return "its tokenizer has too many merges or added tokens";
    if (kind == SL_SENTENCEPIECE)
        return pre || vocabulary->strip || vocabulary->metaspace || vocabulary->prefix_first ||
                       vocabulary->fuse_unk || vocabulary->ignore_merges ||
                       vocabulary->merge_count || vocabulary->added_count
                   ? "its tokenizer has rules that SentencePiece does not have"
                   : NULL;
    if (pre < 0 || pre >= SL_PRE_TOKENIZERS || characters != (pre <= SL_PRE_SPACES))
        return "its pre-tokenizer does not fit its tokenizer";
    if (vocabulary->strip < 0 || vocabulary->strip >= SL_STRIPS)
        return "its tokenizer strips in an unknown way";
    if (characters && vocabulary->ignore_merges)
        return "its tokenizer ignores merges and is not byte-level";
    if ((pre == SL_PRE_SPACES || vocabulary->prefix_first) && !vocabulary->metaspace)
        return "its tokenizer splits spaces and has no metaspace";
    if (!characters && (vocabulary->strip || vocabulary->metaspace || vocabulary->byte_fallback))
        return "its byte-level tokenizer has rules for characters";
    if (vocabulary->dummy_prefix && !characters && pre != SL_PRE_GPT2)
        return "its pre-tokenizer puts a space in front";
    return NULL;
}

int sl_check_vocabulary(const sl_vocabulary *vocabulary, const char *path) {
    const int status = check_arrays(vocabulary, path);
    if (status) return status;
    const char *reason = check_rules(vocabulary);
    return reason ? sl_reject_vocabulary(path, reason) : SL_OK;
}

int sl_check_added(const sl_tokenizer *tokenizer, const char *path) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    for (uint32_t i = 0; i < vocabulary->added_count; i++) {
        const sl_added_token token = vocabulary->added[i];
        if (token.id >= vocabulary->size || (i && token.id <= vocabulary->added[i - 1].id))
            return sl_reject_vocabulary(path, "its added tokens are not in order");
        if (token.flags & ~(uint32_t)SL_ADDED_FLAGS)
            return sl_reject_vocabulary(path, "an added token sets an unknown flag");
        const uint32_t length = sl_piece_length(tokenizer, (int32_t)token.id);
        if (sl_utf8_valid(sl_piece_text(tokenizer, (int32_t)token.id), length) < length)
            return sl_reject_piece(path, (int32_t)token.id, "is an added token and not UTF-8");
    }
    return SL_OK;
}

int sl_check_piece(const sl_tokenizer *tokenizer, int32_t id, const char *path) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    const uint32_t length = sl_piece_length(tokenizer, id);
    const uint8_t type = sl_piece_type(tokenizer, id);
    if (vocabulary->kind == SL_SENTENCEPIECE && !isfinite(vocabulary->scores[id]))
        return sl_reject_piece(path, id, "has no finite score");
    if (length == 0) return sl_reject_piece(path, id, "is empty");
    if (vocabulary->kind != SL_BYTE_LEVEL &&
        sl_utf8_valid(sl_piece_text(tokenizer, id), length) < length)
        return sl_reject_piece(path, id, "is not valid UTF-8");
    if (type < SL_PIECE_NORMAL || type > SL_PIECE_BYTE)
        return sl_reject_piece(path, id, "has an unknown type");
    if (type == SL_PIECE_BYTE && vocabulary->kind == SL_BYTE_LEVEL)
        return sl_reject_piece(path, id, "is a byte piece of a byte-level tokenizer");
    if (type == SL_PIECE_UNKNOWN && id != vocabulary->unk_id)
        return sl_reject_piece(path, id, "is of type unknown but is not unk_id");
    return SL_OK;
}

int sl_check_fallback(const sl_tokenizer *tokenizer, const char *path) {
    const sl_vocabulary *vocabulary = &tokenizer->vocabulary;
    const int32_t unk_id = vocabulary->unk_id;
    if (unk_id >= 0 && vocabulary->types[unk_id] != SL_PIECE_UNKNOWN)
        return sl_reject_piece(path, unk_id, "is unk_id but not of type unknown");
    if (vocabulary->kind == SL_BYTE_LEVEL) return SL_OK; /* a byte without a piece has no id */
    if (!vocabulary->byte_fallback && unk_id < 0)
        return sl_reject_vocabulary(path,
                                    "its tokenizer has neither an unknown piece nor byte fallback");
    for (int byte = 0; byte < 256; byte++)
        if (vocabulary->byte_fallback && tokenizer->byte_ids[byte] < 0) {
            char reason[] = "its tokenizer has byte fallback but no piece <0x00>";
            char *digits = strstr(reason, "00>");
            digits[0] = "0123456789ABCDEF"[byte / 16];
            digits[1] = "0123456789ABCDEF"[byte % 16];
            return sl_reject_vocabulary(path, reason);
        }
    return SL_OK;
}
