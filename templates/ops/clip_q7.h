/* SPDX-License-Identifier: Apache-2.0
 * A smallest and a largest output. */
#ifndef CLIP_Q7_H
#define CLIP_Q7_H

#include "words_q7.h"

/* max(low, min(x, high)); the output may be the input. */
static inline void clip_q7(const q7_t *in, int size, q7_t low, q7_t high, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        out[i] = in[i] < low ? low : in[i] > high ? high : in[i];
    }
}

#endif
