/* SPDX-License-Identifier: Apache-2.0
 * What layers with weights have in common: the integers of CMSIS-NN's q7 kernels, for sizes that the compiler knows.
 *
 * sum = bias << bias_lshift, plus the rounding term, plus all products, in 32 bits; the output is sum >> out_rshift,
 * limited to low ... high. */
#ifndef WEIGHTED_Q7_H
#define WEIGHTED_Q7_H

#include "dot_q7.h"

/* How a layer's sums become its outputs. */
typedef struct {
    const q7_t *bias;
    int bias_lshift, out_rshift;
    q31_t low, high;
} scaling_t;

INLINE q31_t first_sum(const scaling_t *s, int output)
{
    return s->bias[output] * (1 << s->bias_lshift) + ROUNDING(s->out_rshift);
}

/* Products with weights of 4 bits are added up 16 times as large, without the first sum: that is added at the end, so
 * that its shift and the rounding term have the room that they have beside weights of 8 bits. */
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

/* All outputs of `columns` pixels; two at a time, the last alone where their number is odd. */
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
