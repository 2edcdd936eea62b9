// Tiles of eight rows of weights (of floats: sixteen) times up to six rows of activations, for AVX2 and NEON.
//
// It knows nothing of how work is shared out; tiles512.h has the same for vectors twice as wide.
#pragma once

#include "dot.h"
#include "operand.h"

namespace {

INLINE __m256 halves(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }

template <int OFFSET, typename T, int... R>
INLINE void steps(__m256i* acc, __m256i w, const Six<T>& x, std::integer_sequence<int, R...>) {
    (step<R, OFFSET>(acc[R], w, x), ...);
}

template <int M, int J>
INLINE void nibbles(__m256i* s, const uint8_t* w, const Six<int8_t>& x) {
    const __m256i nibble = _mm256_set1_epi8(15), both = _mm256_loadu_si256((const __m256i*)(w + 32 * J));
    steps<4 * J>(s, _mm256_and_si256(both, nibble), x, std::make_integer_sequence<int, M>());
    steps<16 + 4 * J>(s, _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), x, std::make_integer_sequence<int, M>());
}

template <int M, int SIZE, int... J>
INLINE void bytes(__m256i* s, const uint8_t* w, const Six<int16_t>& x, std::integer_sequence<int, J...>) {
    (steps<4 * J>(s, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + 16 * J))), x, std::make_integer_sequence<int, M>()), ...);
}

// What a group of a tile brings to all rows, as floats: d and m.

template <int KIND>
void stage(const uint8_t* w, int64_t groups, float* to) {
    constexpr bool LEAST = KIND == RT_Q4_MIN || KIND == RT_Q8_MIN;
    constexpr int64_t HEAD = LEAST ? 32 : 16, SIZE = KIND <= RT_Q4_MIN ? 128 : KIND == RT_Q8_HALF ? 128 : 256;
    for (int64_t g = 0; g < groups; g++, w += HEAD + SIZE, to += STAGED) {
        const __m256 d = halves(w);
        _mm256_storeu_ps(to, d);
        _mm256_storeu_ps(to + 8, LEAST ? halves(w + 16) : _mm256_mul_ps(d, _mm256_set1_ps(-8.0f)));
    }
}

// The products of d q + m with s p over a group, and with the number apart, are d (s sum of q p + rest q there) + m sum.
template <int M, bool MIN, bool FETCH>
NOINLINE void tile_q4(const uint8_t* w, const Operand& x, float* out) {
    __m256 acc[M];
    EACH(r, M) acc[r] = _mm256_setzero_ps();
    constexpr int64_t HEAD = MIN ? 32 : 16;
    const float* staged = x.staged;
    Six<int8_t> a((const int8_t*)x.x, x.stride);
    Six<rt_group> about(x.groups, x.stride / 32);
    for (int64_t g = x.count; g > 0; g--, w += HEAD + 128, staged += STAGED) {
        if (FETCH) fetch(w, HEAD + 128);
        __m256i s[M];
        EACH(r, M) s[r] = _mm256_setzero_si256();
        nibbles<M, 0>(s, w + HEAD, a);
        nibbles<M, 1>(s, w + HEAD, a);
        nibbles<M, 2>(s, w + HEAD, a);
        nibbles<M, 3>(s, w + HEAD, a);
        EACH(r, M) {
            const rt_group* group = about.of(r);
            const __m256i there = _mm256_srl_epi32(_mm256_loadu_si256((const __m256i*)(w + HEAD + group->offset)),
                                                   _mm_loadu_si128((const __m128i*)&group->shift));
            __m256 whole = _mm256_mul_ps(_mm256_cvtepi32_ps(group_sum(s[r])), _mm256_set1_ps(group->scale));
            whole = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_and_si256(there, _mm256_set1_epi32(15))), _mm256_set1_ps(group->rest), whole);
            acc[r] = _mm256_fmadd_ps(whole, _mm256_loadu_ps(staged), acc[r]);
            acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(group->sum), _mm256_loadu_ps(staged + 8), acc[r]);
        }
        a.advance(32);
        about.advance(1);
    }
    EACH(r, M) _mm256_storeu_ps(out + r * 8, acc[r]);
}

// SIZE weights share a scale: 32 or 16.
template <int M, bool MIN, int SIZE, bool FETCH>
NOINLINE void tile_q8(const uint8_t* w, const Operand& x, float* out) {
    __m256 acc[M];
    EACH(r, M) acc[r] = _mm256_setzero_ps();
    constexpr int64_t HEAD = MIN ? 32 : 16, PER = 32 / SIZE;
    const float* staged = x.staged;
    Six<int16_t> a((const int16_t*)x.x, x.stride);
    Six<rt_group> about(x.groups, x.stride / 32);
    for (int64_t g = x.count; g > 0; g--) {
        EACH(part, PER) {
            if (FETCH) fetch(w, HEAD + SIZE * 8);
            __m256i s[M];
            EACH(r, M) s[r] = _mm256_setzero_si256();
            bytes<M, SIZE>(s, w + HEAD, a, std::make_integer_sequence<int, SIZE / 2>());
            EACH(r, M) {
                const __m256 whole = _mm256_mul_ps(_mm256_cvtepi32_ps(s[r]), _mm256_set1_ps(about.of(r)->scale));
                acc[r] = _mm256_fmadd_ps(whole, _mm256_loadu_ps(staged), acc[r]);
                if (MIN) acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(about.of(r)->sum), _mm256_loadu_ps(staged + 8), acc[r]);
            }
            a.advance(SIZE);
            w += HEAD + SIZE * 8;
            staged += STAGED;
        }
        about.advance(1);
    }
    EACH(r, M) _mm256_storeu_ps(out + r * 8, acc[r]);
}

template <int KIND>
INLINE __m256 eight(const uint8_t* w) {
    if (KIND == RT_F32) return _mm256_loadu_ps((const float*)w);
    if (KIND == RT_F16) return halves(w);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)w)), 16));
}

// out += the products: K may come in pieces.
template <int KIND, int M, bool FETCH>
NOINLINE void tile_float(const uint8_t* w, const Operand& x, float* out) {
    __m256 low[M], high[M];
    EACH(r, M) {
        low[r] = _mm256_loadu_ps(out + r * 16);
        high[r] = _mm256_loadu_ps(out + r * 16 + 8);
    }
    constexpr int64_t HALF = KIND == RT_F32 ? 32 : 16;
    const float* a = (const float*)x.x;
    const int64_t stride = x.stride;
    for (int64_t k = 0; k < x.count; k++, w += 2 * HALF) {
        if (FETCH && (KIND == RT_F32 || k % 2 == 0)) fetch(w, 64);
        const __m256 w0 = eight<KIND>(w), w1 = eight<KIND>(w + HALF);
        EACH(r, M) {
            const __m256 v = _mm256_broadcast_ss(a + r * stride + k);
            low[r] = _mm256_fmadd_ps(v, w0, low[r]);
            high[r] = _mm256_fmadd_ps(v, w1, high[r]);
        }
    }
    EACH(r, M) {
        _mm256_storeu_ps(out + r * 16, low[r]);
        _mm256_storeu_ps(out + r * 16 + 8, high[r]);
    }
}

}  // namespace
