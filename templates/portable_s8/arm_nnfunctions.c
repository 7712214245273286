/* SPDX-License-Identifier: Apache-2.0
 * The s8 and s4 kernels of CMSIS-NN 7 in portable C, with the same results and side effects as Arm's: they check no
 * more, read and write the same memory, even beyond their arrays, and fill scratch memory with garbage. */
#include "arm_nnfunctions.h"

#include <assert.h>
#include <string.h>

#include "arm_nnsupportfunctions.h"

#if defined(ARM_MATH_MVEI)
enum { MVE_PATH = 1, DSP_PATH = 0 };
#elif defined(ARM_MATH_DSP)
enum { MVE_PATH = 0, DSP_PATH = 1 };
#else
enum { MVE_PATH = 0, DSP_PATH = 0 };
#endif

/* Overwrites scratch memory before and after use; the kernels require word alignment. */
static void spoil(const cmsis_nn_context *ctx)
{
    if (ctx->buf != NULL) {
        assert((size_t)ctx->buf % sizeof(int32_t) == 0);
        memset(ctx->buf, 0x5b, (size_t)ctx->size);
    }
}

/* Sums are unsigned because the kernels' 32-bit sums wrap, which is undefined in C for signed numbers. */

static int8_t clamp(int32_t value, const cmsis_nn_activation *range)
{
    return (int8_t)(value > range->max ? range->max : value < range->min ? range->min : value);
}

static int8_t finish(uint32_t sum, int32_t multiplier, int32_t shift, int32_t offset, const cmsis_nn_activation *range)
{
    return clamp(arm_nn_requantize((int32_t)sum, multiplier, shift) + offset, range);
}

/* The i-th weight of an array, in a byte or half a byte; the first of two is in the low half. */
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

/* A window along one axis: its first cell, and the taps [begin, end) of the kernel inside the image. */
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

/* The arguments of a layer with weights, except its geometry. */
typedef struct {
    const cmsis_nn_per_channel_quant_params *quant;
    int32_t input_offset, output_offset;
    const cmsis_nn_activation *range;
    const int8_t *weights;
    const int32_t *bias;
    weight_t *weight;
} scaling_t;

static int8_t scaled(const scaling_t *s, uint32_t sum, int32_t o)
{
    return finish(sum, s->quant->multiplier[o], s->quant->shift[o], s->output_offset, s->range);
}

/* `count` outputs for each window from `input` on; windows have `size` bytes and are `pitch` bytes apart. */
static inline void convolve_windows(const scaling_t *s, const int8_t *input, int32_t pitch, int32_t size,
                                    int32_t windows, int32_t count, int8_t *output)
{
    for (int32_t i = 0; i < windows; i++) {
        for (int32_t o = 0; o < count; o++) {
            const uint32_t sum = dot(input + i * pitch, s->input_offset, s->weights, o * size, size, s->weight);
            *output++ = scaled(s, (uint32_t)s->bias[o] + sum, o);
        }
    }
}

static inline void convolve(const cmsis_nn_conv_params *conv_params, const scaling_t *s,
                            const cmsis_nn_dims *input_dims, const int8_t *input_data,
                            const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims, int8_t *output_data)
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
                uint32_t sum = (uint32_t)s->bias[o];
                for (int32_t ky = rows.begin; ky < rows.end; ky++) {
                    for (int32_t kx = columns.begin; kx < columns.end; kx += run) {
                        const int32_t y = rows.origin + ky * p.dilation.h, x = columns.origin + kx * p.dilation.w;
                        sum += dot(group + (y * in.w + x) * in.c, s->input_offset, s->weights,
                                   ((o * k.h + ky) * k.w + kx) * k.c, run * k.c, s->weight);
                    }
                }
                *output_data++ = scaled(s, sum, o);
            }
        }
    }
}

/* 1x1 without padding. With a stride of 1, it computes all pixels of the input, regardless of the output's size;
 * otherwise all pixels of the output, even beyond the input. */
static inline void convolve_1x1(const cmsis_nn_conv_params *p, const scaling_t *s, const cmsis_nn_dims *in,
                                const int8_t *input, const cmsis_nn_dims *out, int8_t *output)
{
    if (p->stride.w == 1 && p->stride.h == 1) {
        convolve_windows(s, input, in->c, in->c, in->w * in->h, out->c, output);
        return;
    }
    for (int32_t oy = 0; oy < out->h; oy++) {
        convolve_windows(s, input + oy * p->stride.h * in->w * in->c, p->stride.w * in->c, in->c, out->w, out->c,
                         output + oy * out->w * out->c);
    }
}

/* An image of one row, on MVE: one row of outputs, regardless of the output's height. Windows that start left of the
 * image are checked only on the left, all others only on the right; inconsistent geometry is rejected. */
