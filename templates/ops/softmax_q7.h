/* SPDX-License-Identifier: Apache-2.0
 * Softmax: with powers of two for a vector, with exponentials along an axis. */
#ifndef SOFTMAX_Q7_H
#define SOFTMAX_Q7_H

#include "words_q7.h"

/* Powers of two instead of exponentials, like arm_softmax_q7 of CMSIS 5.9.0. Works in place. */
static inline void softmax_q7(const q7_t *in, int size, q7_t *out)
{
    int most = in[0], sum = 0;
    for (int i = 1; i < size; i++) {
        most = in[i] > most ? in[i] : most;
    }
    for (int i = 0; i < size; i++) {
        const int power = in[i] - (most - 8);
        sum += 1 << (power > 7 ? 7 : power < 0 ? 0 : power);
    }
    for (int i = 0; i < size; i++) {
        const int shift = 5 + most - in[i];
        out[i] = saturate_q7((1 << 20) / sum >> (shift > 31 ? 31 : shift));
    }
}

/* exp(x - largest) * 128 / sum along an axis of `count` elements, `distance` apart, in each of `stretches` blocks of
 * memory. The table has exp of 0, -1, ... -255. Works in place. */
static inline void softmax_along_q7(const q7_t *in, int stretches, int count, int distance, const uint32_t *table, q7_t *out)
{
    for (int i = 0; i < stretches * distance; i++) {
        const int start = i / distance * count * distance + i % distance, end = start + count * distance;
        int most = in[start];
        uint32_t sum = 0;
        for (int k = start; k < end; k += distance) {
            most = in[k] > most ? in[k] : most;
        }
        for (int k = start; k < end; k += distance) {
            sum += table[most - in[k]];
        }
        for (int k = start; k < end; k += distance) {
            out[k] = saturate_q7((q31_t)((table[most - in[k]] * 128 + sum / 2) / sum));
        }
    }
}

#endif
