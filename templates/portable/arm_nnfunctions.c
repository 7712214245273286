/* SPDX-License-Identifier: Apache-2.0
 * The q7 kernels of CMSIS-NN 5.9.0 in portable C, with the same results and side effects as Arm's: they check no more,
 * read and write the same memory, even beyond their arrays, and fill scratch memory with garbage. */
#include "arm_nnfunctions.h"

#include <assert.h>
#include <string.h>

#if defined(ARM_MATH_DSP) && !defined(ARM_MATH_MVEI)
#define DSP_PATH 1
#else
#define DSP_PATH 0
#endif

/* Accumulators are unsigned because the kernels' 32-bit sums wrap, which is undefined in C for signed numbers. */

static uint32_t start(q7_t bias, uint16_t bias_shift, uint16_t out_shift)
{
#ifdef ARM_NN_TRUNCATE
    (void)out_shift;
    return (uint32_t)bias << bias_shift;
#else
    return ((uint32_t)bias << bias_shift) + (uint32_t)((1 << out_shift) >> 1);
#endif
}

static q7_t finish(uint32_t sum, uint16_t out_shift)
{
    const q31_t value = (q31_t)sum >> out_shift;
    return (q7_t)(value > 127 ? 127 : value < -128 ? -128 : value);
}

/* Overwrites scratch memory before and after use; the kernels require word alignment. */
static void spoil(void *scratch, int bytes)
{
    assert(scratch != NULL && (size_t)scratch % sizeof(q31_t) == 0);
    memset(scratch, 0x5b, (size_t)bytes);
}

typedef struct {
    int in, out, kernel, padding, stride; /* cells along one axis */
} axis_t;

/* Converts sums to outputs. */
typedef struct {
    const q7_t *bias;
    uint16_t bias_shift, out_shift;
} scaling_t;

/* The part of output o's window inside the image: cells [*begin, *end) of the kernel. */
static int clip_window(const axis_t *axis, int o, int *begin, int *end)
{
    const int origin = o * axis->stride - axis->padding;
    *begin = origin < 0 ? -origin : 0;
    *end = axis->in - origin < axis->kernel ? axis->in - origin : axis->kernel;
    return origin;
}

#if DSP_PATH

static int is_outside(const axis_t *axis, int cell)
{
    return cell < 0 || cell >= axis->in;
}

/* The fast kernels check only the windows of the first and the last `padding` outputs along each axis. */
static int is_checked(const axis_t *axis, int o)
{
    return o < axis->padding || o >= axis->out - axis->padding;
}

static int larger(int a, int b)
{
    return a > b ? a : b;
}

/* Windows become columns of 16 bits in scratch memory, multiplied two at a time. Weights O,KH,KW,C. */
static void convolve(const q7_t *image, axis_t x, axis_t y, int channels, const q7_t *wt, int outputs, scaling_t s,
                     int fast, q15_t *scratch, q7_t *out)
{
    const int size = channels * y.kernel * x.kernel, scratch_bytes = (x.out * y.out == 1 ? 2 : 4) * size;
    q15_t *column = scratch;
    spoil(scratch, scratch_bytes);
    const int rows = fast ? larger(y.out, y.padding) : y.out;
    for (int oy = 0; oy < rows; oy++) {
        const int check_y = !fast || is_checked(&y, oy), columns = check_y ? x.out : larger(x.out, x.padding);
        for (int ox = 0; ox < columns; ox++) {
            const int check_x = check_y || is_checked(&x, ox);
            for (int ky = 0; ky < y.kernel; ky++) {
                for (int kx = 0; kx < x.kernel; kx++) {
                    const int row = oy * y.stride - y.padding + ky, at = ox * x.stride - x.padding + kx;
                    const int zero = (check_y && is_outside(&y, row)) || (check_x && is_outside(&x, at));
                    const q7_t *const cell = image + (row * x.in + at) * channels;
                    for (int c = 0; c < channels; c++) {
                        *column++ = zero ? 0 : cell[c];
                    }
                }
            }
            const int last = oy == rows - 1 && ox == columns - 1, held = (int)(column - scratch) / size;
            if (held < 2 && !last) {
                continue;
            }
            for (int o = 0; o < outputs; o++) {
                for (int i = 0; i < held; i++) {
                    uint32_t sum = start(s.bias[o], s.bias_shift, s.out_shift);
                    for (int k = 0; k < size; k++) {
                        sum += (uint32_t)(scratch[i * size + k] * wt[o * size + k]);
                    }
                    out[i * outputs + o] = finish(sum, s.out_shift);
                }
            }
            out += held * outputs;
            column = scratch;
        }
    }
    spoil(scratch, scratch_bytes);
}

