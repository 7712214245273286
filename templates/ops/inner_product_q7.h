/* SPDX-License-Identifier: Apache-2.0
 * Matrix times vector. */
#ifndef INNER_PRODUCT_Q7_H
#define INNER_PRODUCT_Q7_H

#include "weighted_q7.h"

/* Four outputs at a time, with weights in blocks of four per output; one or two remaining outputs form a pair. */
INLINE void inner_product_q7(const q7_t *in, int size, int outputs, const q7_t *weights, const int bits,
                             const scaling_t *s, q15_t *vector, q7_t *out)
{
    const int length = (size + 3) / 4 * 4, rest = outputs % 4 == 3 ? 0 : outputs % 4, fours = outputs - rest;
    widen_q7(in, size, vector);
    clear_q15(vector + size, length - size);
    for (int o = 0; o < fours; o += 4) {
        const int count = fours % 4 == 0 || fours - o >= 4 ? 4 : 3;
        q31_t first[4] = {0, 0, 0, 0}, sums[4];
        for (int i = 0; i < 4; i++) {
            first[i] = i < count ? first_sum(s, o + i) : 0;
            sums[i] = start(first[i], bits);
        }
        weights = dot_4x1_q7(weights, bits, vector, length, sums);
        for (int i = 0; i < count; i++) {
            out[o + i] = scaled_q7(sums[i], first[i], bits, s);
        }
    }
    if (rest > 0) {
        const scaling_t last = {s->bias + fours, s->bias_lshift, s->out_rshift, s->low, s->high};
        convolve_pixels(vector, 0, 1, length, weights, bits, &last, rest, rest, out + fours);
    }
}

#endif
