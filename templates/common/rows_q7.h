/* SPDX-License-Identifier: Apache-2.0
 * Row-by-row execution: only the rows of each image that a layer still needs are in memory.
 * The rows of all images move through one arena. Images are HWC.
 * The program defines the types q7_t and q31_t. */
#ifndef ROWS_Q7_H
#define ROWS_Q7_H

/* Rows first .. end - 1 of an image, `bytes` each, contiguous from `data` on. */
typedef struct {
    q7_t *data;
    int bytes, first, end;
} rows_t;

/* Images in address order; the last one is the input of the run, which lies at the arena's end and does not move. */
typedef struct {
    rows_t *images;
    int last;
    q7_t *arena;
} rows_arena_t;

static inline int rows_size(const rows_t *rows)
{
    return (rows->end - rows->first) * rows->bytes;
}

/* On the host, asserts that rows of images and `bytes` of scratch memory do not overlap. */
#ifdef ROWS_CHECKED
#include <assert.h>

static void rows_check(const rows_arena_t *a, const q7_t *scratch, int bytes)
{
    const q7_t *end = a->arena;
    for (int k = 0; k <= a->last; k++) {
        if (k == a->last && scratch != NULL) {
            assert(scratch >= end && (size_t)scratch % sizeof(q31_t) == 0);
            end = scratch + bytes;
        }
        if (rows_size(&a->images[k]) > 0) {
            assert(a->images[k].data >= end);
            end = a->images[k].data + rows_size(&a->images[k]);
        }
    }
}
#else
#define rows_check(a, scratch, bytes) ((void)0)
#endif

/* Copies `bytes`, which may overlap; in words if possible. */
static void rows_copy(q7_t *to, const q7_t *from, int bytes)
{
    if ((((size_t)to | (size_t)from | (size_t)bytes) & (sizeof(q31_t) - 1)) != 0) {
        memmove(to, from, (size_t)bytes);
        return;
    }
    q31_t *out = (q31_t *)(void *)to;
    const q31_t *in = (const q31_t *)(const void *)from;
    const int words = bytes / (int)sizeof(q31_t);
    if (out < in) {
        for (int i = 0; i < words; i++) {
            out[i] = in[i];
        }
    } else {
        for (int i = words - 1; i >= 0; i--) {
            out[i] = in[i];
        }
    }
}

/* The end of the rows of the images up to `image`. */
static q7_t *rows_top(const rows_arena_t *a, int image)
{
    while (image >= 0 && rows_size(&a->images[image]) == 0) {
        image--;
    }
    return image < 0 ? a->arena : a->images[image].data + rows_size(&a->images[image]);
}

/* Moves the images from `image` on to `limit` or later, if `move`; returns the bytes to move, or -1 if impossible. */
static int rows_lift(const rows_arena_t *a, int image, q7_t *limit, int move)
{
    int k = image, cost = 0;
    while (k < a->last && (rows_size(&a->images[k]) == 0 || a->images[k].data < limit)) {
        cost += rows_size(&a->images[k]);
        limit += rows_size(&a->images[k]);
        k++;
    }
    if (a->images[k].data < limit) {
        return -1;
    }
    while (move && k-- > image) {
        rows_t *const rows = &a->images[k];
        limit -= rows_size(rows);
        rows_copy(limit, rows->data, rows_size(rows));
        rows->data = limit;
    }
    return cost;
}

/* Moves the images up to `image` to end at `limit` or earlier, if `move`; returns the bytes to move, or -1. */
static int rows_sink(const rows_arena_t *a, int image, q7_t *limit, int move)
{
    int k = image, cost = 0;
    while (k >= 0 && (rows_size(&a->images[k]) == 0 || a->images[k].data + rows_size(&a->images[k]) > limit)) {
        cost += rows_size(&a->images[k]);
        limit -= rows_size(&a->images[k]);
        k--;
    }
    if (k < 0 && limit < a->arena) {
        return -1;
    }
    while (move && ++k <= image) {
        rows_t *const rows = &a->images[k];
        rows_copy(limit, rows->data, rows_size(rows));
        rows->data = limit;
        limit += rows_size(rows);
    }
    return cost;
}