/* Each pixel is a column; the height of the input is ignored. */
static void convolve_1x1(const q7_t *image, axis_t x, axis_t y, int channels, const q7_t *wt, int outputs, scaling_t s,
                         q15_t *scratch, q7_t *out)
{
    const axis_t pixels = {x.in, x.out, 1, 0, 1}, rows = {y.out, y.out, 1, 0, 1};
    convolve(image, pixels, rows, channels, wt, outputs, s, 1, scratch, out);
}

#else

static uint32_t dot(const q7_t *a, const q7_t *b, int length)
{
    q31_t sum = 0;
    for (int i = 0; i < length; i++) {
        sum += a[i] * b[i];
    }
    return (uint32_t)sum;
}

/* Weights O,KH,KW,C. Uses no scratch memory and checks every window. */
static void convolve(const q7_t *image, axis_t x, axis_t y, int channels, const q7_t *wt, int outputs, scaling_t s,
                     int fast, q15_t *scratch, q7_t *out)
{
    (void)fast;
    (void)scratch;
    for (int oy = 0; oy < y.out; oy++) {
        int ky_begin, ky_end;
        const int row = clip_window(&y, oy, &ky_begin, &ky_end);
        for (int ox = 0; ox < x.out; ox++) {
            int kx_begin, kx_end;
            const int column = clip_window(&x, ox, &kx_begin, &kx_end);
            for (int o = 0; o < outputs; o++) {
                uint32_t sum = start(s.bias[o], s.bias_shift, s.out_shift);
                for (int ky = ky_begin; ky < ky_end && kx_begin < kx_end; ky++) {
                    sum += dot(image + ((row + ky) * x.in + column + kx_begin) * channels,
                               wt + ((o * y.kernel + ky) * x.kernel + kx_begin) * channels,
                               (kx_end - kx_begin) * channels);
                }
                *out++ = finish(sum, s.out_shift);
            }
        }
    }
}

static void convolve_1x1(const q7_t *image, axis_t x, axis_t y, int channels, const q7_t *wt, int outputs, scaling_t s,
                         q15_t *scratch, q7_t *out)
{
    convolve(image, x, y, channels, wt, outputs, s, 1, scratch, out);
}

#endif

/* Weights KH,KW,C. */
static void convolve_depthwise(const q7_t *image, axis_t x, axis_t y, int channels, const q7_t *wt, scaling_t s,
                               q15_t *scratch, q7_t *out)
{
    if (DSP_PATH) {
        spoil(scratch, channels * y.kernel * x.kernel);
    }
    for (int oy = 0; oy < y.out; oy++) {
        int ky_begin, ky_end;
        const int row = clip_window(&y, oy, &ky_begin, &ky_end);
        for (int ox = 0; ox < x.out; ox++) {
            int kx_begin, kx_end;
            const int column = clip_window(&x, ox, &kx_begin, &kx_end);
            for (int c = 0; c < channels; c++) {
                uint32_t sum = start(s.bias[c], s.bias_shift, s.out_shift);
                for (int ky = ky_begin; ky < ky_end; ky++) {
                    for (int kx = kx_begin; kx < kx_end; kx++) {
                        sum += (uint32_t)(image[((row + ky) * x.in + column + kx) * channels + c] *
                                          wt[(ky * x.kernel + kx) * channels + c]);
                    }
                }
                *out++ = finish(sum, s.out_shift);
            }
        }
    }
    if (DSP_PATH) {
        spoil(scratch, channels * y.kernel * x.kernel);
    }
}

#define AXES_SQUARE()                                                                                                  \
    const axis_t x = {dim_im_in, dim_im_out, dim_kernel, padding, stride}, y = x;                                      \
    const scaling_t s = {bias, bias_shift, out_shift};                                                                 \
    (void)bufferB

#define AXES_NONSQUARE()                                                                                               \
    const axis_t x = {dim_im_in_x, dim_im_out_x, dim_kernel_x, padding_x, stride_x};                                   \
    const axis_t y = {dim_im_in_y, dim_im_out_y, dim_kernel_y, padding_y, stride_y};                                   \
    const scaling_t s = {bias, bias_shift, out_shift};                                                                 \
    (void)bufferB

