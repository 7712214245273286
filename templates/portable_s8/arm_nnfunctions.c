/* SPDX-License-Identifier: Apache-2.0
 * The s8 and s4 kernels of CMSIS-NN 7 in portable C. */
#include "arm_nnfunctions.h"

#include "arm_nnsupportfunctions.h"

/* Sums are unsigned here, since the kernels' 32-bit sums wrap and C leaves that open for signed ones. */

static int8_t clamp(int32_t value, const cmsis_nn_activation *range)
{
    return (int8_t)(value > range->max ? range->max : value < range->min ? range->min : value);
}

static int8_t finish(uint32_t sum, int32_t multiplier, int32_t shift, int32_t offset, const cmsis_nn_activation *range)
{
    return clamp(arm_nn_requantize((int32_t)sum, multiplier, shift) + offset, range);
}

/* The i-th weight of an array, each a byte or half a byte; of two, the first is in the low half. */
typedef int32_t weight_t(const int8_t *weights, int32_t i);

static int32_t byte_at(const int8_t *weights, int32_t i)
{
    return weights[i];
}

static int32_t nibble_at(const int8_t *weights, int32_t i)
{
    return (((uint8_t)weights[i / 2] >> i % 2 * 4 & 15) ^ 8) - 8;
}

static inline uint32_t dot(const int8_t *values, int32_t offset, const int8_t *weights, int32_t first, int32_t length,
                           weight_t *weight)
{
    uint32_t sum = 0;
    for (int32_t i = 0; i < length; i++) {
        sum += (uint32_t)((values[i] + offset) * weight(weights, first + i));
    }
    return sum;
}

/* A window along one axis: its first cell, and the taps [begin, end) of the kernel that meet the image. */
typedef struct {
    int32_t origin, begin, end;
} window_t;

static window_t clip_window(int32_t output, int32_t stride, int32_t padding, int32_t dilation, int32_t taps, int32_t in)
{
    window_t window = {output * stride - padding, 0, 0};
    while (window.begin < taps && window.origin + window.begin * dilation < 0) {
        window.begin++;
    }
    window.end = window.begin;
    while (window.end < taps && window.origin + window.end * dilation < in) {
        window.end++;
    }
    return window;
}

static inline void convolve(const cmsis_nn_conv_params *conv_params,
                            const cmsis_nn_per_channel_quant_params *quant_params, const cmsis_nn_dims *input_dims,
                            const int8_t *input_data, const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                            const int32_t *bias_data, const cmsis_nn_dims *output_dims, int8_t *output_data,
                            weight_t *weight)
{
    const cmsis_nn_conv_params p = *conv_params;
    const cmsis_nn_dims in = *input_dims, k = *filter_dims;
    const int32_t group_outputs = output_dims->c / (in.c / k.c);
    const int contiguous = p.dilation.w == 1 && k.c == in.c; /* taps of a row */
    for (int32_t oy = 0; oy < output_dims->h; oy++) {
        const window_t rows = clip_window(oy, p.stride.h, p.padding.h, p.dilation.h, k.h, in.h);
        for (int32_t ox = 0; ox < output_dims->w; ox++) {
            const window_t columns = clip_window(ox, p.stride.w, p.padding.w, p.dilation.w, k.w, in.w);
            const int32_t run = contiguous ? columns.end - columns.begin : 1;
            for (int32_t o = 0; o < output_dims->c; o++) {
                const int8_t *const group = input_data + o / group_outputs * k.c;
                uint32_t sum = (uint32_t)bias_data[o];
                for (int32_t ky = rows.begin; ky < rows.end; ky++) {
                    for (int32_t kx = columns.begin; kx < columns.end; kx += run) {
                        const int32_t y = rows.origin + ky * p.dilation.h, x = columns.origin + kx * p.dilation.w;
                        sum += dot(group + (y * in.w + x) * in.c, p.input_offset, filter_data,
                                   ((o * k.h + ky) * k.w + kx) * k.c, run * k.c, weight);
                    }
                }
                *output_data++ = finish(sum, quant_params->multiplier[o], quant_params->shift[o], p.output_offset,
                                        &p.activation);
            }
        }
    }
}

