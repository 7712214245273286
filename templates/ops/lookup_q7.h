/* SPDX-License-Identifier: Apache-2.0
 * Functions of one number, as a table. */
#ifndef LOOKUP_Q7_H
#define LOOKUP_Q7_H

#include "words_q7.h"

/* The value of each of the 256 inputs, by its bits as an unsigned number; the output may be the input. */
static inline void lookup_q7(const q7_t *in, int size, const q7_t *table, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        out[i] = table[(uint8_t)in[i]];
    }
}

#endif
