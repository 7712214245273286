/* SPDX-License-Identifier: Apache-2.0
 * Local response normalization: elements times a power of a sum of squares. Images are HWC. */
#ifndef LRN_Q7_H
#define LRN_Q7_H

#include "windows_q7.h"

/* Table of powers: 2**steps entries per octave of sum + 2**octave. */
typedef struct {
    const uint16_t *table;
    int octave, steps, rshift;
} powers_t;

/* The power of a sum of squares, interpolated linearly, with 7 bits more than the table's entries. */
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

#endif