static inline arm_cmsis_nn_status convolve_row(const cmsis_nn_conv_params *p, const scaling_t *s,
                                               const cmsis_nn_dims *in, const int8_t *input, const cmsis_nn_dims *k,
                                               const cmsis_nn_dims *out, int8_t *output)
{
    const int32_t stride = p->stride.w, pad = p->padding.w, total = (out->w - 1) * stride + k->w - in->w;
    if (2 * pad + total % 2 != total) {
        return ARM_CMSIS_NN_FAILURE;
    }
    for (int32_t ox = 0; ox < out->w; ox++) {
        const int32_t origin = ox * stride - pad;
        for (int32_t o = 0; o < out->c; o++) {
            uint32_t sum = (uint32_t)s->bias[o];
            for (int32_t kx = origin < 0 ? -origin : 0; kx < k->w && (origin < 0 || origin + kx < in->w); kx++) {
                sum += dot(input + (origin + kx) * in->c, s->input_offset, s->weights, (o * k->w + kx) * in->c, in->c,
                           s->weight);
            }
            *output++ = scaled(s, sum, o);
        }
    }
    return ARM_CMSIS_NN_SUCCESS;
}

static inline arm_cmsis_nn_status convolve_any(const cmsis_nn_context *ctx, const cmsis_nn_conv_params *p,
                                               const scaling_t *s, const cmsis_nn_dims *in, const int8_t *input,
                                               const cmsis_nn_dims *k, const cmsis_nn_dims *out, int8_t *output)
{
    const int undilated = p->dilation.w == 1 && p->dilation.h == 1, one_group = in->c == k->c;
    const int unpadded = p->padding.w == 0 && p->padding.h == 0;
    arm_cmsis_nn_status status = ARM_CMSIS_NN_SUCCESS;
    spoil(ctx);
    if (unpadded && k->w == 1 && k->h == 1 && undilated && one_group) {
        convolve_1x1(p, s, in, input, out, output);
    } else if (ctx->buf == NULL) {
        status = ARM_CMSIS_NN_ARG_ERROR;
    } else if (MVE_PATH && in->h == 1 && k->h == 1 && p->dilation.w == 1 && p->stride.w * in->c % 4 == 0 && one_group) {
        status = convolve_row(p, s, in, input, k, out, output);
    } else {
        convolve(p, s, in, input, k, out, output);
    }
    spoil(ctx);
    return status;
}

arm_cmsis_nn_status arm_convolve_wrapper_s8(const cmsis_nn_context *ctx, const cmsis_nn_conv_params *conv_params,
                                            const cmsis_nn_per_channel_quant_params *quant_params,
                                            const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                            const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                            const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                            const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const scaling_t s = {quant_params, conv_params->input_offset, conv_params->output_offset, &conv_params->activation,
                         filter_data, bias_data, byte_at};
    (void)bias_dims;
    return convolve_any(ctx, conv_params, &s, input_dims, input_data, filter_dims, output_dims, output_data);
}

arm_cmsis_nn_status arm_convolve_wrapper_s4(const cmsis_nn_context *ctx, const cmsis_nn_conv_params *conv_params,
                                            const cmsis_nn_per_channel_quant_params *quant_params,
                                            const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                            const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                            const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                            const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const scaling_t s = {quant_params, conv_params->input_offset, conv_params->output_offset, &conv_params->activation,
                         filter_data, bias_data, nibble_at};
    (void)bias_dims;
    return convolve_any(ctx, conv_params, &s, input_dims, input_data, filter_dims, output_dims, output_data);
}

static inline void depthwise(const cmsis_nn_dw_conv_params *dw_conv_params, const scaling_t *s,
                             const cmsis_nn_dims *input_dims, const int8_t *input_data,
                             const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const cmsis_nn_dw_conv_params p = *dw_conv_params;
    const cmsis_nn_dims in = *input_dims, k = *filter_dims;
    const int32_t outputs = output_dims->c;
    for (int32_t oy = 0; oy < output_dims->h; oy++) {
        const window_t rows = clip_window(oy, p.stride.h, p.padding.h, p.dilation.h, k.h, in.h);
        for (int32_t ox = 0; ox < output_dims->w; ox++) {
            const window_t columns = clip_window(ox, p.stride.w, p.padding.w, p.dilation.w, k.w, in.w);
            for (int32_t o = 0; o < outputs; o++) {
                uint32_t sum = (uint32_t)s->bias[o];
                for (int32_t ky = rows.begin; ky < rows.end; ky++) {
                    for (int32_t kx = columns.begin; kx < columns.end; kx++) {
                        const int32_t y = rows.origin + ky * p.dilation.h, x = columns.origin + kx * p.dilation.w;
                        const int32_t value = input_data[(y * in.w + x) * in.c + o / p.ch_mult] + s->input_offset;
                        sum += (uint32_t)(value * s->weight(s->weights, (ky * k.w + kx) * outputs + o));
                    }
                }
                *output_data++ = scaled(s, sum, o);
            }
        }
    }
}

