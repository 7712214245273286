/* SPDX-License-Identifier: Apache-2.0
 * Shared by layers with weights: the arithmetic of CMSIS-NN's q7 kernels, for sizes known at compile time.
 *
 * sum = (bias << bias_lshift) + rounding term + all products, in 32 bits; the output is sum >> out_rshift, limited to
 * low ... high. */
#ifndef WEIGHTED_Q7_H
#define WEIGHTED_Q7_H

#include "dot_q7.h"

/* Converts a layer's sums to its outputs. */
typedef struct {
    const q7_t *bias;
    int bias_lshift, out_rshift;
    q31_t low, high;
} scaling_t;

INLINE q31_t first_sum(const scaling_t *s, int output)
{
    return s->bias[output] * (1 << s->bias_lshift) + ROUNDING(s->out_rshift);
}

/* Sums of products with 4-bit weights are 16 times as large. The first sum is added at the end, which leaves its shift
 * and the rounding term the same range as with 8-bit weights. */
INLINE q31_t start(q31_t first, const int bits)
{
    return bits == 8 ? first : 0;
}

INLINE q7_t scaled_q7(q31_t sum, q31_t first, const int bits, const scaling_t *s)
{
    return limited_q7((bits == 8 ? sum : first + (sum >> 4)) >> s->out_rshift, s->low, s->high);
}

INLINE int even(int count)
{
    return count + count % 2;
}

/* All outputs of `columns` pixels, two at a time; the last one alone if their number is odd. */
INLINE void convolve_pixels(const q15_t *x, int step, int columns, int length, const q7_t *weights, const int bits,
                            const scaling_t *s, int outputs, int out_channels, q7_t *out)
{
    for (int o = 0; o < outputs; o += 2) {
        const int both = outputs % 2 == 0 || o + 1 < outputs;
        const q31_t first = first_sum(s, o), second = both ? first_sum(s, o + 1) : 0;
        const q31_t a = start(first, bits), b = start(second, bits);
        q31_t sums[3][2] = {{a, b}, {a, b}, {a, b}};
        weights = dot_q7(weights, bits, x, step, columns, length, sums);
        for (int c = 0; c < columns; c++) {
            out[c * out_channels + o] = scaled_q7(sums[c][0], first, bits, s);
            if (both) {
                out[c * out_channels + o + 1] = scaled_q7(sums[c][1], second, bits, s);
            }
        }
    }
}

#endif
