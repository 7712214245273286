/* SPDX-License-Identifier: Apache-2.0
 * ReLU with a slope per channel for negative inputs. */
#ifndef PRELU_Q7_H
#define PRELU_Q7_H

#include "words_q7.h"

/* x * one, or x * slope if x is negative, shifted right; one slope per channel. Works in place. */
static inline void prelu_q7(const q7_t *in, int size, int channels, const int16_t *slopes, int one, int rshift, q7_t *out)
{
    for (int i = 0; i < size; i += channels) {
        for (int c = 0; c < channels; c++) {
            const q31_t product = in[i + c] * (in[i + c] < 0 ? slopes[c] : one);
            out[i + c] = saturate_q7((product + (1 << rshift >> 1)) >> rshift);
        }
    }
}

#endif
