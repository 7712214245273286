/* SPDX-License-Identifier: Apache-2.0
 * Loops for layers that CMSIS-NN has no q7 kernel for. Images are HWC. Everything is rounded half up.
 * The types q7_t and q31_t come from the program. */
#ifndef OWN_Q7_H
#define OWN_Q7_H

static inline q7_t saturate_q7(q31_t value)
{
    return (q7_t)(value > 127 ? 127 : value < -128 ? -128 : value);
}

/* floor(sum / divisor + 1/2), where C's division truncates toward zero. */
static inline q7_t divide_q7(q31_t sum, q31_t divisor)
{
    const q31_t numerator = 2 * sum + divisor;
    return saturate_q7(numerator / (2 * divisor) - (numerator % (2 * divisor) < 0));
}

/* An input, and what it is multiplied with: 1 or -1 times a power of two. */
typedef struct {
    const q7_t *data;
    q31_t factor;
} operand_t;

/* Sums of `size` elements; the output may be one of the operands. */
static inline void add_q7(const operand_t *operands, int count, int size, int out_rshift, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        q31_t sum = (1 << out_rshift) >> 1;
        for (int k = 0; k < count; k++) {
            sum += operands[k].data[i] * operands[k].factor;
        }
        out[i] = saturate_q7(sum >> out_rshift);
    }
}

/* Maxima of `size` elements; the output may be one of the operands. */
static inline void max_q7(const operand_t *operands, int count, int size, int out_rshift, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        q31_t most = operands[0].data[i] * operands[0].factor;
        for (int k = 1; k < count; k++) {
            const q31_t value = operands[k].data[i] * operands[k].factor;
            most = value > most ? value : most;
        }
        out[i] = saturate_q7((most + ((1 << out_rshift) >> 1)) >> out_rshift);
    }
}

/* Puts an input's channels among the `out_channels` of each pixel; a negative shift goes to the left. */
static inline void concat_q7(const q7_t *in, int pixels, int channels, int rshift, q7_t *out, int out_channels)
{
    const q31_t factor = rshift < 0 ? 1 << -rshift : 1;
    const int right = rshift < 0 ? 0 : rshift;
    for (int i = 0; i < pixels; i++) {
        for (int c = 0; c < channels; c++) {
            out[c] = saturate_q7((in[c] * factor + ((1 << right) >> 1)) >> right);
        }
        in += channels;
        out += out_channels;
    }
}

/* How windows lie on an image, in cells; x is the width. */
typedef struct {
    int in_x, in_y, kernel_x, kernel_y, padding_x, padding_y, stride_x, stride_y, out_x, out_y;
} window_t;

/* The cells [begin, end) of an axis that a window holds, and how many it has with the padding that Caffe counts. */
typedef struct {
    int begin, end, counted;
} span_t;

static inline span_t window_span(int index, int in, int kernel, int padding, int stride)
{
    const int begin = index * stride - padding, end = begin + kernel;
    span_t span;
    span.begin = begin < 0 ? 0 : begin;
    span.end = end < in ? end : in;
    span.counted = (end < in + padding ? end : in + padding) - begin;
    return span;
}

/* Leaves the image alone, and takes any window. */
static inline void maxpool_q7(const q7_t *in, const window_t *w, int channels, q7_t *out)
{
    for (int oy = 0; oy < w->out_y; oy++) {
        const span_t rows = window_span(oy, w->in_y, w->kernel_y, w->padding_y, w->stride_y);
        for (int ox = 0; ox < w->out_x; ox++) {
            const span_t columns = window_span(ox, w->in_x, w->kernel_x, w->padding_x, w->stride_x);
            for (int c = 0; c < channels; c++) {
                q7_t most = -128;
                for (int y = rows.begin; y < rows.end; y++) {
                    for (int x = columns.begin; x < columns.end; x++) {
                        const q7_t value = in[(y * w->in_x + x) * channels + c];
                        most = value > most ? value : most;
                    }
                }
                *out++ = most;
            }
        }
    }
}

/* `groups` groups of channels; weights O,KH,KW,C, where C counts the channels of one group. */
static inline void convolve_group_q7(const q7_t *in, const window_t *w, int channels, int groups, int out_channels,
                                     const q7_t *weights, const q7_t *bias, int bias_lshift, int out_rshift, q7_t *out)
{
    const int depth = channels / groups, group_outputs = out_channels / groups;
    for (int oy = 0; oy < w->out_y; oy++) {
        const span_t rows = window_span(oy, w->in_y, w->kernel_y, w->padding_y, w->stride_y);
        const int top = oy * w->stride_y - w->padding_y;
        for (int ox = 0; ox < w->out_x; ox++) {
            const span_t columns = window_span(ox, w->in_x, w->kernel_x, w->padding_x, w->stride_x);
            const int left = ox * w->stride_x - w->padding_x;
            for (int o = 0; o < out_channels; o++) {
                const q7_t *const image = in + o / group_outputs * depth;
                q31_t sum = bias[o] * (1 << bias_lshift) + ((1 << out_rshift) >> 1);
                for (int y = rows.begin; y < rows.end; y++) {
                    for (int x = columns.begin; x < columns.end; x++) {
                        const int tap = (o * w->kernel_y + y - top) * w->kernel_x + x - left;
                        const q7_t *const cell = image + (y * w->in_x + x) * channels;
                        for (int c = 0; c < depth; c++) {
                            sum += cell[c] * weights[tap * depth + c];
                        }
                    }
                }
                *out++ = saturate_q7(sum >> out_rshift);
            }
        }
    }
}

