/* SPDX-License-Identifier: Apache-2.0
 * Bilinear interpolation. Images are HWC. */
#ifndef INTERP_Q7_H
#define INTERP_Q7_H

#include "words_q7.h"

/* An output cell's position among the input cells along one axis; the corners are aligned. */
typedef struct {
    int cell, next; /* offset from the start of the image or row, in elements */
    q31_t part;     /* fraction of the way to the next cell, in units of 1/2048 */
} place_t;

static inline place_t place_among(int out, int outs, int ins, int apart)
{
    const int steps = outs > 1 ? outs - 1 : 1, way = outs > 1 ? out * (ins - 1) : 0;
    const place_t place = {way / steps * apart, (way / steps < ins - 1 ? way / steps + 1 : ins - 1) * apart,
                           (way % steps * 2048 + steps / 2) / steps};
    return place;
}

/* Enlarges or reduces an image by bilinear interpolation between four neighbours. */
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

#endif
