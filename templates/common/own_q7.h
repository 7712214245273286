/* SPDX-License-Identifier: Apache-2.0
 * Loops for layers that CMSIS-NN has no q7 kernel for. Images are HWC. Everything but weighted sums is rounded half up.
 * The types q7_t and q31_t come from the program. */
#ifndef OWN_Q7_H
#define OWN_Q7_H

#include "words_q7.h"

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

/* Sums of `size` elements, limited to low ... high; the output may be one of the operands. */
INLINE void add_q7(const operand_t *operands, int count, int size, int out_rshift, q31_t low, q31_t high, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        q31_t sum = (1 << out_rshift) >> 1;
        for (int k = 0; k < count; k++) {
            sum += operands[k].data[i] * operands[k].factor;
        }
        out[i] = limited_q7(sum >> out_rshift, low, high);
    }
}

/* Maxima of `size` elements, limited to low ... high; the output may be one of the operands. */
INLINE void max_q7(const operand_t *operands, int count, int size, int out_rshift, q31_t low, q31_t high, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        q31_t most = operands[0].data[i] * operands[0].factor;
        for (int k = 1; k < count; k++) {
            const q31_t value = operands[k].data[i] * operands[k].factor;
            most = value > most ? value : most;
        }
        out[i] = limited_q7((most + ((1 << out_rshift) >> 1)) >> out_rshift, low, high);
    }
}

/* Sums of `size` elements with as many others, or again and again with `others` numbers. */
INLINE void add_channels_q7(const operand_t *operands, int size, int others, int out_rshift, q31_t low, q31_t high,
                            q7_t *out)
{
    for (int i = 0; i < size; i += others) {
        const operand_t part[] = {{operands[0].data + i, operands[0].factor}, operands[1]};
        add_q7(part, 2, others, out_rshift, low, high, out + i);
    }
}

/* Products of `size` elements with as many others, or again and again with `others` numbers; the output may be the first
 * input, and the second where it is as large. */
