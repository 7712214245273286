/* SPDX-License-Identifier: Apache-2.0
 * The types from CMSIS-DSP's arm_math.h that the q7 kernels need, for builds without Arm's libraries. */
#ifndef ARM_MATH_H
#define ARM_MATH_H

#include <stddef.h>
#include <stdint.h>

#if defined(__ARM_FEATURE_DSP) && !defined(ARM_MATH_DSP)
#define ARM_MATH_DSP 1
#endif
#if defined(__ARM_FEATURE_MVE) && !defined(ARM_MATH_MVEI)
#define ARM_MATH_MVEI 1
#endif

typedef int8_t q7_t;
typedef int16_t q15_t;
typedef int32_t q31_t;

typedef enum { ARM_MATH_SUCCESS = 0, ARM_MATH_SIZE_MISMATCH = -3 } arm_status;

#endif
