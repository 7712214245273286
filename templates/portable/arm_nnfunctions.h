/* SPDX-License-Identifier: Apache-2.0
 * The q7 kernels of CMSIS-NN 5.9.0 in portable C: the same prototypes and the same results, to the last bit.
 *
 * Define ARM_MATH_DSP for the arithmetic of cores with the DSP extension (Cortex-M4, M7, M33): pooling has two stages.
 * Without it, or with ARM_MATH_MVEI (M55), the arithmetic is that of Cortex-M0 and M3. Define ARM_NN_TRUNCATE to
 * requantize without rounding. */
#ifndef PORTABLE_ARM_NNFUNCTIONS_H
#define PORTABLE_ARM_NNFUNCTIONS_H

#include "arm_math.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ARM_Q7_CONVOLVE_SQUARE(name)                                                                                   \
    arm_status name(const q7_t *Im_in, const uint16_t dim_im_in, const uint16_t ch_im_in, const q7_t *wt,              \
                    const uint16_t ch_im_out, const uint16_t dim_kernel, const uint16_t padding,                       \
                    const uint16_t stride, const q7_t *bias, const uint16_t bias_shift, const uint16_t out_shift,      \
                    q7_t *Im_out, const uint16_t dim_im_out, q15_t *bufferA, q7_t *bufferB)

#define ARM_Q7_CONVOLVE_NONSQUARE(name)                                                                                \
    arm_status name(const q7_t *Im_in, const uint16_t dim_im_in_x, const uint16_t dim_im_in_y,                         \
                    const uint16_t ch_im_in, const q7_t *wt, const uint16_t ch_im_out, const uint16_t dim_kernel_x,    \
                    const uint16_t dim_kernel_y, const uint16_t padding_x, const uint16_t padding_y,                   \
                    const uint16_t stride_x, const uint16_t stride_y, const q7_t *bias, const uint16_t bias_shift,     \
                    const uint16_t out_shift, q7_t *Im_out, const uint16_t dim_im_out_x,                               \
                    const uint16_t dim_im_out_y, q15_t *bufferA, q7_t *bufferB)

ARM_Q7_CONVOLVE_SQUARE(arm_convolve_HWC_q7_basic);
ARM_Q7_CONVOLVE_SQUARE(arm_convolve_HWC_q7_RGB);
ARM_Q7_CONVOLVE_SQUARE(arm_convolve_HWC_q7_fast);
ARM_Q7_CONVOLVE_SQUARE(arm_depthwise_separable_conv_HWC_q7);
ARM_Q7_CONVOLVE_NONSQUARE(arm_convolve_HWC_q7_basic_nonsquare);
ARM_Q7_CONVOLVE_NONSQUARE(arm_convolve_HWC_q7_fast_nonsquare);
ARM_Q7_CONVOLVE_NONSQUARE(arm_convolve_1x1_HWC_q7_fast_nonsquare);
ARM_Q7_CONVOLVE_NONSQUARE(arm_depthwise_separable_conv_HWC_q7_nonsquare);

arm_status arm_fully_connected_q7(const q7_t *pV, const q7_t *pM, const uint16_t dim_vec, const uint16_t num_of_rows,
                                  const uint16_t bias_shift, const uint16_t out_shift, const q7_t *bias, q7_t *pOut,
                                  q15_t *vec_buffer);
arm_status arm_fully_connected_q7_opt(const q7_t *pV, const q7_t *pM, const uint16_t dim_vec,
                                      const uint16_t num_of_rows, const uint16_t bias_shift, const uint16_t out_shift,
                                      const q7_t *bias, q7_t *pOut, q15_t *vec_buffer);

void arm_relu_q7(q7_t *data, uint16_t size);

typedef enum { ARM_SIGMOID = 0, ARM_TANH = 1 } arm_nn_activation_type;

void arm_nn_activations_direct_q7(q7_t *data, uint16_t size, uint16_t int_width, arm_nn_activation_type type);

/* As in 5.9.0; older releases compute other values. */
void arm_softmax_q7(const q7_t *vec_in, const uint16_t dim_vec, q7_t *p_out);

void arm_maxpool_q7_HWC(q7_t *Im_in, const uint16_t dim_im_in, const uint16_t ch_im_in, const uint16_t dim_kernel,
                        const uint16_t padding, const uint16_t stride, const uint16_t dim_im_out, q7_t *bufferA,
                        q7_t *Im_out);

#ifdef __cplusplus
}
#endif

#endif
