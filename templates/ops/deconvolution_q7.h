/* SPDX-License-Identifier: Apache-2.0
 * Transposed convolution with the rounding of CMSIS-NN's q7 kernels. Images are HWC. */
#ifndef DECONVOLUTION_Q7_H
#define DECONVOLUTION_Q7_H

#include "windows_q7.h"

/* Transposed convolution: each cell of the image adds its products with a window of weights to the output; windows of
 * neighbouring cells are `stride` apart. The weights are O,KH,KW,C; the bias is already shifted. */
INLINE void deconvolve_q7(const q7_t *in, const window_t *w, int channels, int groups, int out_channels,
                          const q7_t *weights, const int32_t *bias, int out_rshift, q31_t low, q31_t high, q7_t *out)
{
    const int depth = channels / groups, outputs = out_channels / groups, cells = w->kernel_y * w->kernel_x;
    for (int oy = w->padding_y; oy < w->padding_y + w->out_y; oy++) {
        for (int ox = w->padding_x; ox < w->padding_x + w->out_x; ox++) {
            for (int o = 0; o < out_channels; o++) {
                const q7_t *const group = in + o / outputs * depth;
                q31_t sum = bias[o] + ROUNDING(out_rshift);
                for (int ky = oy % w->stride_y; ky < w->kernel_y && ky <= oy; ky += w->stride_y) {
                    const int y = (oy - ky) / w->stride_y;
                    for (int kx = ox % w->stride_x; kx < w->kernel_x && kx <= ox; kx += w->stride_x) {
                        const int x = (ox - kx) / w->stride_x;
                        if (y < w->in_y && x < w->in_x) {
                            const q7_t *const pixel = group + (y * w->in_x + x) * channels;
                            const q7_t *const tap = weights + (o * cells + ky * w->kernel_x + kx) * depth;
                            for (int c = 0; c < depth; c++) {
                                sum += pixel[c] * tap[c];
                            }
                        }
                    }
                }
                *out++ = limited_q7(sum >> out_rshift, low, high);
            }
        }
    }
}

#endif
