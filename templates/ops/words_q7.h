/* SPDX-License-Identifier: Apache-2.0
 * SIMD operations on words of four bytes or two 16-bit numbers, and saturation.
 *
 * With the DSP extension (Cortex-M4, M7, M33, M55), these are single instructions. On a PC that emulates such a core,
 * they are written in C to run the same loops. Other cores use loops without words (DSP_WORDS is 0).
 * The program defines the types q7_t and q31_t. */
#ifndef WORDS_Q7_H
#define WORDS_Q7_H

#include <stdint.h>
#include <string.h>
#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#if defined(__ARM_FEATURE_DSP) || (defined(ARM_MATH_DSP) && !defined(__arm__))
#define DSP_WORDS 1
#else
#define DSP_WORDS 0
#endif

/* Four bytes or two 16-bit numbers, at any address. */
INLINE uint32_t load_word(const void *from)
{
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

INLINE void store_word(void *to, uint32_t word)
{
    memcpy(to, &word, sizeof word);
}

#if defined(__ARM_FEATURE_DSP)
INLINE uint32_t even_bytes(uint32_t word)
{
    return (uint32_t)__sxtb16((int8x4_t)word);
}

/* One instruction, which GCC does not generate by itself. */
INLINE uint32_t odd_bytes(uint32_t word)
{
    uint32_t bytes;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(bytes) : "r"(word));
    return bytes;
}

INLINE q31_t dual_mac(uint32_t a, uint32_t b, q31_t sum)
{
    return __smlad((int16x2_t)a, (int16x2_t)b, sum);
}

INLINE q31_t low_mac(uint32_t a, uint32_t b, q31_t sum)
{
    return __smlabb((q31_t)a, (q31_t)b, sum);
}

INLINE q31_t high_mac(uint32_t a, uint32_t b, q31_t sum)
{
    return __smlatt((q31_t)a, (q31_t)b, sum);
}

INLINE uint32_t largest_bytes(uint32_t a, uint32_t b)
{
    (void)__ssub8((int8x4_t)a, (int8x4_t)b);
    return (uint32_t)__sel((uint8x4_t)a, (uint8x4_t)b);
}

#elif DSP_WORDS
INLINE uint32_t even_bytes(uint32_t word)
{
    return (uint16_t)(q7_t)word | (uint32_t)(uint16_t)(q7_t)(word >> 16) << 16;
}

INLINE uint32_t odd_bytes(uint32_t word)
{
    return even_bytes(word >> 8);
}

INLINE q31_t low_mac(uint32_t a, uint32_t b, q31_t sum)
{
    return (q31_t)((uint32_t)sum + (uint32_t)((int16_t)a * (int16_t)b));
}

INLINE q31_t high_mac(uint32_t a, uint32_t b, q31_t sum)
{
    return low_mac(a >> 16, b >> 16, sum);
}

INLINE q31_t dual_mac(uint32_t a, uint32_t b, q31_t sum)
{
    return high_mac(a, b, low_mac(a, b, sum));
}

INLINE uint32_t largest_bytes(uint32_t a, uint32_t b)
{
    uint32_t largest = 0;
    for (int i = 0; i < 32; i += 8) {
        largest |= (uint32_t)(uint8_t)((q7_t)(a >> i) > (q7_t)(b >> i) ? a >> i : b >> i) << i;
    }
    return largest;
}
#endif

/* The rounding term of the library's kernels: half a step, or 0 if they are built to truncate. */
#if defined(ARM_NN_TRUNCATE)
#define ROUNDING(shift) 0
#else
#define ROUNDING(shift) ((1 << (shift)) >> 1)
#endif

/* max(low, min(value, high)); one instruction (SSAT, USAT) if the core and the limits allow it. */
INLINE q7_t limited_q7(q31_t value, q31_t low, q31_t high)
{
#if defined(__ARM_FEATURE_SAT) && defined(__GNUC__)
    if (low == -128 && high == 127) {
        return (q7_t)__builtin_arm_ssat(value, 8);
    }
    if (low == 0 && high == 127) {
        return (q7_t)__builtin_arm_usat(value, 7);
    }
#endif
    return (q7_t)(value > high ? high : value < low ? low : value);
}

INLINE q7_t saturate_q7(q31_t value)
{
    return limited_q7(value, -128, 127);
}

#endif
