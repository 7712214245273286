/* SPDX-License-Identifier: Apache-2.0
 * Functions of one number, from a table. */
#ifndef LOOKUP_Q7_H
#define LOOKUP_Q7_H

#include "words_q7.h"

/* Looks up each input, reinterpreted as unsigned, in a table of 256 values. Works in place. */
static inline void lookup_q7(const q7_t *in, int size, const q7_t *table, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        out[i] = table[(uint8_t)in[i]];
    }
}

#endif
