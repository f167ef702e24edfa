/* checksum.c: the checksum of a weight file, see storyllamas.h. */

#include "checksum.h"

#include <string.h>

enum { LANES = SL_CHECKSUM_LANES, BLOCK = LANES * sizeof(uint64_t) };

void sl_checksum_update(sl_checksum *sum, const void *data, size_t bytes) {
    const uint64_t *words = data;
    uint64_t a[LANES], b[LANES];
    memcpy(a, sum->a, sizeof a);
    memcpy(b, sum->b, sizeof b);
    for (size_t i = 0; i < bytes / BLOCK * LANES; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++) {
            a[lane] += words[i + lane];
            b[lane] += a[lane];
        }
    memcpy(sum->a, a, sizeof a);
    memcpy(sum->b, b, sizeof b);
}

void sl_checksum_combine(sl_checksum *sum, const sl_checksum *next, size_t bytes) {
    for (size_t lane = 0; lane < LANES; lane++) {
        /* Each block of `next` adds the earlier sum a to b once more. */
        sum->b[lane] += next->b[lane] + sum->a[lane] * (bytes / BLOCK);
        sum->a[lane] += next->a[lane];
    }
}

void sl_checksum_clear_word(sl_checksum *sum, size_t word, uint64_t value, size_t bytes) {
    sum->a[word % LANES] -= value;
    sum->b[word % LANES] -= value * (bytes / BLOCK - word / LANES);
}

static uint64_t fold_word(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * UINT64_C(0x100000001b3);
    return hash ^ hash >> 32;
}

uint64_t sl_checksum_digest(const sl_checksum *sum) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t lane = 0; lane < LANES; lane++)
        hash = fold_word(fold_word(hash, sum->a[lane]), sum->b[lane]);
    return hash;
}
