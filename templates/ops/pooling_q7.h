/* SPDX-License-Identifier: Apache-2.0
 * Max and average pooling; averages are rounded half up. Images are HWC. */
#ifndef POOLING_Q7_H
#define POOLING_Q7_H

#include "windows_q7.h"

/* floor(sum / divisor + 1/2); C's division truncates toward zero. */
static inline q7_t divide_q7(q31_t sum, q31_t divisor)
{
    const q31_t numerator = 2 * sum + divisor;
    return saturate_q7(numerator / (2 * divisor) - (numerator % (2 * divisor) < 0));
}

/* The maximum of one channel. */
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
/* The maxima of four channels. */
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

/* Supports any window; works in place if no window reads a cell that is already overwritten. */
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

/* sum * multiplier / (cells * divisor), for any window; does not change the image. */
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

/* Adds a row to the sums of its channels; the first row resets the sums. */
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

/* sum * multiplier / (cells * divisor); the output may start at the same address as the sums. */
static inline void avepool_of_sums_q7(const q31_t *sums, int channels, int cells, int multiplier, int divisor, q7_t *out)
{
    for (int c = 0; c < channels; c++) {
        out[c] = divide_q7(sums[c] * multiplier, cells * divisor);
    }
}

#endif
