// Tiles of sixteen rows of weights (of floats: thirty-two) times up to nine rows of activations, for AVX-512 with VNNI.
//
// What bounds a tile is the loads of single activations: here one serves sixteen rows of weights, and what is unpacked of them
// nine rows of activations. The sums are those of tiles.h, lane by lane, so the bits are the same. The functions alone are
// compiled for AVX-512: nothing else may differ from what runs elsewhere. It knows nothing of how work is shared out.
#pragma once

#include "operand.h"
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

namespace {

// Rows 0 to 8 behind four registers: x86 addresses reach a row, the next and the one after from one pointer.
template <typename T>
struct Nine {
    const T *low, *middle, *high;
    int64_t bytes;  // from row to row
    Nine(const T* first, int64_t stride)
        : low(first), middle(first + 3 * stride), high(first + 6 * stride), bytes(stride * (int64_t)sizeof(T)) {}
    void advance(int64_t count) { low += count, middle += count, high += count; }
    const T* near(int r) const { return r < 3 ? low : r < 6 ? middle : high; }
    const T* of(int r) const { return (const T*)((const char*)near(r) + r % 3 * bytes); }
};

#define STEP(PLACE, DOT) \
    asm volatile(DOT " %c[o]" PLACE "%{1to16%}, %[w], %[acc]" : [acc] "+v"(acc) : [o] "i"(OFFSET), [p] "r"(p), [s] "r"(x.bytes), [w] "v"(w))

// acc += w times the four bytes OFFSET behind row R's place: u8 x int8, or int16 x int16. One asm with its address spelled out,
// as in dot.h.
template <int R, int OFFSET, typename T>
INLINE void step(__m512i& acc, __m512i w, const Nine<T>& x) {
    const T* p = x.near(R);
    if constexpr (sizeof(T) == 1) {
        if constexpr (R % 3 == 0) STEP("(%[p])", "vpdpbusd");
        else if constexpr (R % 3 == 1) STEP("(%[p],%[s])", "vpdpbusd");
        else STEP("(%[p],%[s],2)", "vpdpbusd");
    } else {
        if constexpr (R % 3 == 0) STEP("(%[p])", "vpdpwssd");
        else if constexpr (R % 3 == 1) STEP("(%[p],%[s])", "vpdpwssd");
        else STEP("(%[p],%[s],2)", "vpdpwssd");
    }
}

template <int OFFSET, typename T, int... R>
INLINE void steps(__m512i* acc, __m512i w, const Nine<T>& x, std::integer_sequence<int, R...>) {
    (step<R, OFFSET>(acc[R], w, x), ...);
}

template <int M, int J>
INLINE void nibbles(__m512i* s, const uint8_t* w, const Nine<int8_t>& x) {
    const __m512i nibble = _mm512_set1_epi8(15), both = _mm512_loadu_si512(w + 64 * J);
    steps<4 * J>(s, _mm512_and_si512(both, nibble), x, std::make_integer_sequence<int, M>());
    steps<16 + 4 * J>(s, _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble), x, std::make_integer_sequence<int, M>());
}

template <int M, int... J>
INLINE void bytes(__m512i* s, const uint8_t* w, const Nine<int16_t>& x, std::integer_sequence<int, J...>) {
    (steps<4 * J>(s, _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(w + 32 * J))), x, std::make_integer_sequence<int, M>()), ...);
}

INLINE __m512 halves(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }

// What a group of a tile brings to all rows, as floats: d and m.
template <int KIND>
void stage(const uint8_t* w, int64_t groups, float* to) {
    constexpr bool LEAST = KIND == RT_Q4_MIN || KIND == RT_Q8_MIN;
    constexpr int64_t HEAD = LEAST ? 64 : 32, SIZE = KIND <= RT_Q4_MIN ? 256 : KIND == RT_Q8_HALF ? 256 : 512;
    for (int64_t g = 0; g < groups; g++, w += HEAD + SIZE, to += STAGED) {
        const __m512 d = halves(w);
        _mm512_storeu_ps(to, d);
        _mm512_storeu_ps(to + 16, LEAST ? halves(w + 32) : _mm512_mul_ps(d, _mm512_set1_ps(-8.0f)));
    }
}

