/* SPDX-License-Identifier: Apache-2.0
 * Normalizes vectors to length 1. Images are HWC. */
#ifndef NORMALIZE_Q7_H
#define NORMALIZE_Q7_H

#include "lrn_q7.h"

/* Multiplies each element by a power of the sum of squares of its pixel's channels. */
static inline void normalize_q7(const q7_t *in, int pixels, int channels, const powers_t *p, q7_t *out)
{
    for (int i = 0; i < pixels; i++) {
        q31_t sum = 0;
        for (int c = 0; c < channels; c++) {
            sum += in[c] * in[c];
        }
        for (int c = 0; c < channels; c++) {
            *out++ = normalized_q7(*in++, p, sum);
        }
    }
}

#endif