#define CONVOLVE(condition, fast)                                                                                      \
    if (!(condition)) {                                                                                                \
        return ARM_MATH_SIZE_MISMATCH;                                                                                 \
    }                                                                                                                  \
    convolve(Im_in, x, y, ch_im_in, wt, ch_im_out, s, fast, bufferA, Im_out);                                          \
    return ARM_MATH_SUCCESS

#define CONVOLVE_DEPTHWISE()                                                                                           \
    if (ch_im_in != ch_im_out) {                                                                                       \
        return ARM_MATH_SIZE_MISMATCH;                                                                                 \
    }                                                                                                                  \
    convolve_depthwise(Im_in, x, y, ch_im_in, wt, s, bufferA, Im_out);                                                 \
    return ARM_MATH_SUCCESS

ARM_Q7_CONVOLVE_SQUARE(arm_convolve_HWC_q7_basic)
{
    AXES_SQUARE();
    CONVOLVE(1, 0);
}

ARM_Q7_CONVOLVE_SQUARE(arm_convolve_HWC_q7_RGB)
{
    AXES_SQUARE();
    if (DSP_PATH) { /* reads four bytes at a time */
        (void)*(const volatile q7_t *)(Im_in + dim_im_in * dim_im_in * 3);
    }
    CONVOLVE(ch_im_in == 3, 0);
}

ARM_Q7_CONVOLVE_SQUARE(arm_convolve_HWC_q7_fast)
{
    AXES_SQUARE();
    CONVOLVE(ch_im_in % 4 == 0 && ch_im_out % 2 == 0, 1);
}

ARM_Q7_CONVOLVE_SQUARE(arm_depthwise_separable_conv_HWC_q7)
{
    AXES_SQUARE();
    CONVOLVE_DEPTHWISE();
}

ARM_Q7_CONVOLVE_NONSQUARE(arm_convolve_HWC_q7_basic_nonsquare)
{
    AXES_NONSQUARE();
    CONVOLVE(1, 0);
}

ARM_Q7_CONVOLVE_NONSQUARE(arm_convolve_HWC_q7_fast_nonsquare)
{
    AXES_NONSQUARE();
    CONVOLVE(ch_im_in % 4 == 0 && ch_im_out % 2 == 0, 1);
}

ARM_Q7_CONVOLVE_NONSQUARE(arm_convolve_1x1_HWC_q7_fast_nonsquare)
{
    AXES_NONSQUARE();
    if (ch_im_in % 4 != 0 || ch_im_out % 2 != 0 || x.kernel != 1 || y.kernel != 1 || x.padding != 0 || y.padding != 0 ||
        x.stride != 1 || y.stride != 1) {
        return ARM_MATH_SIZE_MISMATCH;
    }
    convolve_1x1(Im_in, x, y, ch_im_in, wt, ch_im_out, s, bufferA, Im_out);
    return ARM_MATH_SUCCESS;
}

ARM_Q7_CONVOLVE_NONSQUARE(arm_depthwise_separable_conv_HWC_q7_nonsquare)
{
    AXES_NONSQUARE();
    CONVOLVE_DEPTHWISE();
}

#if DSP_PATH

/* The DSP path first widens the vector into scratch memory, so the output may overwrite the vector. */
typedef q15_t element_t;

static const element_t *prepare(const q7_t *vector, int size, q15_t *scratch)
{
    spoil(scratch, size * (int)sizeof(q15_t));
    for (int i = 0; i < size; i++) {
        scratch[i] = vector[i];
    }
    return scratch;
}

#else

typedef q7_t element_t;

static const element_t *prepare(const q7_t *vector, int size, q15_t *scratch)
{
    (void)size;
    (void)scratch;
    return vector;
}

#endif

static void multiply(const element_t *vector, const q7_t *wt, int columns, int rows, scaling_t s, q7_t *out)
{
    for (int row = 0; row < rows; row++) {
        uint32_t sum = start(s.bias[row], s.bias_shift, s.out_shift);
        for (int column = 0; column < columns; column++) {
            sum += (uint32_t)(vector[column] * wt[row * columns + column]);
        }
        out[row] = finish(sum, s.out_shift);
    }
}

static arm_status end_product(int size, q15_t *scratch)
{
    if (DSP_PATH) {
        spoil(scratch, size * (int)sizeof(q15_t));
    }
    return ARM_MATH_SUCCESS;
}