/* 3x3 with a padding of at most 1, without MVE: the second column of a window is read unchecked, the first one only
 * if it is not left of the image. */
static void depthwise_3x3(const cmsis_nn_dw_conv_params *p, const scaling_t *s, const cmsis_nn_dims *in,
                          const int8_t *input, const cmsis_nn_dims *out, int8_t *output)
{
    for (int32_t oy = 0; oy < out->h; oy++) {
        const window_t rows = clip_window(oy, p->stride.h, p->padding.h, 1, 3, in->h);
        for (int32_t ox = 0; ox < out->w; ox++) {
            const int32_t left = ox * p->stride.w - p->padding.w;
            const int32_t begin = left < 0 ? -left : 0, end = in->w - left >= 3 ? 3 : 2;
            for (int32_t c = 0; c < in->c; c++) {
                uint32_t sum = (uint32_t)s->bias[c];
                for (int32_t ky = rows.begin; ky < rows.end; ky++) {
                    for (int32_t kx = begin; kx < end; kx++) {
                        const int32_t value = input[((rows.origin + ky) * in->w + left + kx) * in->c + c];
                        sum += (uint32_t)((value + s->input_offset) * s->weight(s->weights, (ky * 3 + kx) * in->c + c));
                    }
                }
                *output++ = scaled(s, sum, c);
            }
        }
    }
}

/* One output per channel: a window's cells as 16-bit numbers in scratch memory. The number of zero rows above and below
 * the image follows from the geometry, even if the window has fewer rows. */
static void depthwise_columns(const cmsis_nn_context *ctx, const cmsis_nn_dw_conv_params *p, const scaling_t *s,
                              const cmsis_nn_dims *in, const int8_t *input, const cmsis_nn_dims *k,
                              const cmsis_nn_dims *out, int8_t *output)
{
    const int32_t row = k->w * in->c;
    for (int32_t oy = 0; oy < out->h; oy++) {
        const int32_t top = oy * p->stride.h - p->padding.h;
        const int32_t above = top < 0 ? -top : 0, end = in->h - top < k->h ? in->h - top : k->h;
        for (int32_t ox = 0; ox < out->w; ox++) {
            const int32_t left = ox * p->stride.w - p->padding.w;
            int16_t *column = ctx->buf;
            memset(column, 0, (size_t)(row * above) * sizeof(int16_t));
            column += row * above;
            for (int32_t ky = above; ky < end; ky++) {
                for (int32_t x = left; x < left + k->w; x++) {
                    const int8_t *const cell = input + ((top + ky) * in->w + x) * in->c;
                    for (int32_t c = 0; c < in->c; c++) {
                        *column++ = (int16_t)(x < 0 || x >= in->w ? 0 : cell[c] + s->input_offset);
                    }
                }
            }
            memset(column, 0, (size_t)(row * (k->h - end)) * sizeof(int16_t));
            column = ctx->buf;
            for (int32_t c = 0; c < in->c; c++) {
                uint32_t sum = (uint32_t)s->bias[c];
                for (int32_t i = 0; i < k->h * k->w; i++) {
                    sum += (uint32_t)(column[i * in->c + c] * s->weight(s->weights, i * in->c + c));
                }
                *output++ = scaled(s, sum, c);
            }
        }
    }
}

/* Whether the library's generic code for 4-bit weights is correct. */
static int is_right(const cmsis_nn_dw_conv_params *p, const cmsis_nn_dims *in, const cmsis_nn_dims *k)
{
    const int unpadded = p->padding.w == 0 && p->padding.h == 0;
    return in->c % 2 == 0 || (k->w == 1 && k->h == 1) || (p->ch_mult == 1 && unpadded);
}

