/* SPDX-License-Identifier: Apache-2.0
 * Copies elements in another order. */
#ifndef MOVES_Q7_H
#define MOVES_Q7_H

#include "words_q7.h"

/* Source of the output's elements: nested loops, outermost first, with their counts and strides. */
typedef struct {
    int start, counts[5], strides[5];
} move_t;

static inline void move_q7(const q7_t *in, const move_t *m, q7_t *out)
{
    for (int a = 0; a < m->counts[0]; a++) {
        for (int b = 0; b < m->counts[1]; b++) {
            for (int c = 0; c < m->counts[2]; c++) {
                const q7_t *from = in + m->start + a * m->strides[0] + b * m->strides[1] + c * m->strides[2];
                for (int d = 0; d < m->counts[3]; d++) {
                    for (int e = 0; e < m->counts[4]; e++) {
                        *out++ = from[e * m->strides[4]];
                    }
                    from += m->strides[3];
                }
            }
        }
    }
}

#endif
