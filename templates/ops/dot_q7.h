/* SPDX-License-Identifier: Apache-2.0
 * Dot products of 8-bit or 4-bit weights with 16-bit numbers; the DSP extension computes two products per instruction.
 * Sums have 32 bits and wrap around. */
#ifndef DOT_Q7_H
#define DOT_Q7_H

#include "words_q7.h"

INLINE void clear_q15(q15_t *to, int count)
{
    if (count % 2 != 0) {
        *to++ = 0;
    }
    for (int i = 0; i < count / 2; i++) {
        store_word(to + 2 * i, 0);
    }
}

/* Moves numbers to lower addresses; ranges may overlap. `count` is a multiple of 2. */
INLINE void move_q15(q15_t *to, const q15_t *from, int count)
{
    for (int i = 0; i < count; i += 2) {
        store_word(to + i, load_word(from + i));
    }
}

/* Widens bytes to 16 bits; if `count` is a multiple of 4, each group of four becomes 0, 2, 1, 3. */
INLINE void widen_q7(const q7_t *from, int count, q15_t *to)
{
    if (count % 4 != 0) {
        for (int i = 0; i < count; i++) {
            to[i] = from[i];
        }
        return;
    }
    for (int i = 0; i < count; i += 4) {
#if DSP_WORDS
        const uint32_t word = load_word(from + i);
        store_word(to + i, even_bytes(word));
        store_word(to + i + 2, odd_bytes(word));
#else
        to[i] = from[i];
        to[i + 1] = from[i + 2];
        to[i + 2] = from[i + 1];
        to[i + 3] = from[i + 3];
#endif
    }
}

/* 16 times the 4-bit weight in the low or high half of a byte. */
INLINE q31_t low_half(q7_t byte)
{
    return (q7_t)(uint8_t)(byte * 16);
}

INLINE q31_t high_half(q7_t byte)
{
    return byte & ~15;
}

/* dot_q7: two outputs for one to three columns of 16-bit numbers, `step` numbers apart.
 *
 * Adds the products to sums[column][output], and returns the end of the weights. Weights come in blocks of four of one
 * output and four of the other; bytes at even positions belong to the first two numbers. `length` is a multiple of 4.
 * Four numbers of three columns take one load and four instructions to widen eight weights, and one load and four
 * SMLAD per column: 20 instructions for 24 products.
 *
 * `bits` is 8 or 4. A block of 4-bit weights has four bytes: one output in the low halves, the other in the high
 * halves. The weights stay in the high half of a byte, so sums are 16 times as large; this takes three more
 * instructions for eight weights. Since 4-bit weights are 16 times smaller, sums are no larger than with 8 bits. */
#if DSP_WORDS
/* Four widened weights for each of two outputs. */
typedef struct {
    uint32_t first_even, first_odd, second_even, second_odd;
} weights_2x4_t;

/* The low halves of bytes, shifted up, and the high halves. */
INLINE uint32_t low_halves(uint32_t word)
{
    return word << 4 & 0xf0f0f0f0u;
}

INLINE uint32_t high_halves(uint32_t word)
{
    return word & 0xf0f0f0f0u;
}

/* Eight weights of `bits` bits are `bits` bytes. */
INLINE const q7_t *widen_2x4(const q7_t *weights, const int bits, weights_2x4_t *w)
{
    const uint32_t word = load_word(weights);
    const uint32_t first = bits == 8 ? word : low_halves(word);
    const uint32_t second = bits == 8 ? load_word(weights + 4) : high_halves(word);
    w->first_even = even_bytes(first);
    w->first_odd = odd_bytes(first);
    w->second_even = even_bytes(second);
    w->second_odd = odd_bytes(second);
    return weights + bits;
}

INLINE void mac_2x4(const q15_t *x, const weights_2x4_t *w, q31_t sums[2])
{
    const uint32_t even = load_word(x), odd = load_word(x + 2);
    sums[0] = dual_mac(odd, w->first_odd, dual_mac(even, w->first_even, sums[0]));
    sums[1] = dual_mac(odd, w->second_odd, dual_mac(even, w->second_even, sums[1]));
}

