/* SPDX-License-Identifier: Apache-2.0
 * The largest elements along an axis, or their indices. */
#ifndef ARGMAX_Q7_H
#define ARGMAX_Q7_H

#include "words_q7.h"

typedef enum { PLACES, VALUES } largest_t;

/* The `most` largest elements along an axis, or their indices, the largest first; ties: the last one first. */
static inline void largest_along_q7(const q7_t *in, int stretches, int count, int distance, int most, largest_t what,
                                    q7_t *out)
{
    for (int i = 0; i < stretches * distance; i++) {
        const q7_t *const line = in + i / distance * count * distance + i % distance;
        q7_t *to = out + i / distance * most * distance + i % distance;
        q31_t last = 1 << 30;
        for (int n = 0; n < most; n++) {
            q31_t next = -(1 << 30); /* value and index in one number */
            for (int k = 0; k < count; k++) {
                const q31_t element = line[k * distance] * 65536 + k;
                next = element > next && element < last ? element : next;
            }
            *to = (q7_t)(what == VALUES ? next >> 16 : next & 0xFFFF);
            to += distance;
            last = next;
        }
    }
}

#endif
