/* SPDX-License-Identifier: Apache-2.0
 * Depthwise convolution. Images are HWC. */
#ifndef DEPTHWISE_Q7_H
#define DEPTHWISE_Q7_H

#include "weighted_q7.h"
#include "windows_q7.h"

#if DSP_WORDS
/* Widened weights of one cell of a window: channels 0 and 2, and channels 1 and 3. */
typedef struct {
    uint32_t even, odd;
} tap_t;

INLINE tap_t tap_at(const q7_t *weights, const int bits, int cell)
{
    const uint32_t word = bits == 8 ? load_word(weights + 4 * cell) : load_word(weights + cell / 2 * 4) >> cell % 2 * 8;
    const tap_t whole = {even_bytes(word), odd_bytes(word)};
    const tap_t halves = {even_bytes(low_halves(word)), even_bytes(high_halves(word))};
    return bits == 8 ? whole : halves;
}
#endif

/* The weight of one channel of a cell. */
INLINE q31_t weight_at(const q7_t *weights, const int bits, int cell, int channel)
{
    const q7_t *const halves = weights + cell / 2 * 4 + channel / 2 * 2 + cell % 2;
    return bits == 8 ? weights[4 * cell + channel] : channel % 2 == 0 ? low_half(*halves) : high_half(*halves);
}

/* Adds the products of up to four channels for the cells [begin, end) of the window at (top, left). The weights are
 * KH,KW,4. Four bytes of 4-bit weights hold two cells: channels 0 and 1 of both, then channels 2 and 3 of both. */
INLINE void depthwise_sums(const q7_t *in, const window_t *w, int channels, int count, int top, int left, span_t rows,
                           span_t columns, const q7_t *weights, const int bits, q31_t sums[4])
{
    for (int y = rows.begin; y < rows.end; y++) {
        for (int x = columns.begin; x < columns.end; x++) {
            const q7_t *const pixel = in + (y * w->in_x + x) * channels;
            const int cell = (y - top) * w->kernel_x + x - left;
#if DSP_WORDS
            if (count == 4) {
                const uint32_t four = load_word(pixel), even = even_bytes(four), odd = odd_bytes(four);
                const tap_t tap = tap_at(weights, bits, cell);
                sums[0] = low_mac(even, tap.even, sums[0]);
                sums[1] = low_mac(odd, tap.odd, sums[1]);
                sums[2] = high_mac(even, tap.even, sums[2]);
                sums[3] = high_mac(odd, tap.odd, sums[3]);
                continue;
            }
#endif
            for (int i = 0; i < count; i++) {
                sums[i] += pixel[i] * weight_at(weights, bits, cell, i);
            }
        }
    }
}

/* All pixels of `count` channels, at most four; windows inside the image have constant loop lengths. */
INLINE void depthwise_channels(const q7_t *in, const window_t *w, int channels, int count, const q7_t *weights,
                               const int bits, const scaling_t *s, q7_t *out)
{
    for (int oy = 0; oy < w->out_y; oy++) {
        const int top = oy * w->stride_y - w->padding_y, rows_inside = top >= 0 && top + w->kernel_y <= w->in_y;
        for (int ox = 0; ox < w->out_x; ox++) {
            const int left = ox * w->stride_x - w->padding_x;
            q31_t first[4] = {0, 0, 0, 0}, sums[4] = {0, 0, 0, 0};
            for (int i = 0; i < count; i++) {
                first[i] = first_sum(s, i);
                sums[i] = start(first[i], bits);
            }
            if (rows_inside && left >= 0 && left + w->kernel_x <= w->in_x) {
                const span_t rows = {top, top + w->kernel_y, 0}, columns = {left, left + w->kernel_x, 0};
                depthwise_sums(in, w, channels, count, top, left, rows, columns, weights, bits, sums);
            } else {
                const span_t rows = window_span(oy, w->in_y, w->kernel_y, w->padding_y, w->stride_y);
                const span_t columns = window_span(ox, w->in_x, w->kernel_x, w->padding_x, w->stride_x);
                depthwise_sums(in, w, channels, count, top, left, rows, columns, weights, bits, sums);
            }
            for (int i = 0; i < count; i++) {
                out[i] = scaled_q7(sums[i], first[i], bits, s);
            }
            out += channels;
        }
    }
}

/* As many groups as channels, four at a time; the weights are C/4,KH,KW,4, padded with zeros. */
INLINE void depthwise_q7(const q7_t *in, const window_t *w, int channels, const q7_t *weights, const int bits,
                         const scaling_t *s, q7_t *out)
{
    const int cells = w->kernel_y * w->kernel_x;
    for (int c = 0; c < channels; c += 4) {
        const scaling_t scaling = {s->bias + c, s->bias_lshift, s->out_rshift, s->low, s->high};
        if (channels - c >= 4) {
            depthwise_channels(in + c, w, channels, 4, weights, bits, &scaling, out + c);
        } else {
            depthwise_channels(in + c, w, channels, channels % 4, weights, bits, &scaling, out + c);
        }
        weights += bits == 8 ? 4 * cells : 2 * even(cells);
    }
}

#endif
