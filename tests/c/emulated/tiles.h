/* tiles.h: the instructions on tile registers that csrc/kernels/amx.c and the training step use, in
 * plain C. A thread has its own registers.
 *
 * Each function does what Intel's manual specifies for the instruction. What raises an exception on
 * a processor ends the program here, with a message. So does a configuration that replaces another
 * without a release, which a processor allows but the kernels avoid. */

#ifndef STORYLLAMAS_EMULATED_TILES_H
#define STORYLLAMAS_EMULATED_TILES_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <unistd.h>
#endif

#include "bf16.h"

/* The system lets every process use these instructions. */
#define syscall(...) 0L

enum { TILE_COUNT = 8, TILE_MAX_ROWS = 16, TILE_MAX_BYTES = 64 };

typedef struct {
    size_t rows, row_bytes;
    uint8_t data[TILE_MAX_ROWS][TILE_MAX_BYTES];
} tile_register;

static _Thread_local tile_register tile_registers[TILE_COUNT];
static _Thread_local bool tiles_are_configured;

static inline void tiles_require(bool condition, const char *what) {
    if (condition) return;
    fprintf(stderr, "tile registers: %s\n", what);
    abort();
}

static inline tile_register *tile_at(size_t index) {
    tiles_require(tiles_are_configured && index < TILE_COUNT, "no configuration");
    tiles_require(tile_registers[index].rows > 0, "the register has no rows");
    return &tile_registers[index];
}

static inline void _tile_release(void) {
    tiles_are_configured = false;
}

/* Palette 0 releases the registers. */
static inline void _tile_loadconfig(const void *at) {
    const uint8_t *config = at, *rows = config + 48;
    if (config[0] == 0) {
        _tile_release();
        return;
    }
    tiles_require(!tiles_are_configured, "configured again without a release");
    tiles_require(config[0] == 1 && config[1] == 0, "wrong palette or first row");
    for (size_t i = 2; i < 16; i++) tiles_require(config[i] == 0, "a reserved byte is not 0");
    for (size_t t = 0; t < 16; t++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, config + 16 + 2 * t, sizeof row_bytes);
        tiles_require(row_bytes <= TILE_MAX_BYTES && rows[t] <= TILE_MAX_ROWS, "a tile too large");
        tiles_require((row_bytes == 0) == (rows[t] == 0),
                      "rows without bytes, or bytes without rows");
        tiles_require(t < TILE_COUNT || rows[t] == 0, "no such register");
        if (t < TILE_COUNT)
            tile_registers[t] = (tile_register){.rows = rows[t], .row_bytes = row_bytes};
    }
    tiles_are_configured = true;
}

static inline void _tile_storeconfig(void *at) {
    uint8_t *config = at, *rows = config + 48;
    memset(config, 0, 64);
    if (!tiles_are_configured) return;
    config[0] = 1;
    for (size_t t = 0; t < TILE_COUNT; t++) {
        const uint16_t row_bytes = (uint16_t)tile_registers[t].row_bytes;
        memcpy(config + 16 + 2 * t, &row_bytes, sizeof row_bytes);
        rows[t] = (uint8_t)tile_registers[t].rows;
    }
}

static inline float without_denormal(float x) {
    return fabsf(x) < FLT_MIN ? 0 : x;
}

/* Return number k of a row of numbers in bfloat16. */
static inline float tile_number(const uint8_t *row, size_t k) {
    uint16_t number;
    memcpy(&number, row + 2 * k, sizeof number);
    return without_denormal(from_bf16(number));
}

static inline void _tile_zero(size_t index) {
    tile_register *tile = tile_at(index);
    memset(tile->data, 0, sizeof tile->data);
}

static inline void _tile_loadd(size_t index, const void *start, size_t stride) {
    tile_register *tile = tile_at(index);
    memset(tile->data, 0, sizeof tile->data);
    for (size_t row = 0; row < tile->rows; row++)
        memcpy(tile->data[row], (const uint8_t *)start + row * stride, tile->row_bytes);
}

