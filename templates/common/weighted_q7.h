/* SPDX-License-Identifier: Apache-2.0
 * Convolution and inner product with the integers of CMSIS-NN's q7 kernels, for sizes that are known to the compiler.
 *
 * sum = bias << bias_lshift, plus the rounding term, plus all products, in 32 bits; the output is sum >> out_rshift,
 * limited to low ... high. Images are HWC. Include own_q7.h and dot_q7.h first. */
#ifndef WEIGHTED_Q7_H
#define WEIGHTED_Q7_H

/* How a layer's sums become its outputs. */
typedef struct {
    const q7_t *bias;
    int bias_lshift, out_rshift;
    q31_t low, high;
} scaling_t;

INLINE q31_t first_sum(const scaling_t *s, int output)
{
    return s->bias[output] * (1 << s->bias_lshift) + ROUNDING(s->out_rshift);
}

/* Products with weights of 4 bits are added up 16 times as large, without the first sum: that is added at the end, so
 * that its shift and the rounding term have the room that they have beside weights of 8 bits. */
INLINE q31_t start(q31_t first, const int bits)
{
    return bits == 8 ? first : 0;
}

INLINE q7_t scaled_q7(q31_t sum, q31_t first, const int bits, const scaling_t *s)
{
    return limited_q7((bits == 8 ? sum : first + (sum >> 4)) >> s->out_rshift, s->low, s->high);
}

INLINE int even(int count)
{
    return count + count % 2;
}

/* One image column of a window: `depth` channels of kernel_y cells, and a number that fills the last word. */
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

/* All outputs of `columns` pixels; two at a time, the last alone where their number is odd. */
INLINE void convolve_pixels(const q15_t *x, int step, int columns, int length, const q7_t *weights, const int bits,
                            const scaling_t *s, int outputs, int out_channels, q7_t *out)
{
    for (int o = 0; o < outputs; o += 2) {
        const int both = outputs % 2 == 0 || o + 1 < outputs;
        const q31_t first = first_sum(s, o), second = both ? first_sum(s, o + 1) : 0;
        const q31_t a = start(first, bits), b = start(second, bits);
        q31_t sums[3][2] = {{a, b}, {a, b}, {a, b}};
        weights = dot_q7(weights, bits, x, step, columns, length, sums);
        for (int c = 0; c < columns; c++) {
            out[c * out_channels + o] = scaled_q7(sums[c][0], first, bits, s);
            if (both) {
                out[c * out_channels + o + 1] = scaled_q7(sums[c][1], second, bits, s);
            }
        }
    }
}

/* Convolution with `groups` groups of channels; `room` is for how many image columns a strip has.
 *
 * A strip holds the image columns that windows of neighbouring pixels need, widened to 16 bits, each column's cells one
 * after the other. So a window is one piece of it, and the next pixel's window begins `pitch` columns further on: each
 * cell is widened once for every row of windows that it lies in, not for every window. The weights of a pair of outputs
 * are KW,KH,C in blocks of four, with zeros for what fills up a column and the last block. Windows that skip columns of
 * the image share none. */
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

/* The weights of four outputs at a time come in blocks of four of each; one or two that are left over, as a pair. */
INLINE void inner_product_q7(const q7_t *in, int size, int outputs, const q7_t *weights, const int bits,
                             const scaling_t *s, q15_t *vector, q7_t *out)
{
    const int length = (size + 3) / 4 * 4, rest = outputs % 4 == 3 ? 0 : outputs % 4, fours = outputs - rest;
    widen_q7(in, size, vector);
    clear_q15(vector + size, length - size);
    for (int o = 0; o < fours; o += 4) {
        const int count = fours % 4 == 0 || fours - o >= 4 ? 4 : 3;
        q31_t first[4] = {0, 0, 0, 0}, sums[4];
        for (int i = 0; i < 4; i++) {
            first[i] = i < count ? first_sum(s, o + i) : 0;
            sums[i] = start(first[i], bits);
        }
        weights = dot_4x1_q7(weights, bits, vector, length, sums);
        for (int i = 0; i < count; i++) {
            out[o + i] = scaled_q7(sums[i], first[i], bits, s);
        }
    }
    if (rest > 0) {
        const scaling_t last = {s->bias + fours, s->bias_lshift, s->out_rshift, s->low, s->high};
        convolve_pixels(vector, 0, 1, length, weights, bits, &last, rest, rest, out + fours);
    }
}

#if DSP_WORDS
/* The weights of channels 0 and 2, and of 1 and 3, of one of a window's cells, widened. */
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

/* One channel's weight of a cell. */
INLINE q31_t weight_at(const q7_t *weights, const int bits, int cell, int channel)
{
    const q7_t *const halves = weights + cell / 2 * 4 + channel / 2 * 2 + cell % 2;
    return bits == 8 ? weights[4 * cell + channel] : channel % 2 == 0 ? low_half(*halves) : high_half(*halves);
}

/* Adds what up to four channels of a depthwise convolution have in the cells [begin, end) of a window, whose first cell
 * is (top, left). The weights are KH,KW,4; those of 4 bits are for two cells in four bytes: channels 0 and 1 of the one
 * and of the other, then channels 2 and 3. */
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

/* `count` channels of all pixels, at most four; windows that lie in the image have loops of constant lengths. */
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

/* As many groups as channels, of which four are computed at a time; the weights are C/4,KH,KW,4, filled up with zeros. */
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
