/* SPDX-License-Identifier: Apache-2.0
 * Scaled sums along axes, rounded half up. */
#ifndef REDUCTION_Q7_H
#define REDUCTION_Q7_H

#include "words_q7.h"

INLINE q7_t scaled_sum_q7(q31_t sum, int multiplier, int rshift)
{
    const int64_t scaled = ((int64_t)sum * multiplier + ((int64_t)1 << rshift >> 1)) >> rshift;
    return (q7_t)(scaled > 127 ? 127 : scaled < -128 ? -128 : scaled);
}

/* The terms of the sum. */
typedef enum { ELEMENTS, MAGNITUDES, SQUARES } terms_t;

/* Each sum has `count` elements, `distance` apart; sums are `apart`, and groups of sums `group_apart`. */
typedef struct {
    int groups, sums, count, group_apart, apart, distance;
    terms_t terms;
} sums_t;

/* Sums times multiplier / 2**rshift. */
INLINE void reduce_q7(const q7_t *in, const sums_t *s, int multiplier, int rshift, q7_t *out)
{
    for (int g = 0; g < s->groups; g++) {
        for (int i = 0; i < s->sums; i++) {
            q31_t sum = 0;
            for (int k = 0; k < s->count; k++) {
                const q31_t x = in[g * s->group_apart + i * s->apart + k * s->distance];
                sum += s->terms == SQUARES ? x * x : s->terms == MAGNITUDES && x < 0 ? -x : x;
            }
            *out++ = scaled_sum_q7(sum, multiplier, rshift);
        }
    }
}

#endif