arm_status arm_fully_connected_q7(const q7_t *pV, const q7_t *pM, const uint16_t dim_vec, const uint16_t num_of_rows,
                                  const uint16_t bias_shift, const uint16_t out_shift, const q7_t *bias, q7_t *pOut,
                                  q15_t *vec_buffer)
{
    const scaling_t s = {bias, bias_shift, out_shift};
    multiply(prepare(pV, dim_vec, vec_buffer), pM, dim_vec, num_of_rows, s, pOut);
    return end_product(dim_vec, vec_buffer);
}

/* Weights as a stream of 4x4 blocks: (row, column) in the order (0,0)(1,0)(0,2)(1,2) (2,0)(3,0)(2,2)(3,2)
 * (0,1)(1,1)(0,3)(1,3) (2,1)(3,1)(2,3)(3,3), then the remaining columns, four rows at a time. */
arm_status arm_fully_connected_q7_opt(const q7_t *pV, const q7_t *pM, const uint16_t dim_vec,
                                      const uint16_t num_of_rows, const uint16_t bias_shift, const uint16_t out_shift,
                                      const q7_t *bias, q7_t *pOut, q15_t *vec_buffer)
{
    const element_t *const vector = prepare(pV, dim_vec, vec_buffer);
    const int grouped = num_of_rows & ~3, blocked = dim_vec & ~3;
    for (int row = 0; row < grouped; row += 4) {
        uint32_t sums[4];
        for (int r = 0; r < 4; r++) {
            sums[r] = start(bias[row + r], bias_shift, out_shift);
        }
        for (int column = 0; column < blocked; column += 4) {
            for (int t = 0; t < 16; t++) {
                const int r = 2 * ((t >> 2) & 1) + (t & 1), c = 2 * ((t >> 1) & 1) + (t >> 3);
                sums[r] += (uint32_t)(vector[column + c] * *pM++);
            }
        }
        for (int column = blocked; column < dim_vec; column++) {
            for (int r = 0; r < 4; r++) {
                sums[r] += (uint32_t)(vector[column] * *pM++);
            }
        }
        for (int r = 0; r < 4; r++) {
            pOut[row + r] = finish(sums[r], out_shift);
        }
    }
    const scaling_t s = {bias + grouped, bias_shift, out_shift};
    multiply(vector, pM, dim_vec, num_of_rows - grouped, s, pOut + grouped);
    return end_product(dim_vec, vec_buffer);
}

void arm_relu_q7(q7_t *data, uint16_t size)
{
    for (int i = 0; i < size; i++) {
        data[i] = data[i] > 0 ? data[i] : 0;
    }
}

/* round(128 / (1 + exp(-k / 16))) and round(128 * tanh(k / 16)), at most 127, indexed by a signed 8-bit k. */
static const q7_t sigmoid_table[256] = {
    64, 66, 68, 70, 72, 74, 76, 78, 80, 82, 83, 85, 87, 89, 90, 92, 94, 95, 97, 98, 99, 101, 102, 103, 105, 106, 107,
    108, 109, 110, 111, 112, 113, 114, 114, 115, 116, 116, 117, 118, 118, 119, 119, 120, 120, 121, 121, 122, 122, 122,
    123, 123, 123, 124, 124, 124, 124, 124, 125, 125, 125, 125, 125, 126, 126, 126, 126, 126, 126, 126, 126, 127, 127,
    127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127,
    127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127,
    127, 127, 127, 127, 127, 127, 127, 127, 127, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
    2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 12, 12, 13, 14, 14,
    15, 16, 17, 18, 19, 20, 21, 22, 23, 25, 26, 27, 29, 30, 31, 33, 34, 36, 38, 39, 41, 43, 45, 46, 48, 50, 52, 54,
    56, 58, 60, 62,
};
static const q7_t tanh_table[256] = {
    0, 8, 16, 24, 31, 39, 46, 53, 59, 65, 71, 76, 81, 86, 90, 94, 97, 101, 104, 106, 109, 111, 113, 114, 116, 117,
    118, 120, 120, 121, 122, 123, 123, 124, 124, 125, 125, 126, 126, 126, 126, 126, 127, 127, 127, 127, 127, 127, 127,
    127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127,
    127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127,
    127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127,
    127, 127, 127, 127, 127, 127, 127, 127, 127, 127, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128,
    -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128,
    -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128,
    -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128,
    -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -128, -127, -127, -127, -127, -127, -127, -127,
    -127, -126, -126, -126, -126, -126, -125, -125, -124, -124, -123, -123, -122, -121, -120, -120, -118, -117, -116,
    -114, -113, -111, -109, -106, -104, -101, -97, -94, -90, -86, -81, -76, -71, -65, -59, -53, -46, -39, -31, -24,
    -16, -8,
};

