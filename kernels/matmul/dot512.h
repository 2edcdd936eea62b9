// As dot.h for AVX-512 with VNNI: sixteen rows of weights, side by side, times a few activations of one row. Include it where
// the compiler may use AVX-512.
//
// What bounds a tile is the loads of single activations: here one serves sixteen rows of weights, and what is unpacked of them
// nine rows of activations. The sums are those of dot.h, lane by lane, so the bits are the same. It knows nothing of tiles.
#pragma once

#include "cpu_fast.h"

// Rows 0 to 8 behind four registers: x86 addresses reach a row, the next and the one after from one pointer.
template <typename T>
struct Near {
    const T *low, *middle, *high;
    int64_t bytes;  // from row to row
    Near(const T* first, int64_t stride)
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
INLINE void step(__m512i& acc, __m512i w, const Near<T>& x) {
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

typedef __m512 Floats;
typedef __m512i Wholes;

INLINE Floats zero_floats() { return _mm512_setzero_ps(); }
INLINE Wholes zero_wholes() { return _mm512_setzero_si512(); }
INLINE Wholes group_sum(Wholes acc) { return acc; }
INLINE Floats every(float x) { return _mm512_set1_ps(x); }
INLINE Floats every_at(const float* p) { return _mm512_set1_ps(*p); }
INLINE Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store_floats(float* p, Floats x) { _mm512_storeu_ps(p, x); }
INLINE Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats as_floats(Wholes x) { return _mm512_cvtepi32_ps(x); }
INLINE Floats halves(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
INLINE Floats bfloats(const uint8_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
INLINE Wholes load_nibbles(const uint8_t* p) { return _mm512_loadu_si512(p); }
INLINE Wholes low_nibbles(Wholes both) { return _mm512_and_si512(both, _mm512_set1_epi8(15)); }
INLINE Wholes high_nibbles(Wholes both) { return _mm512_and_si512(_mm512_srli_epi16(both, 4), _mm512_set1_epi8(15)); }
INLINE Wholes widened(const uint8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }

// The weights that meet the number a group keeps apart times that number, of the nibbles at p, plus x. They stay in their place, whose
// value the number is divided by: both are powers of two, so the bits are those of dot.h. Offsets are those of nibbles half as wide.
INLINE Floats plus_apart(const uint8_t* p, const rt_group* group, Floats x) {
    const __m512i there = _mm512_and_si512(_mm512_loadu_si512(p + 2 * group->offset), _mm512_set1_epi32((int32_t)group->bits));
    return fused(_mm512_cvtepu32_ps(there), every(group->rest_there), x);
}