static arm_cmsis_nn_status depthwise_any(const cmsis_nn_context *ctx, const cmsis_nn_dw_conv_params *p,
                                         const scaling_t *s, const cmsis_nn_dims *in, const int8_t *input,
                                         const cmsis_nn_dims *k, const cmsis_nn_dims *out, int8_t *output)
{
    const int simple = p->ch_mult == 1 && p->dilation.w == 1 && p->dilation.h == 1, packed = s->weight != byte_at;
    spoil(ctx);
    if (!simple) {
        assert(!packed || is_right(p, in, k));
        depthwise(p, s, in, input, k, out, output);
    } else if (!packed && !MVE_PATH && k->w == 3 && k->h == 3 && p->padding.h <= 1 && p->padding.w <= 1) {
        depthwise_3x3(p, s, in, input, out, output);
    } else if (!packed && !MVE_PATH && !DSP_PATH) {
        depthwise(p, s, in, input, k, out, output);
    } else if (ctx->buf == NULL) {
        return ARM_CMSIS_NN_ARG_ERROR;
    } else if (MVE_PATH) {
        depthwise(p, s, in, input, k, out, output);
    } else {
        depthwise_columns(ctx, p, s, in, input, k, out, output);
    }
    spoil(ctx);
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_depthwise_conv_wrapper_s8(const cmsis_nn_context *ctx,
                                                  const cmsis_nn_dw_conv_params *dw_conv_params,
                                                  const cmsis_nn_per_channel_quant_params *quant_params,
                                                  const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                                  const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                                  const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                                  const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const scaling_t s = {quant_params, dw_conv_params->input_offset, dw_conv_params->output_offset,
                         &dw_conv_params->activation, filter_data, bias_data, byte_at};
    (void)bias_dims;
    return depthwise_any(ctx, dw_conv_params, &s, input_dims, input_data, filter_dims, output_dims, output_data);
}

arm_cmsis_nn_status arm_depthwise_conv_s8(const cmsis_nn_context *ctx,
                                          const cmsis_nn_dw_conv_params *dw_conv_params,
                                          const cmsis_nn_per_channel_quant_params *quant_params,
                                          const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                          const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                          const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                          const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const scaling_t s = {quant_params, dw_conv_params->input_offset, dw_conv_params->output_offset,
                         &dw_conv_params->activation, filter_data, bias_data, byte_at};
    (void)bias_dims;
    (void)ctx;
    depthwise(dw_conv_params, &s, input_dims, input_data, filter_dims, output_dims, output_data);
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
    const scaling_t s = {quant_params, dw_conv_params->input_offset, dw_conv_params->output_offset,
                         &dw_conv_params->activation, filter_data, bias_data, nibble_at};
    (void)bias_dims;
    return depthwise_any(ctx, dw_conv_params, &s, input_dims, input_data, filter_dims, output_dims, output_data);
}

arm_cmsis_nn_status arm_depthwise_conv_s4(const cmsis_nn_context *ctx,
                                          const cmsis_nn_dw_conv_params *dw_conv_params,
                                          const cmsis_nn_per_channel_quant_params *quant_params,
                                          const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                          const cmsis_nn_dims *filter_dims, const int8_t *filter_data,
                                          const cmsis_nn_dims *bias_dims, const int32_t *bias_data,
                                          const cmsis_nn_dims *output_dims, int8_t *output_data)
{
    const scaling_t s = {quant_params, dw_conv_params->input_offset, dw_conv_params->output_offset,
                         &dw_conv_params->activation, filter_data, bias_data, nibble_at};
    (void)bias_dims;
    (void)ctx;
    assert(is_right(dw_conv_params, input_dims, filter_dims));
    depthwise(dw_conv_params, &s, input_dims, input_data, filter_dims, output_dims, output_data);
    return ARM_CMSIS_NN_SUCCESS;
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

static arm_cmsis_nn_status pool(const cmsis_nn_context *ctx, const cmsis_nn_pool_params *p, const cmsis_nn_dims *in, const int8_t *image,
                                const cmsis_nn_dims *k, const cmsis_nn_dims *out, int average, int8_t *output)
{
    spoil(ctx);
    for (int32_t oy = 0; oy < out->h; oy++) {
        const window_t rows = clip_window(oy, p->stride.h, p->padding.h, 1, k->h, in->h);
        for (int32_t ox = 0; ox < out->w; ox++) {
            const window_t columns = clip_window(ox, p->stride.w, p->padding.w, 1, k->w, in->w);
            const int32_t cells = (rows.end - rows.begin) * (columns.end - columns.begin);
            if (cells == 0 && average) {
                return ARM_CMSIS_NN_ARG_ERROR;
            }
            if (cells == 0) { /* an empty window is not written */
                output += in->c;
                continue;
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
    spoil(ctx);
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_max_pool_s8(const cmsis_nn_context *ctx, const cmsis_nn_pool_params *pool_params,
                                    const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                    const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims,
                                    int8_t *output_data)
{
    return pool(ctx, pool_params, input_dims, input_data, filter_dims, output_dims, 0, output_data);
}

/* Rounds to nearest, ties away from zero. */
arm_cmsis_nn_status arm_avgpool_s8(const cmsis_nn_context *ctx, const cmsis_nn_pool_params *pool_params,
                                   const cmsis_nn_dims *input_dims, const int8_t *input_data,
                                   const cmsis_nn_dims *filter_dims, const cmsis_nn_dims *output_dims,
                                   int8_t *output_data)
{
    return pool(ctx, pool_params, input_dims, input_data, filter_dims, output_dims, 1, output_data);
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
