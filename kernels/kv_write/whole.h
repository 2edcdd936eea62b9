// Keys and values in whole numbers, as int8 caches have them: whole.py says what is kept, and layout.py where.
//
// It knows nothing of sequences.
#pragma once

#include "../lanes.h"
#include "layout.h"

#ifdef ROADTRAIN_FAST

// H x for d numbers, a multiple of 8, in place; sums in the order of whole.py.
INLINE void spread(float* x, int64_t d) {
    const int64_t size = d & -d;
    for (int64_t i = 0; i < d; i += 8) store(x + i, butterflies<4>(butterflies<2>(butterflies<1>(load(x + i)))));
    for (int64_t apart = 8; apart < size; apart *= 2)
        for (int64_t i = 0; i < d; i += 2 * apart)
            for (float *p = x + i, *end = p + apart; p < end; p += 8) {
                const v8 first = load(p), second = load(p + apart);
                store(p, first + second);
                store(p + apart, first - second);
            }
}

// The factor of queries that meet spread keys.
INLINE float unspread(int64_t d) { return 1.0f / (float)(d & -d); }

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// d numbers as whole ones; returns their word. Element i goes to to[i / 2 * pair + i % 2 * next].
INLINE uint32_t put_whole(int8_t* to, int64_t pair, int64_t next, const float* x, int64_t d) {
    v8 high = load(x), low = -high, none = splat(0);
    for (int64_t i = 0; i < d; i += 8) {
        const v8 some = load(x + i);
        high = larger(some, high);
        low = larger(-some, low);
        none = fma(some, splat(0), none);  // not a number as soon as one is none
    }
    const bool nothing = !(sum(none) == 0.0f);
    const float least = -largest(low), most = largest(high);
    const uint32_t half = bits_of(least * 0.5f + most * 0.5f);
    const float centre = from_bits((half + 0x7fff + (half >> 16 & 1)) & 0xffff0000);
    const float above = most - centre, below = centre - least, reach = above > below ? above : below;
    const bool still = nothing || reach < 1e-30f;
    const float step = still ? 0.0f : from_bits((bits_of(reach / 127.0f) + 0xffff) & 0xffff0000);
    const v8 inverse = splat(still ? 0.0f : 1.0f / step), middle = splat(centre);
    for (int64_t i = 0; i < d; i += 8) {
        int32_t eight[8];
        const i8 numbers = nearest((load(x + i) - middle) * inverse);
        memcpy(eight, &numbers, sizeof eight);
        for (int64_t j = 0; j < 8; j++) to[(i + j) / 2 * pair + j % 2 * next] = nothing ? 0 : (int8_t)eight[j];
    }
    return nothing ? 0x7fc07fc0 : bits_of(step) | bits_of(centre) >> 16;
}

// Steps and centres of eight words.
INLINE v8 steps_of(const uint32_t* words) {
    i8 bits;
    memcpy(&bits, words, sizeof bits);
    return (v8)(bits & (i8)_mm256_set1_epi32((int)0xffff0000));
}

INLINE v8 centres_of(const uint32_t* words) {
    i8 bits;
    memcpy(&bits, words, sizeof bits);
    return (v8)(bits << 16);
}

#endif
