/* SPDX-License-Identifier: Apache-2.0
 * A slope for the negative inputs of each channel. */
#ifndef PRELU_Q7_H
#define PRELU_Q7_H

#include "words_q7.h"

/* x * one, or x * slope where x is negative, shifted; each channel has its own slope. The output may be the input. */
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