/* The value of each of the 256 inputs, by its bits as an unsigned number; the output may be the input. */
static inline void lookup_q7(const q7_t *in, int size, const q7_t *table, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        out[i] = table[(uint8_t)in[i]];
    }
}

/* max(low, min(x, high)); the output may be the input. */
static inline void clip_q7(const q7_t *in, int size, q7_t low, q7_t high, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        out[i] = in[i] < low ? low : in[i] > high ? high : in[i];
    }
}

/* sum * multiplier / (cells * divisor); leaves the image alone, and takes any window. */
static inline void avepool_q7(const q7_t *in, const window_t *w, int channels, int multiplier, int divisor, q7_t *out)
{
    for (int oy = 0; oy < w->out_y; oy++) {
        const span_t rows = window_span(oy, w->in_y, w->kernel_y, w->padding_y, w->stride_y);
        for (int ox = 0; ox < w->out_x; ox++) {
            const span_t columns = window_span(ox, w->in_x, w->kernel_x, w->padding_x, w->stride_x);
            const q31_t cells = rows.counted * columns.counted * divisor;
            for (int c = 0; c < channels; c++) {
                q31_t sum = 0;
                for (int y = rows.begin; y < rows.end; y++) {
                    for (int x = columns.begin; x < columns.end; x++) {
                        sum += in[(y * w->in_x + x) * channels + c];
                    }
                }
                *out++ = divide_q7(sum * multiplier, cells);
            }
        }
    }
}

/* Averages along x and then along y, both truncated toward zero. */
static inline void avepool_x_then_y_q7(const q7_t *in, const window_t *w, int channels, q7_t *out)
{
    for (int oy = 0; oy < w->out_y; oy++) {
        const span_t rows = window_span(oy, w->in_y, w->kernel_y, w->padding_y, w->stride_y);
        for (int ox = 0; ox < w->out_x; ox++) {
            const span_t columns = window_span(ox, w->in_x, w->kernel_x, w->padding_x, w->stride_x);
            for (int c = 0; c < channels; c++) {
                q31_t sum = 0;
                for (int y = rows.begin; y < rows.end; y++) {
                    q31_t row = 0;
                    for (int x = columns.begin; x < columns.end; x++) {
                        row += in[(y * w->in_x + x) * channels + c];
                    }
                    sum += row / (columns.end - columns.begin);
                }
                *out++ = (q7_t)(sum / (rows.end - rows.begin));
            }
        }
    }
}

/* Averages, truncated toward zero. */
static inline void avepool_truncated_q7(const q7_t *in, const window_t *w, int channels, q7_t *out)
{
    for (int oy = 0; oy < w->out_y; oy++) {
        const span_t rows = window_span(oy, w->in_y, w->kernel_y, w->padding_y, w->stride_y);
        for (int ox = 0; ox < w->out_x; ox++) {
            const span_t columns = window_span(ox, w->in_x, w->kernel_x, w->padding_x, w->stride_x);
            for (int c = 0; c < channels; c++) {
                q31_t sum = 0;
                for (int y = rows.begin; y < rows.end; y++) {
                    for (int x = columns.begin; x < columns.end; x++) {
                        sum += in[(y * w->in_x + x) * channels + c];
                    }
                }
                *out++ = (q7_t)(sum / ((rows.end - rows.begin) * (columns.end - columns.begin)));
            }
        }
    }
}

/* Adds a row to the sums of its channels, which begin with the first row. */
static inline void add_row_q7(const q7_t *in, int pixels, int channels, int first, q31_t *sums)
{
    for (int c = 0; c < channels; c++) {
        q31_t sum = first ? 0 : sums[c];
        for (int x = 0; x < pixels; x++) {
            sum += in[x * channels + c];
        }
        sums[c] = sum;
    }
}

/* sum * multiplier / (cells * divisor); the output may lie where the sums begin. */
static inline void avepool_of_sums_q7(const q31_t *sums, int channels, int cells, int multiplier, int divisor, q7_t *out)
{
    for (int c = 0; c < channels; c++) {
        out[c] = divide_q7(sums[c] * multiplier, cells * divisor);
    }
}

#endif