void arm_nn_activations_direct_q7(q7_t *data, uint16_t size, uint16_t int_width, arm_nn_activation_type type)
{
    const q7_t *const table = type == ARM_SIGMOID ? sigmoid_table : tanh_table;
    for (int i = 0; i < size; i++) {
        data[i] = table[(uint8_t)(data[i] >> (3 - int_width))];
    }
}

/* Powers of two instead of exponentials; the maximum counts as much as a value one below it. */
void arm_softmax_q7(const q7_t *vec_in, const uint16_t dim_vec, q7_t *p_out)
{
    int most = -128;
    for (int i = 0; i < dim_vec; i++) {
        most = vec_in[i] > most ? vec_in[i] : most;
    }
    int sum = 0;
    for (int i = 0; i < dim_vec; i++) {
        const int power = vec_in[i] - (most - 8);
        sum += 1 << (power > 7 ? 7 : power < 0 ? 0 : power);
    }
    for (int i = 0; i < dim_vec; i++) {
        const int shift = 5 + most - vec_in[i];
        const int value = (1 << 20) / sum >> (shift > 31 ? 31 : shift);
        p_out[i] = (q7_t)(value > 127 ? 127 : value);
    }
}

#if DSP_PATH

/* The maximum of the cells [first, end) of an axis, `lanes` bytes each and `pitch` apart; out may be one of them. */
static void largest(const q7_t *cells, int pitch, int first, int end, int lanes, q7_t *out)
{
    for (int lane = 0; lane < lanes; lane++) {
        q7_t most = cells[first * pitch + lane];
        for (int i = first + 1; i < end; i++) {
            const q7_t value = cells[i * pitch + lane];
            most = value > most ? value : most;
        }
        out[lane] = most;
    }
}

/* Along x in place, then along y. As in the library, a window that starts before the image starts at column i for the
 * i-th output instead of at 0, which is exact if the padding is less than the stride. */
static void max_pool(q7_t *image, const axis_t *axis, int channels, q7_t *out)
{
    const int row_bytes = axis->in * channels, out_bytes = axis->out * channels;
    int begin, end;
    for (int row = 0; row < axis->in; row++) {
        q7_t *const cells = image + row * row_bytes;
        for (int i = 0; i < axis->out; i++) {
            const int origin = clip_window(axis, i, &begin, &end);
            largest(cells, channels, origin < 0 ? i : origin, origin + end, channels, cells + i * channels);
        }
    }
    for (int i = 0; i < axis->out; i++) {
        const int origin = clip_window(axis, i, &begin, &end);
        largest(image, row_bytes, origin + begin, origin + end, out_bytes, out + i * out_bytes);
    }
}

#else

static void max_pool(q7_t *image, const axis_t *axis, int channels, q7_t *out)
{
    for (int oy = 0; oy < axis->out; oy++) {
        int ky_begin, ky_end;
        const int row = clip_window(axis, oy, &ky_begin, &ky_end);
        for (int ox = 0; ox < axis->out; ox++) {
            int kx_begin, kx_end;
            const int column = clip_window(axis, ox, &kx_begin, &kx_end);
            for (int c = 0; c < channels; c++) {
                int most = -129; /* an empty window gives 127 */
                for (int ky = ky_begin; ky < ky_end; ky++) {
                    for (int kx = kx_begin; kx < kx_end; kx++) {
                        const q7_t value = image[((row + ky) * axis->in + column + kx) * channels + c];
                        most = value > most ? value : most;
                    }
                }
                *out++ = (q7_t)most;
            }
        }
    }
}

#endif

void arm_maxpool_q7_HWC(q7_t *Im_in, const uint16_t dim_im_in, const uint16_t ch_im_in, const uint16_t dim_kernel,
                        const uint16_t padding, const uint16_t stride, const uint16_t dim_im_out, q7_t *bufferA,
                        q7_t *Im_out)
{
    const axis_t axis = {dim_im_in, dim_im_out, dim_kernel, padding, stride};
    (void)bufferA;
    max_pool(Im_in, &axis, ch_im_in, Im_out);
}
