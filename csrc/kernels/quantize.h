/* quantize.h: the kernel that quantizes activations, for every set. A set includes this file after
 * it has defined:
 *
 *     float largest_magnitude(x, n)
 *         Return the largest |x|, or NaN if there is one.
 *     int32_t quantize_group(values, group_size, x, width, inverse)
 *         Set values[group_size] to x[width] * inverse, rounded to the nearest integer, ties to
 *         even, followed by zeros. Return their sum. The products round to -127 … 127.
 */

#ifndef STORYLLAMAS_QUANTIZE_H
#define STORYLLAMAS_QUANTIZE_H

#include <float.h>
#include <string.h>

#include "kernels.h"

/* For each group: scale = largest |x| / 127, value = round(x / scale). */
static void quantize(const sl_quantized *q, size_t i, const float *x, size_t columns) {
    int8_t *values = q->values + i * q->groups * q->group_size;
    for (size_t g = 0; g < q->groups; g++, values += q->group_size) {
        const size_t start = g * q->group_size, rest = columns - start;
        const size_t width = rest < q->group_size ? rest : q->group_size;
        const float scale = largest_magnitude(x + start, width) / 127.0f;
        q->scales[i * q->groups + g] = scale;
        /* Infinity and NaN have no integer. Zeros times this scale are NaN, which the check of the
         * logits finds. */
        if (!(scale <= FLT_MAX)) {
            memset(values, 0, q->group_size);
            q->sums[i * q->groups + g] = 0;
            continue;
        }
        const float inverse = scale >= FLT_MIN ? 1.0f / scale : 0.0f;
        q->sums[i * q->groups + g] =
            quantize_group(values, q->group_size, x + start, width, inverse);
    }
}

#endif
