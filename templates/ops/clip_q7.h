/* SPDX-License-Identifier: Apache-2.0
 * Limits values to a range. */
#ifndef CLIP_Q7_H
#define CLIP_Q7_H

#include "words_q7.h"

/* max(low, min(x, high)). Works in place. */
static inline void clip_q7(const q7_t *in, int size, q7_t low, q7_t high, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        out[i] = in[i] < low ? low : in[i] > high ? high : in[i];
    }
}

#endif