#if defined(__ARM_FEATURE_DSP)
/* In assembler because it needs all fourteen registers: compilers reserve one, and load pairs of words one by one. r7
 * and r11, which may be reserved, are saved here. r0 is the address of the weights, r1 that of a column, `distance`
 * bytes from its neighbours; r2 and r3 hold four of its numbers; r7, r11, r12 and lr hold widened weights. */
#define WIDEN_2X4                    \
    ".if %c[bits] == 8\n\t"          \
    "ldrd r7, r11, [r0], #8\n\t"     \
    ".else\n\t"                      \
    "ldr r11, [r0], #4\n\t"          \
    "lsl r7, r11, #4\n\t"            \
    "and r7, r7, #0xf0f0f0f0\n\t"    \
    "and r11, r11, #0xf0f0f0f0\n\t"  \
    ".endif\n\t"                     \
    "sxtb16 r12, r7\n\t"             \
    "sxtb16 lr, r11\n\t"             \
    "sxtb16 r7, r7, ror #8\n\t"      \
    "sxtb16 r11, r11, ror #8\n\t"
#define MAC_2X4(first, second)                 \
    "smlad " first ", r2, r12, " first "\n\t"  \
    "smlad " second ", r2, lr, " second "\n\t" \
    "smlad " first ", r3, r7, " first "\n\t"   \
    "smlad " second ", r3, r11, " second "\n\t"
#define DOT_2X4                              \
    WIDEN_2X4                                \
    ".if %c[columns] == 3\n\t"               \
    "ldrd r2, r3, [r1, #-%c[distance]]\n\t"  \
    MAC_2X4("r4", "r5")                      \
    "ldrd r2, r3, [r1, #%c[distance]]\n\t"   \
    MAC_2X4("r9", "r10")                     \
    "ldrd r2, r3, [r1], #8\n\t"              \
    MAC_2X4("r6", "r8")                      \
    ".else\n\t"                              \
    ".if %c[columns] == 2\n\t"               \
    "ldrd r2, r3, [r1, #%c[distance]]\n\t"   \
    MAC_2X4("r6", "r8")                      \
    ".endif\n\t"                             \
    "ldrd r2, r3, [r1], #8\n\t"              \
    MAC_2X4("r4", "r5")                      \
    ".endif\n\t"
#define DOT_4X4                 \
    "ldrd r2, r3, [r1], #8\n\t" \
    WIDEN_2X4                   \
    MAC_2X4("r4", "r5")         \
    WIDEN_2X4                   \
    MAC_2X4("r6", "r8")
/* Four steps at a time until r3, the end of their weights; then the remaining steps. */
#define DOT_LOOP(step)                          \
    "push {r3, r7, r11}\n\t"                    \
    ".if %c[length] >= 16\n"                    \
    "1:\n\t"                                    \
    ".rept 4\n\t" step ".endr\n\t"              \
    "ldr r2, [sp]\n\t"                          \
    "cmp r0, r2\n\t"                            \
    "bne 1b\n\t"                                \
    ".endif\n\t"                                \
    ".rept %c[length] %% 16 / 4\n\t" step ".endr\n\t" \
    "pop {r3, r7, r11}"

INLINE const q7_t *dot_in_registers(const q7_t *weights, const int bits, const q15_t *x, const int distance,
                                    const int columns, const int length, q31_t sums[3][2])
{
    register const q7_t *w __asm__("r0") = weights;
    register const q15_t *own __asm__("r1") = columns == 3 ? x + distance / (int)sizeof *x : x;
    register const q7_t *end __asm__("r3") = weights + length / 16 * 4 * bits;
    register q31_t a __asm__("r4") = sums[0][0], b __asm__("r5") = sums[0][1];
    register q31_t c __asm__("r6") = sums[1][0], d __asm__("r8") = sums[1][1];
    register q31_t e __asm__("r9") = sums[2][0], f __asm__("r10") = sums[2][1];
    __asm__ volatile(DOT_LOOP(DOT_2X4)
                     : "+r"(w), "+r"(own), "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f)
                     : "r"(end), [bits] "i"(bits), [columns] "i"(columns), [distance] "i"(distance), [length] "i"(length)
                     : "r2", "r12", "lr", "cc", "memory");
    sums[0][0] = a;
    sums[0][1] = b;
    sums[1][0] = c;
    sums[1][1] = d;
    sums[2][0] = e;
    sums[2][1] = f;
    return w;
}
INLINE const q7_t *dot_4x1_in_registers(const q7_t *weights, const int bits, const q15_t *x, const int length,
                                        q31_t sums[4])
{
    register const q7_t *w __asm__("r0") = weights;
    register const q15_t *column __asm__("r1") = x;
    register const q7_t *end __asm__("r3") = weights + length / 16 * 8 * bits;
    register q31_t a __asm__("r4") = sums[0], b __asm__("r5") = sums[1];
    register q31_t c __asm__("r6") = sums[2], d __asm__("r8") = sums[3];
    __asm__ volatile(DOT_LOOP(DOT_4X4)
                     : "+r"(w), "+r"(column), "+r"(a), "+r"(b), "+r"(c), "+r"(d)
                     : "r"(end), [bits] "i"(bits), [length] "i"(length)
                     : "r2", "r12", "lr", "cc", "memory");
    sums[0] = a;
    sums[1] = b;
    sums[2] = c;
    sums[3] = d;
    return w;
}
#endif