/* Frees `bytes` after the rows of an image; returns their address. Moves the images above or below: the fewer bytes. */
static q7_t *rows_room(const rows_arena_t *a, int image, int bytes)
{
    q7_t *const top = rows_top(a, image);
    const int up = rows_lift(a, image + 1, top + bytes, 0);
    int next = image + 1;
    while (next < a->last && rows_size(&a->images[next]) == 0) {
        next++;
    }
    const int down = rows_sink(a, image, a->images[next].data - bytes, 0);
    if (up >= 0 && (down < 0 || up <= down)) {
        rows_lift(a, image + 1, top + bytes, 1);
    } else {
        if (down < 0) { /* neither suffices alone: move all images above first */
            q7_t *limit = a->images[a->last].data;
            for (int k = a->last - 1; k > image; k--) {
                limit -= rows_size(&a->images[k]);
            }
            rows_lift(a, image + 1, limit, 1);
        }
        rows_sink(a, image, a->images[next].data - bytes, 1);
    }
    return rows_top(a, image);
}

/* Allocates an image's next row. */
static inline void rows_add(const rows_arena_t *a, int image)
{
    rows_t *const rows = &a->images[image];
    q7_t *const room = rows_room(a, image, rows->bytes);
    if (rows->end == rows->first) {
        rows->data = room;
    }
    rows->end++;
    rows_check(a, NULL, 0);
}

/* Adds a row of zeros, for padding. */
static inline void rows_add_zeros(const rows_arena_t *a, int image)
{
    rows_add(a, image);
    rows_t *const rows = &a->images[image];
    memset(rows->data + rows_size(rows) - rows->bytes, 0, (size_t)rows->bytes);
}

/* Scratch memory for a kernel, after all rows; alignment takes up to `slack` bytes more. */
static inline q7_t *rows_scratch(const rows_arena_t *a, int bytes, int slack)
{
    q7_t *const room = rows_room(a, a->last - 1, bytes + slack);
    q7_t *const scratch = room + (size_t)(a->arena - room) % sizeof(q31_t);
    rows_check(a, scratch, bytes);
    return scratch;
}

static inline q7_t *rows_at(const rows_t *rows, int row)
{
    return rows->data + (row - rows->first) * rows->bytes;
}

/* Frees the rows before `row`. */
static inline void rows_drop(rows_t *rows, int row)
{
    if (row > rows->first) {
        const int count = (row < rows->end ? row : rows->end) - rows->first;
        rows->data += count * rows->bytes;
        rows->first += count;
    }
}

/* Whether the rows before `row`, or all `count` rows, exist. */
static inline int rows_there(const rows_t *rows, int row, int count)
{
    return rows->end >= (row < count ? row : count);
}

/* Rows top .. top + window - 1 of an image that exist; `above` of the window's rows are missing above them. */
typedef struct {
    const q7_t *data;
    uint16_t above, count;
} rows_view_t;

static inline rows_view_t rows_view(const rows_t *rows, int top, int window)
{
    const int begin = top < rows->first ? rows->first : top;
    const int end = top + window < rows->end ? top + window : rows->end;
    rows_view_t view;
    view.data = rows_at(rows, begin);
    view.above = (uint16_t)(begin - top);
    view.count = (uint16_t)(end - begin);
    return view;
}

/* The first input row for the next row of a layer; a large number if all `count` rows are done. */
static inline int rows_wanted(const rows_t *rows, int count, int stride, int padding)
{
    return rows->end < count ? rows->end * stride - padding : 0x7fffffff;
}

static inline int rows_least(int a, int b)
{
    return a < b ? a : b;
}

#endif
