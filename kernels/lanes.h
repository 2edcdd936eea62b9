// Across lanes, in AVX2 and NEON: the largest of 32 numbers, rounding, sums, and narrowing to 16 and 8 bits.
//
//     magnitude(v)               of eight numbers
//     largest_magnitude(x)       of 32 numbers
//     whole_sum(v)               of eight whole numbers
//     nearest(v)                 whole numbers, halves to even
//     put_words(to, a, b)        16 numbers as int16
//     put_bytes(to, a, b, c, d)  32 numbers as int8
//     butterflies<N>(x)          of each two lanes N apart (1, 2 or 4): their sum in the first, their difference in the other
//
// It knows nothing of what the numbers mean.
#pragma once

#include "simd.h"

#ifdef ROADTRAIN_AVX2

INLINE v8 magnitude(v8 x) { return (v8)_mm256_and_ps((__m256)x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }

INLINE float largest_magnitude(const v8* x) {
    const __m256 m = (__m256)larger(larger(magnitude(x[0]), magnitude(x[1])), larger(magnitude(x[2]), magnitude(x[3])));
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

INLINE int32_t whole_sum(i8 lanes) {
    const __m256i v = (__m256i)lanes;
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

INLINE i8 nearest(v8 x) { return (i8)_mm256_cvtps_epi32((__m256)x); }

INLINE void put_words(int16_t* to, i8 a, i8 b) {
    _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)a, (__m256i)b), 0xd8));
}

INLINE void put_bytes(int8_t* to, i8 a, i8 b, i8 c, i8 d) {
    const __m256i low = _mm256_packs_epi32((__m256i)a, (__m256i)b), high = _mm256_packs_epi32((__m256i)c, (__m256i)d);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i*)to, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
}

template <int N> INLINE v8 butterflies(v8 x) {
    const __m256 v = (__m256)x, other = N == 4 ? _mm256_permute2f128_ps(v, v, 1) : _mm256_permute_ps(v, N == 2 ? 0x4e : 0xb1);
    const float a = N & 1 ? -1.0f : 1.0f, b = N & 2 ? -1.0f : 1.0f, c = N & 4 ? -1.0f : 1.0f;
    return (v8)other + x * v8{1, a, b, a * b, c, a * c, b * c, a * b * c};
}

#elif defined(ROADTRAIN_NEON)

INLINE v8 magnitude(v8 x) { return {vabsq_f32(x.low), vabsq_f32(x.high)}; }

INLINE float largest_magnitude(const v8* x) {
    float32x4_t most = vabsq_f32(x[0].low);
    for (int i = 1; i < 8; i++) most = vmaxq_f32(most, vabsq_f32(i % 2 ? x[i / 2].high : x[i / 2].low));
    return vmaxvq_f32(most);
}

INLINE int32_t whole_sum(i8 v) { return vaddvq_s32(v.low + v.high); }

INLINE i8 nearest(v8 x) { return {vcvtnq_s32_f32(x.low), vcvtnq_s32_f32(x.high)}; }

INLINE int16x8_t words(i8 v) { return vqmovn_high_s32(vqmovn_s32(v.low), v.high); }

INLINE void put_words(int16_t* to, i8 a, i8 b) {
    vst1q_s16(to, words(a));
    vst1q_s16(to + 8, words(b));
}

INLINE void put_bytes(int8_t* to, i8 a, i8 b, i8 c, i8 d) {
    vst1q_s8(to, vqmovn_high_s16(vqmovn_s16(words(a)), words(b)));
    vst1q_s8(to + 16, vqmovn_high_s16(vqmovn_s16(words(c)), words(d)));
}

template <int N> INLINE v8 butterflies(v8 x) {
    if constexpr (N == 4) return {x.low + x.high, x.low - x.high};
    const float32x4_t sign = N == 1 ? float32x4_t{1, -1, 1, -1} : float32x4_t{1, 1, -1, -1};
    if constexpr (N == 1) return {vrev64q_f32(x.low) + x.low * sign, vrev64q_f32(x.high) + x.high * sign};
    return {vextq_f32(x.low, x.low, 2) + x.low * sign, vextq_f32(x.high, x.high, 2) + x.high * sign};
}

#endif
