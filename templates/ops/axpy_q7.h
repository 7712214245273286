/* SPDX-License-Identifier: Apache-2.0
 * a * x + y, with one value of a per channel. Images are HWC. */
#ifndef AXPY_Q7_H
#define AXPY_Q7_H

#include "words_q7.h"

/* Shifts that align the products with y, and the shift of their sum to the output's format (bits). */
typedef struct {
    int product_lshift, product_rshift, y_lshift, y_rshift, out_rshift;
} axpy_t;

/* value * 2**lshift / 2**rshift, rounded half up. */
INLINE q31_t shifted_q31(q31_t value, int lshift, int rshift)
{
    return (value * (1 << lshift) + (1 << rshift >> 1)) >> rshift;
}

/* The output may be x or y. */
INLINE void axpy_q7(const q7_t *a, const q7_t *x, const q7_t *y, int size, int channels, const axpy_t *terms, q7_t *out)
{
    for (int i = 0; i < size; i += channels) {
        for (int c = 0; c < channels; c++) {
            const q31_t product = shifted_q31(a[c] * x[i + c], terms->product_lshift, terms->product_rshift);
            const q31_t sum = product + shifted_q31(y[i + c], terms->y_lshift, terms->y_rshift);
            out[i + c] = saturate_q7(shifted_q31(sum, 0, terms->out_rshift));
        }
    }
}

#endif