INLINE const q7_t *dot_q7(const q7_t *weights, const int bits, const q15_t *x, const int step, const int columns,
                          const int length, q31_t sums[3][2])
{
#if defined(__ARM_FEATURE_DSP)
    const int distance = step * (int)sizeof *x;
    if (__builtin_constant_p(distance) && __builtin_constant_p(length) && __builtin_constant_p(columns) &&
        distance <= 1020) {
        return dot_in_registers(weights, bits, x, distance, columns, length, sums);
    }
#endif
    for (const q7_t *const end = weights + length / 4 * bits; weights != end; x += 4) {
        weights_2x4_t w;
        weights = widen_2x4(weights, bits, &w);
        for (int c = 0; c < columns; c++) {
            mac_2x4(x + c * step, &w, sums[c]);
        }
    }
    return weights;
}

/* Four outputs for one column; the weights come in blocks of four per output. */
INLINE const q7_t *dot_4x1_q7(const q7_t *weights, const int bits, const q15_t *x, const int length, q31_t sums[4])
{
#if defined(__ARM_FEATURE_DSP)
    if (__builtin_constant_p(length)) {
        return dot_4x1_in_registers(weights, bits, x, length, sums);
    }
#endif
    for (const q7_t *const end = weights + length / 2 * bits; weights != end; x += 4) {
        for (int o = 0; o < 4; o += 2) {
            weights_2x4_t w;
            weights = widen_2x4(weights, bits, &w);
            mac_2x4(x, &w, sums + o);
        }
    }
    return weights;
}
#else
/* Unrolled by hand because compilers do not unroll this loop below -O3. */
INLINE q31_t dot_4(const q31_t a, const q31_t b, const q31_t c, const q31_t d, const q15_t *x, q31_t sum)
{
    return sum + a * x[0] + b * x[1] + c * x[2] + d * x[3];
}

/* Both outputs of a block of eight weights. */
INLINE void mac_2x4(const q15_t *x, const q7_t *w, const int bits, q31_t sums[2])
{
    if (bits == 8) {
        sums[0] = dot_4(w[0], w[2], w[1], w[3], x, sums[0]);
        sums[1] = dot_4(w[4], w[6], w[5], w[7], x, sums[1]);
    } else {
        sums[0] = dot_4(low_half(w[0]), low_half(w[2]), low_half(w[1]), low_half(w[3]), x, sums[0]);
        sums[1] = dot_4(high_half(w[0]), high_half(w[2]), high_half(w[1]), high_half(w[3]), x, sums[1]);
    }
}

INLINE const q7_t *dot_q7(const q7_t *weights, const int bits, const q15_t *x, int step, int columns, int length,
                          q31_t sums[3][2])
{
    for (const q7_t *const end = weights + length / 4 * bits; weights != end; weights += bits, x += 4) {
        for (int c = 0; c < columns; c++) {
            mac_2x4(x + c * step, weights, bits, sums[c]);
        }
    }
    return weights;
}

INLINE const q7_t *dot_4x1_q7(const q7_t *weights, const int bits, const q15_t *x, int length, q31_t sums[4])
{
    for (const q7_t *const end = weights + length / 2 * bits; weights != end; x += 4) {
        for (int o = 0; o < 4; o += 2, weights += bits) {
            mac_2x4(x, weights, bits, sums + o);
        }
    }
    return weights;
}
#endif

#endif
