// Rows of activations between two bodies: float32, int8 in groups of 32, int16 in groups of 32, whichever are asked for.
//
// A group holds round(x / scale) with scale = largest / 127 (32767 for int16); sum = scale times the sum of the group's
// whole numbers, which is what the min of a weight format is multiplied by. Rows are quantised each on its own, so
// nothing depends on the batch. It knows nothing of what the rows mean.
#pragma once

#include "simd.h"

extern "C" {

struct rt_rows {
    float* y;  // [T][y_stride], or null
    int64_t y_stride;
    int8_t* q8;  // [T][width], or null
    float *q8_scale, *q8_sum;  // [T][width / 32]
    int16_t* q16;  // [T][width], or null
    float *q16_scale, *q16_sum;  // [T][width / 32]
    int64_t width;  // a multiple of 32 where q8 or q16 are asked for
};

}

#ifdef ROADTRAIN_AVX2

INLINE float largest_magnitude(const float* x) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 m = _mm256_max_ps(_mm256_max_ps(_mm256_and_ps((__m256)load(x), mask), _mm256_and_ps((__m256)load(x + 8), mask)),
                             _mm256_max_ps(_mm256_and_ps((__m256)load(x + 16), mask), _mm256_and_ps((__m256)load(x + 24), mask)));
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

INLINE int32_t whole_sum(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// The 32 numbers at x as group `group` of row `row`, in every form asked for but float32.
INLINE void quantize_group(const rt_rows& to, int64_t row, int64_t group, const float* x) {
    const int64_t at = row * to.width + group * 32, g = row * (to.width / 32) + group;
    const float most = largest_magnitude(x);
    const bool nothing = most < 1e-30f;
    for (int form = 0; form < 2; form++) {
        if (form ? !to.q16 : !to.q8) continue;
        const float range = form ? 32767.0f : 127.0f, scale = nothing ? 0.0f : most / range;
        const v8 inverse = splat(nothing ? 0.0f : range / most);
        __m256i i0 = _mm256_cvtps_epi32((__m256)(load(x) * inverse)), i1 = _mm256_cvtps_epi32((__m256)(load(x + 8) * inverse));
        __m256i i2 = _mm256_cvtps_epi32((__m256)(load(x + 16) * inverse)), i3 = _mm256_cvtps_epi32((__m256)(load(x + 24) * inverse));
        const float sum = scale * (float)whole_sum(_mm256_add_epi32(_mm256_add_epi32(i0, i1), _mm256_add_epi32(i2, i3)));
        __m256i low = _mm256_packs_epi32(i0, i1), high = _mm256_packs_epi32(i2, i3);
        if (form) {
            _mm256_storeu_si256((__m256i*)(to.q16 + at), _mm256_permute4x64_epi64(low, 0xd8));
            _mm256_storeu_si256((__m256i*)(to.q16 + at + 16), _mm256_permute4x64_epi64(high, 0xd8));
            to.q16_scale[g] = scale;
            to.q16_sum[g] = sum;
        } else {
            const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_storeu_si256((__m256i*)(to.q8 + at), _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
            to.q8_scale[g] = scale;
            to.q8_sum[g] = sum;
        }
    }
}

// `count` numbers (a multiple of 32 where quantised forms are asked for) from column `first` on.
INLINE void put_row(const rt_rows& to, int64_t row, int64_t first, int64_t count, const float* x) {
    float* y = to.y ? to.y + row * to.y_stride + first : nullptr;
    if (y && y != x) memcpy(y, x, sizeof(float) * (size_t)count);
    if (to.q8 || to.q16)
        for (int64_t i = 0; i < count; i += 32) quantize_group(to, row, (first + i) / 32, x + i);
}

#endif
