/* SPDX-License-Identifier: Apache-2.0
 * Convolution, with dilation and groups. Images are HWC. */
#ifndef CONVOLUTION_Q7_H
#define CONVOLUTION_Q7_H

#include "weighted_q7.h"
#include "windows_q7.h"

/* Widens one image column of a window: `depth` channels of kernel_y cells, padded to a whole word. */
INLINE void widen_column(const q7_t *in, const window_t *w, int dilation, int channels, int depth, int top, int x,
                         q15_t *column)
{
    for (int y = top; y < top + w->kernel_y * dilation; y += dilation) {
        if (x < 0 || x >= w->in_x || y < 0 || y >= w->in_y) {
            clear_q15(column, depth);
        } else {
            widen_q7(in + (y * w->in_x + x) * channels, depth, column);
        }
        column += depth;
    }
}

/* Convolution with `groups` groups of channels; `room` is the number of image columns in a strip.
 *
 * A strip holds the image columns for the windows of neighbouring pixels, widened to 16 bits, column after column. A
 * window is contiguous in the strip, and the next pixel's window starts `pitch` columns later. Each cell is widened
 * once per row of windows, not once per window. The weights of a pair of outputs are KW,KH,C in blocks of four; columns
 * and the last block are padded with zeros. Windows that skip image columns share none. */
INLINE void convolve_dilated_q7(const q7_t *in, const window_t *w, int dilation_x, int dilation_y, int channels,
                                int groups, int out_channels, const q7_t *weights, const int bits, const scaling_t *s,
                                int room, q15_t *strip, q7_t *out)
{
    const int depth = channels / groups, outputs = out_channels / groups;
    const int column = even(w->kernel_y * depth), length = (w->kernel_x * column + 3) / 4 * 4;
    const int pitch = w->stride_x < w->kernel_x && dilation_x == 1 ? w->stride_x : w->kernel_x;
    const int shared = w->kernel_x - pitch;
    const int at_once = room >= w->kernel_x + 2 * pitch ? 3 : room >= w->kernel_x + pitch ? 2 : 1;
    const int rest = w->out_x % at_once;
    for (int g = 0; g < groups; g++) {
        const scaling_t scaling = {s->bias + g * outputs, s->bias_lshift, s->out_rshift, s->low, s->high};
        for (int oy = 0; oy < w->out_y; oy++) {
            const int top = oy * w->stride_y - w->padding_y;
            q7_t *to = out + oy * w->out_x * out_channels + g * outputs;
            q15_t *x = strip;
            for (int ox = 0; ox < w->out_x; ox += at_once) {
                const int columns = rest == 0 || ox + at_once <= w->out_x ? at_once : rest;
                if (x + (columns * pitch + shared) * column > strip + room * column) {
                    move_q15(strip, x, shared * column);
                    x = strip;
                }
                for (int i = ox == 0 ? 0 : shared; i < columns * pitch + shared; i++) {
                    const int cell = w->stride_x == pitch && dilation_x == 1
                                         ? i
                                         : i / pitch * w->stride_x + i % pitch * dilation_x;
                    const int left = ox * w->stride_x - w->padding_x;
                    widen_column(in + g * depth, w, dilation_y, channels, depth, top, left + cell, x + i * column);
                }
                if (columns == at_once) {
                    convolve_pixels(x, pitch * column, at_once, length, weights, bits, &scaling, outputs, out_channels,
                                    to);
                } else {
                    convolve_pixels(x, pitch * column, rest, length, weights, bits, &scaling, outputs, out_channels,
                                    to);
                }
                x += columns * pitch * column;
                to += columns * out_channels;
            }
        }
        weights += even(outputs) * length / 8 * bits;
    }
}

INLINE void convolve_q7(const q7_t *in, const window_t *w, int channels, int groups, int out_channels,
                        const q7_t *weights, const int bits, const scaling_t *s, int room, q15_t *strip, q7_t *out)
{
    convolve_dilated_q7(in, w, 1, 1, channels, groups, out_channels, weights, bits, s, room, strip, out);
}

#endif
