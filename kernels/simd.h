// Eight floats at a time, on any processor: GCC vectors, with intrinsics where the compiler is allowed them.
//
// Everything here rounds the same way for the same build; portable builds alone, which do not fuse multiply and add, differ.
// ROADTRAIN_FAST says that there are fast bodies, written in AVX2's operations (neon.h has them for ARM).
// It knows nothing of threads or tensors.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define ROADTRAIN_AVX2 1
#define ROADTRAIN_FAST 1
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include "neon.h"
#define ROADTRAIN_NEON 1
#define ROADTRAIN_FAST 1
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))

#ifndef ROADTRAIN_NEON
typedef float v8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
#endif

#ifdef ROADTRAIN_NEON
INLINE v8 load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store(float* p, v8 v) { _mm256_storeu_ps(p, v); }
#else
INLINE v8 load(const float* p) { v8 r; memcpy(&r, p, 32); return r; }
INLINE void store(float* p, v8 v) { memcpy(p, &v, 32); }
#endif
INLINE v8 splat(float x) { return v8{x, x, x, x, x, x, x, x}; }

INLINE v8 fma(v8 a, v8 b, v8 c) {
#ifdef ROADTRAIN_FAST
    return (v8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE float fma1(float a, float b, float c) {
#ifdef ROADTRAIN_FAST
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

INLINE v8 select(i8 mask, v8 yes, v8 no) { return (v8)((mask & (i8)yes) | (~mask & (i8)no)); }

// One bit for every lane.
INLINE int bits_of(i8 mask) {
#ifdef ROADTRAIN_AVX2
    return _mm256_movemask_ps((__m256)mask);
#elif defined(ROADTRAIN_NEON)
    const i8 kept = mask & i8{1, 2, 4, 8, 16, 32, 64, 128};
    return vaddvq_s32(kept.low | kept.high);
#else
    int bits = 0;
    for (int j = 0; j < 8; j++) bits |= (mask[j] & 1) << j;
    return bits;
#endif
}

// The larger one of each lane, b where a is not a number.
INLINE v8 larger(v8 a, v8 b) {
#ifdef ROADTRAIN_AVX2
    return (v8)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return select(a > b, a, b);
#endif
}

// The fixed order of every sum over lanes.
INLINE float sum(v8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }
INLINE float largest(v8 v) {
    float m = v[0];
    for (int i = 1; i < 8; i++) m = v[i] > m ? v[i] : m;
    return m;
}

INLINE float half_to_float(uint16_t h) {
#ifdef ROADTRAIN_AVX2
    return _cvtsh_ss(h);
#elif defined(ROADTRAIN_NEON)
    __fp16 half;
    memcpy(&half, &h, 2);
    return (float)half;
#else
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023, bits;
    if (exponent == 31) bits = sign | 0x7f800000 | fraction << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | fraction << 13;
    else {
        float small = (float)fraction * 0x1p-24f;
        memcpy(&bits, &small, 4);
        bits |= sign;
    }
    float out;
    memcpy(&out, &bits, 4);
    return out;
#endif
}

INLINE uint16_t float_to_half(float x) {
#ifdef ROADTRAIN_AVX2
    return _cvtss_sh(x, 0);
#elif defined(ROADTRAIN_NEON)
    const __fp16 half = (__fp16)x;
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
#else
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x1ff));
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded result in the low bits
        float shifted;
        memcpy(&shifted, &rest, 4);
        shifted += 0.5f;
        memcpy(&rest, &shifted, 4);
        return (uint16_t)(sign | (rest - 0x3f000000));
    }
    rest += 0xc8000fff + (rest >> 13 & 1);
    return (uint16_t)(sign | rest >> 13);
#endif
}

INLINE v8 load_half(const uint16_t* p) {
#ifdef ROADTRAIN_FAST
    return (v8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    v8 r;
    for (int i = 0; i < 8; i++) r[i] = half_to_float(p[i]);
    return r;
#endif
}

// Whole numbers, towards zero.
INLINE i8 whole(v8 x) {
#ifdef ROADTRAIN_NEON
    return {vcvtq_s32_f32(x.low), vcvtq_s32_f32(x.high)};
#else
    return __builtin_convertvector(x, i8);
#endif
}

// exp(x), relative error below 2e-7; 0 below -87.3 (minus infinity included), clamped above 88.3.
INLINE v8 exp8(v8 x) {
    i8 dead = x < splat(-87.3f);
    v8 z = select(dead, splat(0), select(x > splat(88.3f), splat(88.3f), x));
    const v8 magic = splat(12582912.0f);
    v8 n = fma(z, splat(1.44269504f), magic) - magic;
    v8 r = fma(n, splat(-0.693359375f), z);
    r = fma(n, splat(2.12194440e-4f), r);
    v8 p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + splat(1.0f);
    i8 power = (whole(n) + 127) << 23;
    return select(dead, splat(0), p * (v8)power);
}

INLINE v8 tanh8(v8 x) { return splat(1.0f) - splat(2.0f) / (exp8(x + x) + splat(1.0f)); }
