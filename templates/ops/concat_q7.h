/* SPDX-License-Identifier: Apache-2.0
 * Concatenation. */
#ifndef CONCAT_Q7_H
#define CONCAT_Q7_H

#include "words_q7.h"

/* Copies an input's channels into the `out_channels` of each pixel; a negative rshift shifts left. */
static inline void concat_q7(const q7_t *in, int pixels, int channels, int rshift, q7_t *out, int out_channels)
{
    const q31_t factor = rshift < 0 ? 1 << -rshift : 1;
    const int right = rshift < 0 ? 0 : rshift;
    for (int i = 0; i < pixels; i++) {
        for (int c = 0; c < channels; c++) {
            out[c] = saturate_q7((in[c] * factor + ((1 << right) >> 1)) >> right);
        }
        in += channels;
        out += out_channels;
    }
}

#endif