// The products of d q + m with s p over a group, and with the number apart, are d (s sum of q p + rest q there) + m sum.
template <int M, bool MIN, bool FETCH>
NOINLINE void tile_q4(const uint8_t* w, const Operand& x, float* out) {
    __m512 acc[M];
    EACH(r, M) acc[r] = _mm512_setzero_ps();
    constexpr int64_t HEAD = MIN ? 64 : 32;
    const float* staged = x.staged;
    Nine<int8_t> a((const int8_t*)x.x, x.stride);
    Nine<rt_group> about(x.groups, x.stride / 32);
    for (int64_t g = x.count; g > 0; g--, w += HEAD + 256, staged += STAGED) {
        if (FETCH) fetch(w, HEAD + 256);
        __m512i s[M];
        EACH(r, M) s[r] = _mm512_setzero_si512();
        nibbles<M, 0>(s, w + HEAD, a);
        nibbles<M, 1>(s, w + HEAD, a);
        nibbles<M, 2>(s, w + HEAD, a);
        nibbles<M, 3>(s, w + HEAD, a);
        const __m512 d = _mm512_loadu_ps(staged), m = _mm512_loadu_ps(staged + 16);
        EACH(r, M) {
            const rt_group* group = about.of(r);
            const __m512i there = _mm512_srlv_epi32(_mm512_loadu_si512(w + HEAD + 2 * group->offset), _mm512_set1_epi32((int32_t)group->shift));
            __m512 whole = _mm512_mul_ps(_mm512_cvtepi32_ps(s[r]), _mm512_set1_ps(group->scale));
            whole = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_and_si512(there, _mm512_set1_epi32(15))), _mm512_set1_ps(group->rest), whole);
            acc[r] = _mm512_fmadd_ps(whole, d, acc[r]);
            acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(group->sum), m, acc[r]);
        }
        a.advance(32);
        about.advance(1);
    }
    EACH(r, M) _mm512_storeu_ps(out + r * 16, acc[r]);
}

// SIZE weights share a scale: 32 or 16.
template <int M, bool MIN, int SIZE, bool FETCH>
NOINLINE void tile_q8(const uint8_t* w, const Operand& x, float* out) {
    __m512 acc[M];
    EACH(r, M) acc[r] = _mm512_setzero_ps();
    constexpr int64_t HEAD = MIN ? 64 : 32, PER = 32 / SIZE;
    const float* staged = x.staged;
    Nine<int16_t> a((const int16_t*)x.x, x.stride);
    Nine<rt_group> about(x.groups, x.stride / 32);
    for (int64_t g = x.count; g > 0; g--) {
        EACH(part, PER) {
            if (FETCH) fetch(w, HEAD + SIZE * 16);
            __m512i s[M];
            EACH(r, M) s[r] = _mm512_setzero_si512();
            bytes<M>(s, w + HEAD, a, std::make_integer_sequence<int, SIZE / 2>());
            const __m512 d = _mm512_loadu_ps(staged), m = _mm512_loadu_ps(staged + 16);
            EACH(r, M) {
                const __m512 whole = _mm512_mul_ps(_mm512_cvtepi32_ps(s[r]), _mm512_set1_ps(about.of(r)->scale));
                acc[r] = _mm512_fmadd_ps(whole, d, acc[r]);
                if (MIN) acc[r] = _mm512_fmadd_ps(_mm512_set1_ps(about.of(r)->sum), m, acc[r]);
            }
            a.advance(SIZE);
            w += HEAD + SIZE * 16;
            staged += STAGED;
        }
        about.advance(1);
    }
    EACH(r, M) _mm512_storeu_ps(out + r * 16, acc[r]);
}

template <int KIND>
INLINE __m512 sixteen(const uint8_t* w) {
    if (KIND == RT_F32) return _mm512_loadu_ps((const float*)w);
    if (KIND == RT_F16) return halves(w);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)w)), 16));
}

// out += the products: K may come in pieces.
template <int KIND, int M, bool FETCH>
NOINLINE void tile_float(const uint8_t* w, const Operand& x, float* out) {
    __m512 low[M], high[M];
    EACH(r, M) {
        low[r] = _mm512_loadu_ps(out + r * 32);
        high[r] = _mm512_loadu_ps(out + r * 32 + 16);
    }
    constexpr int64_t HALF = KIND == RT_F32 ? 64 : 32;
    const float* a = (const float*)x.x;
    const int64_t stride = x.stride;
    for (int64_t k = 0; k < x.count; k++, w += 2 * HALF) {
        if (FETCH) fetch(w, 2 * HALF);
        const __m512 w0 = sixteen<KIND>(w), w1 = sixteen<KIND>(w + HALF);
        EACH(r, M) {
            const __m512 v = _mm512_set1_ps(a[r * stride + k]);
            low[r] = _mm512_fmadd_ps(v, w0, low[r]);
            high[r] = _mm512_fmadd_ps(v, w1, high[r]);
        }
    }
    EACH(r, M) {
        _mm512_storeu_ps(out + r * 32, low[r]);
        _mm512_storeu_ps(out + r * 32 + 16, high[r]);
    }
}

}  // namespace

#pragma GCC pop_options
