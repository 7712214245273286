/* SPDX-License-Identifier: Apache-2.0
 * A gain and an offset per channel. */
#ifndef AFFINE_Q7_H
#define AFFINE_Q7_H

#include "words_q7.h"

/* (x * gain + offset) >> rshift, with a gain and an offset per channel. Works in place. */
static inline void affine_q7(const q7_t *in, int size, int channels, const int16_t *gains, const int32_t *offsets,
                             int rshift, q7_t *out)
{
    for (int i = 0; i < size; i += channels) {
        for (int c = 0; c < channels; c++) {
            out[i + c] = saturate_q7((in[i + c] * gains[c] + offsets[c]) >> rshift);
        }
    }
}

#endif
