/* SPDX-License-Identifier: Apache-2.0
 * Elementwise sums, maxima and products of inputs. */
#ifndef ELTWISE_Q7_H
#define ELTWISE_Q7_H

#include "words_q7.h"

/* An input and its factor: 1 or -1 times a power of two. */
typedef struct {
    const q7_t *data;
    q31_t factor;
} operand_t;

/* Elementwise sum of `size` elements, limited to low ... high; the output may be one of the operands. */
INLINE void add_q7(const operand_t *operands, int count, int size, int out_rshift, q31_t low, q31_t high, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        q31_t sum = (1 << out_rshift) >> 1;
        for (int k = 0; k < count; k++) {
            sum += operands[k].data[i] * operands[k].factor;
        }
        out[i] = limited_q7(sum >> out_rshift, low, high);
    }
}

/* Elementwise maximum of `size` elements, limited to low ... high; the output may be one of the operands. */
INLINE void max_q7(const operand_t *operands, int count, int size, int out_rshift, q31_t low, q31_t high, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        q31_t most = operands[0].data[i] * operands[0].factor;
        for (int k = 1; k < count; k++) {
            const q31_t value = operands[k].data[i] * operands[k].factor;
            most = value > most ? value : most;
        }
        out[i] = limited_q7((most + ((1 << out_rshift) >> 1)) >> out_rshift, low, high);
    }
}

/* Elementwise sum; the second operand repeats every `others` elements. */
INLINE void add_channels_q7(const operand_t *operands, int size, int others, int out_rshift, q31_t low, q31_t high,
                            q7_t *out)
{
    for (int i = 0; i < size; i += others) {
        const operand_t part[] = {{operands[0].data + i, operands[0].factor}, operands[1]};
        add_q7(part, 2, others, out_rshift, low, high, out + i);
    }
}

/* Elementwise product; the second input repeats every `others` elements. The output may be the first input, or the
 * second if that has `size` elements. */
INLINE void multiply_q7(const q7_t *in_1, const q7_t *in_2, int size, int others, int lshift, int rshift, q7_t *out)
{
    for (int i = 0; i < size; i += others) {
        for (int k = 0; k < others; k++) {
            const q31_t product = in_1[i + k] * in_2[k] * (1 << lshift);
            out[i + k] = saturate_q7((product + ((1 << rshift) >> 1)) >> rshift);
        }
    }
}

#endif
