/* SPDX-License-Identifier: Apache-2.0
 * Shared by the portable s8 kernels. */
#ifndef ARM_NNSUPPORTFUNCTIONS_H
#define ARM_NNSUPPORTFUNCTIONS_H

#include <stdint.h>

/* (value * multiplier << shift) >> 31, rounded half up; a negative shift rounds once more, ties away from zero. */
static inline int32_t arm_nn_requantize(const int32_t value, const int32_t multiplier, const int32_t shift)
{
    const int32_t left = (int32_t)((uint32_t)value << (shift > 0 ? shift : 0));
    const int32_t product = (int32_t)(((int64_t)left * multiplier + (1 << 30)) >> 31);
    if (shift >= 0) {
        return product;
    }
    const int64_t half = (int64_t)1 << (-shift - 1);
    return (int32_t)((product + half - (product < 0)) >> -shift);
}

#endif
