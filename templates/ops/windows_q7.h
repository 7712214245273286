/* SPDX-License-Identifier: Apache-2.0
 * Windows of any shape, stride and padding on an image. */
#ifndef WINDOWS_Q7_H
#define WINDOWS_Q7_H

#include "words_q7.h"

/* The geometry of windows on an image, in cells; x is the width. */
typedef struct {
    int in_x, in_y, kernel_x, kernel_y, padding_x, padding_y, stride_x, stride_y, out_x, out_y;
} window_t;

/* The cells [begin, end) of a window along an axis, and their number including the padding that Caffe counts. */
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

#endif