INLINE void multiply_q7(const q7_t *in_1, const q7_t *in_2, int size, int others, int lshift, int rshift, q7_t *out)
{
    for (int i = 0; i < size; i += others) {
        for (int k = 0; k < others; k++) {
            const q31_t product = in_1[i + k] * in_2[k] * (1 << lshift);
            out[i + k] = saturate_q7((product + ((1 << rshift) >> 1)) >> rshift);
        }
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

/* The maximum of one channel's cells. */
INLINE q7_t largest_cell(const q7_t *in, int in_x, int channels, span_t rows, span_t columns)
{
    q7_t most = -128;
    for (int y = rows.begin; y < rows.end; y++) {
        for (int x = columns.begin; x < columns.end; x++) {
            const q7_t value = in[(y * in_x + x) * channels];
            most = value > most ? value : most;
        }
    }
    return most;
}

#if DSP_WORDS
/* Of four channels. */
INLINE uint32_t largest_cells(const q7_t *in, int in_x, int channels, span_t rows, span_t columns)
{
    uint32_t most = 0x80808080u;
    for (int y = rows.begin; y < rows.end; y++) {
        for (int x = columns.begin; x < columns.end; x++) {
            most = largest_bytes(load_word(in + (y * in_x + x) * channels), most);
        }
    }
    return most;
}
#endif

/* Takes any window; the output may take the image's place where windows stay ahead of it. */
static inline void maxpool_q7(const q7_t *in, const window_t *w, int channels, q7_t *out)
{
    for (int oy = 0; oy < w->out_y; oy++) {
        const span_t rows = window_span(oy, w->in_y, w->kernel_y, w->padding_y, w->stride_y);
        for (int ox = 0; ox < w->out_x; ox++) {
            const span_t columns = window_span(ox, w->in_x, w->kernel_x, w->padding_x, w->stride_x);
            int c = 0;
#if DSP_WORDS
            for (; c < channels / 4 * 4; c += 4) {
                store_word(out + c, largest_cells(in + c, w->in_x, channels, rows, columns));
            }
#endif
            for (; c < channels; c++) {
                out[c] = largest_cell(in + c, w->in_x, channels, rows, columns);
            }
            out += channels;
        }
    }
}

/* Where the elements of an output come from: loops from the outermost on, how often and how far each time. */
typedef struct {
    int start, counts[5], strides[5];
} move_t;

static inline void move_q7(const q7_t *in, const move_t *m, q7_t *out)
{
    for (int a = 0; a < m->counts[0]; a++) {
        for (int b = 0; b < m->counts[1]; b++) {
            for (int c = 0; c < m->counts[2]; c++) {
                const q7_t *from = in + m->start + a * m->strides[0] + b * m->strides[1] + c * m->strides[2];
                for (int d = 0; d < m->counts[3]; d++) {
                    for (int e = 0; e < m->counts[4]; e++) {
                        *out++ = from[e * m->strides[4]];
                    }
                    from += m->strides[3];
                }
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

/* x * gain + offset, shifted; each channel has its own. The output may be the input. */
static inline void affine_q7(const q7_t *in, int size, int channels, const int16_t *gains, const int32_t *offsets,
                             int rshift, q7_t *out)
{
    for (int i = 0; i < size; i += channels) {
        for (int c = 0; c < channels; c++) {
            out[i + c] = saturate_q7((in[i + c] * gains[c] + offsets[c]) >> rshift);
        }
    }
}

/* x * one, or x * slope where x is negative, shifted; each channel has its own slope. The output may be the input. */
static inline void prelu_q7(const q7_t *in, int size, int channels, const int16_t *slopes, int one, int rshift, q7_t *out)
{
    for (int i = 0; i < size; i += channels) {
        for (int c = 0; c < channels; c++) {
            const q31_t product = in[i + c] * (in[i + c] < 0 ? slopes[c] : one);
            out[i + c] = saturate_q7((product + (1 << rshift >> 1)) >> rshift);
        }
    }
}

/* max(low, min(x, high)); the output may be the input. */
static inline void clip_q7(const q7_t *in, int size, q7_t low, q7_t high, q7_t *out)
{
    for (int i = 0; i < size; i++) {
        out[i] = in[i] < low ? low : in[i] > high ? high : in[i];
    }
}

/* Powers of two in place of exponentials, as arm_softmax_q7 of CMSIS 5.9.0; the output may be the input. */
static inline void softmax_q7(const q7_t *in, int size, q7_t *out)
{
    int most = in[0], sum = 0;
    for (int i = 1; i < size; i++) {
        most = in[i] > most ? in[i] : most;
    }
    for (int i = 0; i < size; i++) {
        const int power = in[i] - (most - 8);
        sum += 1 << (power > 7 ? 7 : power < 0 ? 0 : power);
    }
    for (int i = 0; i < size; i++) {
        const int shift = 5 + most - in[i];
        out[i] = saturate_q7((1 << 20) / sum >> (shift > 31 ? 31 : shift));
    }
}

/* The place in one direction that an output's cell has among the input's: the first and the last have the same. */
typedef struct {
    int cell, next; /* elements from the image's, or the row's, begin */
    q31_t part;     /* of the way to the next one, in 2048ths */
} place_t;

static inline place_t place_among(int out, int outs, int ins, int apart)
{
    const int steps = outs > 1 ? outs - 1 : 1, way = outs > 1 ? out * (ins - 1) : 0;
    const place_t place = {way / steps * apart, (way / steps < ins - 1 ? way / steps + 1 : ins - 1) * apart,
                           (way % steps * 2048 + steps / 2) / steps};
    return place;
}

/* Each element of an enlarged or reduced image on the straight lines between its four neighbours. */
static inline void interpolate_q7(const q7_t *in, int in_y, int in_x, int channels, int out_y, int out_x, q7_t *out)
{
    for (int oy = 0; oy < out_y; oy++) {
        const place_t y = place_among(oy, out_y, in_y, in_x * channels);
        for (int ox = 0; ox < out_x; ox++) {
            const place_t x = place_among(ox, out_x, in_x, channels);
            for (int c = 0; c < channels; c++) {
                const q7_t *const above = in + y.cell + c, *const below = in + y.next + c;
                const q31_t first = above[x.cell] * (2048 - x.part) + above[x.next] * x.part;
                const q31_t second = below[x.cell] * (2048 - x.part) + below[x.next] * x.part;
                *out++ = (q7_t)((first * (2048 - y.part) + second * y.part + (1 << 21)) >> 22);
            }
        }
    }
}

/* exp(x - largest) * 128 / the sum of these along an axis: `count` elements, `distance` from each other, in each of some
 * stretches of memory. The table has exp of 0, -1, ... -255; the output may be the input. */
static inline void softmax_along_q7(const q7_t *in, int stretches, int count, int distance, const uint32_t *table, q7_t *out)
{
    for (int i = 0; i < stretches * distance; i++) {
        const int start = i / distance * count * distance + i % distance, end = start + count * distance;
        int most = in[start];
        uint32_t sum = 0;
        for (int k = start; k < end; k += distance) {
            most = in[k] > most ? in[k] : most;
        }
        for (int k = start; k < end; k += distance) {
            sum += table[most - in[k]];
        }
        for (int k = start; k < end; k += distance) {
            out[k] = saturate_q7((q31_t)((table[most - in[k]] * 128 + sum / 2) / sum));
        }
    }
}

typedef enum { PLACES, VALUES } largest_t;

/* The `most` largest elements along an axis, or their places, the largest first; of equal ones, the last comes first. */
static inline void largest_along_q7(const q7_t *in, int stretches, int count, int distance, int most, largest_t what,
                                    q7_t *out)
{
    for (int i = 0; i < stretches * distance; i++) {
        const q7_t *const line = in + i / distance * count * distance + i % distance;
        q7_t *to = out + i / distance * most * distance + i % distance;
        q31_t last = 1 << 30;
        for (int n = 0; n < most; n++) {
            q31_t next = -(1 << 30); /* value and place as one number */
            for (int k = 0; k < count; k++) {
                const q31_t element = line[k * distance] * 65536 + k;
                next = element > next && element < last ? element : next;
            }
            *to = (q7_t)(what == VALUES ? next >> 16 : next & 0xFFFF);
            to += distance;
            last = next;
        }
    }
}

INLINE q7_t scaled_sum_q7(q31_t sum, int multiplier, int rshift)
{
    const int64_t scaled = ((int64_t)sum * multiplier + ((int64_t)1 << rshift >> 1)) >> rshift;
    return (q7_t)(scaled > 127 ? 127 : scaled < -128 ? -128 : scaled);
}

/* What is added up of each element. */
typedef enum { ELEMENTS, MAGNITUDES, SQUARES } terms_t;

/* Sums of `count` elements, `distance` from each other; how far apart those of the next group, and of the next sum, are. */
typedef struct {
    int groups, sums, count, group_apart, apart, distance;
    terms_t terms;
} sums_t;

/* Sums times a number. */
INLINE void reduce_q7(const q7_t *in, const sums_t *s, int multiplier, int rshift, q7_t *out)
{
    for (int g = 0; g < s->groups; g++) {
        for (int i = 0; i < s->sums; i++) {
            q31_t sum = 0;
            for (int k = 0; k < s->count; k++) {
                const q31_t x = in[g * s->group_apart + i * s->apart + k * s->distance];
                sum += s->terms == SQUARES ? x * x : s->terms == MAGNITUDES && x < 0 ? -x : x;
            }
            *out++ = scaled_sum_q7(sum, multiplier, rshift);
        }
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

/* Powers of sums: table entries at the ends of 2**steps pieces of each octave of sum + 2**octave. */
typedef struct {
    const uint16_t *table;
    int octave, steps, rshift;
} powers_t;

/* The power of a sum of squares, on the line between two entries, with 7 bits more than these have. */
INLINE q31_t power_q7(const powers_t *p, uint32_t sum)
{
    const uint32_t value = sum + (1u << p->octave);
    int octave = p->octave;
    while (value >> octave > 1) {
        octave++;
    }
    const uint32_t fraction = value << (31 - octave) << 1;
    const uint16_t *ends = p->table + ((octave - p->octave) << p->steps) + (fraction >> (32 - p->steps));
    const q31_t place = (q31_t)(fraction << p->steps >> 17);
    return ((ends[0] << 15) - (ends[0] - ends[1]) * place) >> 8;
}

INLINE q7_t normalized_q7(q7_t value, const powers_t *p, q31_t sum)
{
    return saturate_q7((value * power_q7(p, (uint32_t)sum) + (1 << p->rshift >> 1)) >> p->rshift);
}

/* Each element times a power of the sum of squares of `size` channels around it. */
static inline void lrn_across_q7(const q7_t *in, int pixels, int channels, int size, const powers_t *p, q7_t *out)
{
    const int half = size / 2;
    for (int i = 0; i < pixels; i++) {
        q31_t sum = 0;
        for (int c = 0; c < half && c < channels; c++) {
            sum += in[c] * in[c];
        }
        for (int c = 0; c < channels; c++) {
            sum += c + half < channels ? in[c + half] * in[c + half] : 0;
            out[c] = normalized_q7(in[c], p, sum);
            sum -= c >= half ? in[c - half] * in[c - half] : 0;
        }
        in += channels;
        out += channels;
    }
}

/* Each element times a power of the sum of squares of all channels of its pixel. */
static inline void normalize_q7(const q7_t *in, int pixels, int channels, const powers_t *p, q7_t *out)
{
    for (int i = 0; i < pixels; i++) {
        q31_t sum = 0;
        for (int c = 0; c < channels; c++) {
            sum += in[c] * in[c];
        }
        for (int c = 0; c < channels; c++) {
            *out++ = normalized_q7(*in++, p, sum);
        }
    }
}

/* Each element times a power of the sum of squares in a window around it. */
static inline void lrn_within_q7(const q7_t *in, const window_t *w, int channels, const powers_t *p, q7_t *out)
{
    for (int oy = 0; oy < w->out_y; oy++) {
        const span_t rows = window_span(oy, w->in_y, w->kernel_y, w->padding_y, w->stride_y);
        for (int ox = 0; ox < w->out_x; ox++) {
            const span_t columns = window_span(ox, w->in_x, w->kernel_x, w->padding_x, w->stride_x);
            const q7_t *centre = in + ((oy + w->kernel_y / 2 - w->padding_y) * w->in_x + ox) * channels;
            for (int c = 0; c < channels; c++) {
                q31_t sum = 0;
                for (int y = rows.begin; y < rows.end; y++) {
                    for (int x = columns.begin; x < columns.end; x++) {
                        const q7_t value = in[(y * w->in_x + x) * channels + c];
                        sum += value * value;
                    }
                }
                *out++ = normalized_q7(centre[c], p, sum);
            }
        }
    }
}

/* The rounding term of the library's kernels: half a step up, or none where they are built to truncate. */
#if defined(ARM_NN_TRUNCATE)
#define ROUNDING(shift) 0
#else
#define ROUNDING(shift) ((1 << (shift)) >> 1)
#endif

/* Transposed convolution: a cell of the image adds its products with a window of weights to outputs, which are `stride`
 * further on for the next cell. The weights are O,KH,KW,C; the bias is shifted. */
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