static inline void _tile_stored(size_t index, void *start, size_t stride) {
    const tile_register *tile = tile_at(index);
    for (size_t row = 0; row < tile->rows; row++)
        memcpy((uint8_t *)start + row * stride, tile->data[row], tile->row_bytes);
}

/* The same load, which asks not to keep the lines in the first-level cache. */
static inline void _tile_stream_loadd(size_t index, const void *start, size_t stride) {
    _tile_loadd(index, start, stride);
}

/* Check the shapes of the registers of a product. */
static inline void tiles_of_product(size_t sum_index, size_t a_index, size_t b_index) {
    const tile_register *sum = tile_at(sum_index), *a = tile_at(a_index), *b = tile_at(b_index);
    tiles_require(sum_index != a_index && sum_index != b_index && a_index != b_index,
                  "the registers of a product are not three");
    tiles_require(a->row_bytes % 4 == 0 && b->row_bytes % 4 == 0,
                  "a row is no multiple of 4 bytes");
    tiles_require(sum->rows == a->rows && sum->row_bytes == b->row_bytes &&
                      b->rows == a->row_bytes / 4,
                  "the shapes of a product do not fit");
}

/* sum[i][r] += Σ_k a[i][k] b[k / 4][r][k % 4], with signed bytes in a; sums have 32 bits and wrap
 * around. */
static inline void tile_multiply(size_t sum_index, size_t a_index, size_t b_index,
                                 bool b_is_signed) {
    tiles_of_product(sum_index, a_index, b_index);
    tile_register *sum = tile_at(sum_index);
    const tile_register *a = tile_at(a_index), *b = tile_at(b_index);
    for (size_t i = 0; i < a->rows; i++)
        for (size_t r = 0; r < b->row_bytes / 4; r++) {
            uint32_t total;
            memcpy(&total, sum->data[i] + 4 * r, sizeof total);
            for (size_t k = 0; k < a->row_bytes; k++) {
                const int32_t factor = (int8_t)a->data[i][k];
                const uint8_t byte = b->data[k / 4][4 * r + k % 4];
                total += (uint32_t)(factor * (b_is_signed ? (int8_t)byte : byte));
            }
            memcpy(sum->data[i] + 4 * r, &total, sizeof total);
        }
}

/* The same with unsigned and with signed bytes in b. */
static inline void _tile_dpbsud(size_t sum, size_t a, size_t b) {
    tile_multiply(sum, a, b, false);
}

static inline void _tile_dpbssd(size_t sum, size_t a, size_t b) {
    tile_multiply(sum, a, b, true);
}

/* sum[i][r] += Σ_k a[i][k] b[k / 2][r][k % 2], in bfloat16 with a float32 sum of the even and of
 * the odd products. Denormal numbers are zeros. */
static inline void _tile_dpbf16ps(size_t sum_index, size_t a_index, size_t b_index) {
    tiles_of_product(sum_index, a_index, b_index);
    enum { LANES = TILE_MAX_BYTES / 4 };
    tile_register *sum = tile_at(sum_index);
    const tile_register *a = tile_at(a_index), *b = tile_at(b_index);
    float factors[TILE_MAX_ROWS][2][LANES];
    for (size_t k = 0; k < b->rows; k++)
        for (size_t r = 0; r < 2 * LANES; r++)
            factors[k][r % 2][r / 2] = tile_number(b->data[k], r);
    for (size_t i = 0; i < a->rows; i++) {
        float products[2][LANES] = {{0}}, total[LANES];
        for (size_t k = 0; k < a->row_bytes / 2; k++) {
            const float x = tile_number(a->data[i], k), *y = factors[k / 2][k % 2];
            for (size_t r = 0; r < LANES; r++)
                products[k % 2][r] = without_denormal(fmaf(x, y[r], products[k % 2][r]));
        }
        memcpy(total, sum->data[i], sizeof total);
        for (size_t r = 0; r < LANES; r++)
            total[r] = without_denormal(without_denormal(total[r]) +
                                        without_denormal(products[0][r] + products[1][r]));
        memcpy(sum->data[i], total, sum->row_bytes);
    }
}

#endif
