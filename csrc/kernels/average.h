/* average.h: the weighted sums of the values of several heads, for a single token. A set includes
 * this file after it has defined, as for matmul.h:
 *
 *     LANES              floats in a register
 *     AVERAGE_REGISTERS  registers of values in a block, 8 at most
 *     vector             a register of floats
 *     zeros(), multiply_add(sum, w, x), store_f32(y, x)
 *     load_row(bits, values, i)   LANES numbers from index i on, as floats
 *
 * With one head at a time each sum waits for its own last addition, and a small head fills few
 * registers. So a block has the registers of several heads, and half as many of them if two queries
 * share them. Each sum adds the positions in the order of the set's products of matrices, so both
 * are bit-identical. */

#ifndef STORYLLAMAS_AVERAGE_H
#define STORYLLAMAS_AVERAGE_H

#include "unroll.h"

/* The registers of a block, each with its place among a position's values, the shares of its
 * queries and their sums. */
typedef struct {
    const uint8_t *at[AVERAGE_REGISTERS];
    const float *shares[AVERAGE_REGISTERS][2];
    vector sum[AVERAGE_REGISTERS][2][CHAINS];
} average_block;

/* Add position i, whose values are `offset` bytes from the first ones. */
INLINE void add_position(weight_bits bits, average_block *block, size_t registers, size_t queries,
                         size_t i, size_t offset, size_t chain) {
    UNROLL for (size_t r = 0; r < registers; r++) {
        const vector values = load_row(bits, block->at[r] + offset, 0);
        UNROLL for (size_t q = 0; q < queries; q++) block->sum[r][q][chain] =
            multiply_add(block->sum[r][q][chain], values, block->shares[r][q][i]);
    }
}

/* Compute a block: some registers of the values, from number `first` of the layer on, times the
 * shares of some of the queries that each key-value head has, from number `query` on. */
INLINE void compute_average(weight_bits bits, float *y, const sl_values *v, size_t first,
                            size_t registers, size_t query, size_t queries) {
    const size_t parts = (v->head_dim + LANES - 1) / LANES,
                 width = (v->head_dim + ROWS - 1) / ROWS * ROWS, stride = v->stride * bits / 8;
    average_block block;
    UNROLL for (size_t r = 0; r < registers; r++) {
        const size_t head = (first + r) / parts, part = (first + r) % parts;
        block.at[r] = (const uint8_t *)v->values + (head * width + part * LANES) * bits / 8;
        UNROLL for (size_t q = 0; q < queries; q++) {
            block.shares[r][q] = v->shares + (head * v->sharing + query + q) * v->shares_stride;
            UNROLL for (size_t c = 0; c < CHAINS; c++) block.sum[r][q][c] = zeros();
        }
    }
    size_t i = 0, offset = 0;
    for (; i + CHAINS <= v->positions; i += CHAINS)
        UNROLL for (size_t c = 0; c < CHAINS; c++, offset += stride)
            add_position(bits, &block, registers, queries, i + c, offset, c);
    if (i < v->positions) add_position(bits, &block, registers, queries, i, offset, 0);
    UNROLL for (size_t r = 0; r < registers; r++) UNROLL for (size_t q = 0; q < queries; q++) {
        const size_t head = (first + r) / parts, part = (first + r) % parts;
        const vector *sum = block.sum[r][q];
        store_f32(y + (head * v->sharing + query + q) * width + part * LANES,
                  multiply_add(sum[0], sum[1], 1.0f));
    }
}

/* Compute all registers from number `first` on that fill blocks of this many registers and queries.
 * Returns the number of the first that is left. */
INLINE size_t average_blocks(weight_bits bits, float *y, const sl_values *v, size_t first,
                             size_t count, size_t registers, size_t queries) {
    for (; first + registers <= count; first += registers) {
        size_t q = 0;
        for (; q + queries <= v->sharing; q += queries)
            compute_average(bits, y, v, first, registers, q, queries);
        if (queries > 1 && q < v->sharing) compute_average(bits, y, v, first, registers, q, 1);
    }
    return first;
}

INLINE void average(weight_bits bits, float *y, const sl_values *v) {
    const size_t count = v->heads * ((v->head_dim + LANES - 1) / LANES);
    size_t done = 0;
    if (v->sharing == 1) done = average_blocks(bits, y, v, 0, count, AVERAGE_REGISTERS, 1);
    done = average_blocks(bits, y, v, done, count, AVERAGE_REGISTERS / 2, 2);
    average_blocks(bits, y, v, done, count, 1, 2);
}

static void average_f32(float *y, const sl_values *v) {
    average(F32, y, v);
}

static void average_f16(float *y, const sl_values *v) {
    average(F16, y, v);
}

static void average_i8(float *y, const sl_values *v) {
    average(Q8, y, v);
}

#endif