arm_cmsis_nn_status arm_convolve_wrapper_s8(const cmsis_nn_context *ctx, const cmsis_nn_conv_params *conv_params,
                                            const cmsis_nn_per_channel_quant_params *quant_params,
                                            const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                            const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                            const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                            const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    (void)ctx;
    (void)bias_dims;
    convolve(conv_params, quant_params, input_dims, input_data, filter_dims, filter_data, bias_data,
             output_dims, output_data, byte_at);
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_convolve_wrapper_s4(const cmsis_nn_context *ctx, const cmsis_nn_conv_params *conv_params,
                                            const cmsis_nn_per_channel_quant_params *quant_params,
                                            const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                            const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                            const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                            const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    (void)ctx;
    (void)bias_dims;
    convolve(conv_params, quant_params, input_dims, input_data, filter_dims, filter_data, bias_data,
             output_dims, output_data, nibble_at);
    return ARM_CMSIS_NN_SUCCESS;
}

static inline void depthwise(const cmsis_nn_dw_conv_params *dw_conv_params,
                             const cmsis_nn_per_channel_quant_params *quant_params, const cmsis_nn_dims *input_dims,
                             const int8_t *input_data, const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                             const int32_t *bias_data, const cmsis_nn_dims *output_dims, int8_t *output_data,
                             weight_t *weight)
{
    const cmsis_nn_dw_conv_params p = *dw_conv_params;
    const cmsis_nn_dims in = *input_dims, k = *filter_dims;
    const int32_t outputs = output_dims->c;
    for (int32_t oy = 0; oy < output_dims->h; oy++) {
        const window_t rows = clip_window(oy, p.stride.h, p.padding.h, p.dilation.h, k.h, in.h);
        for (int32_t ox = 0; ox < output_dims->w; ox++) {
            const window_t columns = clip_window(ox, p.stride.w, p.padding.w, p.dilation.w, k.w, in.w);
            for (int32_t o = 0; o < outputs; o++) {
                uint32_t sum = (uint32_t)bias_data[o];
                for (int32_t ky = rows.begin; ky < rows.end; ky++) {
                    for (int32_t kx = columns.begin; kx < columns.end; kx++) {
                        const int32_t y = rows.origin + ky * p.dilation.h, x = columns.origin + kx * p.dilation.w;
                        const int32_t value = input_data[(y * in.w + x) * in.c + o / p.ch_mult] + p.input_offset;
                        sum += (uint32_t)(value * weight(filter_data, (ky * k.w + kx) * outputs + o));
                    }
                }
                *output_data++ = finish(sum, quant_params->multiplier[o], quant_params->shift[o], p.output_offset,
                                        &p.activation);
            }
        }
    }
}

arm_cmsis_nn_status arm_depthwise_conv_wrapper_s8(const cmsis_nn_context *ctx,
                                                  const cmsis_nn_dw_conv_params *dw_conv_params,
                                                  const cmsis_nn_per_channel_quant_params *quant_params,
                                                  const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                                  const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                                  const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                                  const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    (void)ctx;
    (void)bias_dims;
    depthwise(dw_conv_params, quant_params, input_dims, input_data, filter_dims, filter_data, bias_data,
              output_dims, output_data, byte_at);
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_depthwise_conv_s4(const cmsis_nn_context *ctx, const cmsis_nn_dw_conv_params *dw_conv_params,
                                          const cmsis_nn_per_channel_quant_params *quant_params,
                                          const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                          const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                          const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                          const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    (void)ctx;
    (void)bias_dims;
    depthwise(dw_conv_params, quant_params, input_dims, input_data, filter_dims, filter_data, bias_data,
              output_dims, output_data, nibble_at);
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_depthwise_conv_wrapper_s4(const cmsis_nn_context *ctx,
                                                  const cmsis_nn_dw_conv_params *dw_conv_params,
                                                  const cmsis_nn_per_channel_quant_params *quant_params,
                                                  const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                                  const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                                  const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                                  const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    return arm_depthwise_conv_s4(ctx, dw_conv_params, quant_params, input_dims, input_data, filter_dims, filter_data,
                                 bias_dims, bias_data, output_dims, output_data);
}

static inline void multiply(const cmsis_nn_fc_params *params, const cmsis_nn_per_tensor_quant_params *quantization,
                            const int8_t *vector, int32_t depth, const int8_t *weights, const int32_t *bias,
                            int32_t rows, int8_t *output, weight_t *weight)
{
    for (int32_t row = 0; row < rows; row++) {
        const uint32_t sum =
            (uint32_t)bias[row] + dot(vector, params->input_offset, weights, row * depth, depth, weight);
        output[row] =
            finish(sum, quantization->multiplier, quantization->shift, params->output_offset, &params->activation);
    }
}

arm_cmsis_nn_status arm_fully_connected_s8(const cmsis_nn_context *ctx, const cmsis_nn_fc_params *fc_params,
                                           const cmsis_nn_per_tensor_quant_params *quant_params,
                                           const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                           const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                           const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                           const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    (void)input_dims;
    (void)bias_dims;
    (void)bias_data;
    multiply(fc_params, quant_params, input_data, filter_dims->n, filter_data, ctx->buf, output_dims->c, output_data,
             byte_at);
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_fully_connected_s4(const cmsis_nn_context *ctx, const cmsis_nn_fc_params *fc_params,
                                           const cmsis_nn_per_tensor_quant_params *quant_params,
                                           const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                           const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                           const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                           const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    (void)ctx;
    (void)input_dims;
    (void)bias_dims;
    multiply(fc_params, quant_params, input_data, filter_dims->n, filter_data, bias_data, output_dims->c, output_data,
             nibble_at);
    return ARM_CMSIS_NN_SUCCESS;
}

static arm_cmsis_nn_status pool(const cmsis_nn_pool_params *p, const cmsis_nn_dims *in, const int8_t *image,
                                const cmsis_nn_dims *k, const cmsis_nn_dims *out, int average, int8_t *output)
{
    for (int32_t oy = 0; oy < out->h; oy++) {
        const window_t rows = clip_window(oy, p->stride.h, p->padding.h, 1, k->h, in->h);
        for (int32_t ox = 0; ox < out->w; ox++) {
            const window_t columns = clip_window(ox, p->stride.w, p->padding.w, 1, k->w, in->w);
            const int32_t cells = (rows.end - rows.begin) * (columns.end - columns.begin);
            if (cells == 0) {
                return ARM_CMSIS_NN_ARG_ERROR;
            }
            for (int32_t c = 0; c < in->c; c++) {
                int32_t sum = 0, most = -128;
                for (int32_t y = rows.origin + rows.begin; y < rows.origin + rows.end; y++) {
                    for (int32_t x = columns.origin + columns.begin; x < columns.origin + columns.end; x++) {
                        const int32_t value = image[(y * in->w + x) * in->c + c];
                        sum += value;
                        most = value > most ? value : most;
                    }
                }
                sum += sum > 0 ? cells / 2 : -(cells / 2);
                *output++ = clamp(average ? sum / cells : most, &p->activation);
            }
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_max_pool_s8(const cmsis_nn_context *ctx, const cmsis_nn_pool_params *pool_params,
                                    const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                    const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims,
                                    int8_t *output_data)
{
    (void)ctx;
    return pool(pool_params, input_dims, input_data, filter_dims, output_dims, 0, output_data);
}

/* Rounds to the nearest, ties away from zero. */
arm_cmsis_nn_status arm_avgpool_s8(const cmsis_nn_context *ctx, const cmsis_nn_pool_params *pool_params,
                                   const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                   const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims,
                                   int8_t *output_data)
{
    (void)ctx;
    return pool(pool_params, input_dims, input_data, filter_dims, output_dims, 1, output_data);
}

arm_cmsis_nn_status arm_elementwise_add_s8(const int8_t *input_1_vect, const int8_t *input_2_vect,
                                           const int32_t input_1_offset, const int32_t input_1_mult,
                                           const int32_t input_1_shift, const int32_t input_2_offset,
                                           const int32_t input_2_mult, const int32_t input_2_shift,
                                           const int32_t left_shift, int8_t *output, const int32_t out_offset,
                                           const int32_t out_mult, const int32_t out_shift,
                                           const int32_t out_activation_min, const int32_t out_activation_max,
                                           const int32_t block_size)
{
    const cmsis_nn_activation range = {out_activation_min, out_activation_max};
    for (int32_t i = 0; i < block_size; i++) {
        const int32_t left = (input_1_vect[i] + input_1_offset) * (1 << left_shift);
        const int32_t right = (input_2_vect[i] + input_2_offset) * (1 << left_shift);
        const int32_t sum = arm_nn_requantize(left, input_1_mult, input_1_shift) +
                            arm_nn_requantize(right, input_2_mult, input_2_shift);
        output[i] = finish((uint32_t)sum, out_mult, out_shift, out_offset, &range);
    }
    return ARM_CMSIS_NN_SUCCESS;
}

void arm_relu_q7(int8_t *data, uint16_t size)
{
    for (int i = 0; i < size; i++) {
        data[i] = data[i] > 0 ? data[i] : 0;
    }
}
