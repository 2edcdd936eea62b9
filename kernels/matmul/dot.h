// What tiles are made of: the steps of products of whole numbers, eight rows of weights, side by side, times a few activations of
// one row; and below them vectors of eight numbers.
//
// With VNNI a step is one instruction and sums are 32 bits wide from the start. Without, four-bit weights times int8 are
// summed in 16 bits: eight pair products of at most 15 x 127 x 2 fit, and a group of 32 is just eight of them, which makes
// this twice as fast as anything that widens. Both give the same whole numbers, and so the same bits. A step is one asm with
// its address spelled out: gcc 12 hoists products that are left apart and spills them (225 instead of 290 GFLOP/s), and
// computes and spills an address for every step. ARM's dot product is like VNNI's. dot512.h has the same for sixteen rows. It knows
// nothing of tiles.
#pragma once

#include "cpu_fast.h"

#ifdef ROADTRAIN_AVX2

// Rows 0 to 5 behind three registers: x86 addresses reach a row, the next and the one after from one pointer.
template <typename T>
struct Near {
    const T *low, *high;
    int64_t bytes;  // from row to row
    Near(const T* first, int64_t stride) : low(first), high(first + 3 * stride), bytes(stride * (int64_t)sizeof(T)) {}
    void advance(int64_t count) { low += count, high += count; }
    const T* of(int r) const { return (const T*)((const char*)(r < 3 ? low : high) + r % 3 * bytes); }
};

#if ROADTRAIN_VNNI == 256
#define STEP(PLACE, MULTIPLY, ADD, DOT) \
    asm volatile("vpbroadcastd %c[o]" PLACE ", %[t]\n\t%{vex%} " DOT " %[t], %[w], %[acc]" \
                 : [acc] "+x"(acc), [t] "=&x"(t) : [o] "i"(OFFSET), [p] "r"(p), [s] "r"(x.bytes), [w] "x"(w))
#else
#define STEP(PLACE, MULTIPLY, ADD, DOT) \
    asm volatile("vpbroadcastd %c[o]" PLACE ", %[t]\n\t" MULTIPLY " %[t], %[w], %[t]\n\t" ADD " %[t], %[acc], %[acc]" \
                 : [acc] "+x"(acc), [t] "=&x"(t) : [o] "i"(OFFSET), [p] "r"(p), [s] "r"(x.bytes), [w] "x"(w))
#endif

// acc += w times the four bytes OFFSET behind row R's place: u8 x int8, or int16 x int16.
template <int R, int OFFSET, typename T>
INLINE void step(__m256i& acc, __m256i w, const Near<T>& x) {
    [[maybe_unused]] __m256i t;
    const T* p = R < 3 ? x.low : x.high;
    if constexpr (sizeof(T) == 1) {
        if constexpr (R % 3 == 0) STEP("(%[p])", "vpmaddubsw", "vpaddw", "vpdpbusd");
        else if constexpr (R % 3 == 1) STEP("(%[p],%[s])", "vpmaddubsw", "vpaddw", "vpdpbusd");
        else STEP("(%[p],%[s],2)", "vpmaddubsw", "vpaddw", "vpdpbusd");
    } else {
        if constexpr (R % 3 == 0) STEP("(%[p])", "vpmaddwd", "vpaddd", "vpdpwssd");
        else if constexpr (R % 3 == 1) STEP("(%[p],%[s])", "vpmaddwd", "vpaddd", "vpdpwssd");
        else STEP("(%[p],%[s],2)", "vpmaddwd", "vpaddd", "vpdpwssd");
    }
}

// The int32 sums of eight rows after eight steps of u8 x int8.
INLINE __m256i group_sum(__m256i acc) {
#ifdef ROADTRAIN_VNNI
    return acc;
#else
    return _mm256_madd_epi16(acc, _mm256_set1_epi16(1));
#endif
}

#elif defined(ROADTRAIN_NEON)

// Rows 0 to 5, a register each: ARM has twice as many, and its addresses reach no second row.
template <typename T>
struct Near {
    const T* row[6];
    Near(const T* first, int64_t stride) {
#pragma GCC unroll 6
        for (int r = 0; r < 6; r++) row[r] = first + r * stride;
    }
    void advance(int64_t count) {
#pragma GCC unroll 6
        for (int r = 0; r < 6; r++) row[r] += count;
    }
    const T* of(int r) const { return row[r]; }
};

// Nibbles are the same numbers with a sign, for which every ARM with dot products has one.
template <int R, int OFFSET>
INLINE void step(i8& acc, i8 w, const Near<int8_t>& x) {
    int8x16_t t;
    asm volatile("ldr %s[t], %[p]\n\tsdot %[low].4s, %[w0].16b, %[t].4b[0]\n\tsdot %[high].4s, %[w1].16b, %[t].4b[0]"
                 : [low] "+w"(acc.low), [high] "+w"(acc.high), [t] "=&w"(t)
                 : [p] "m"(*(const int32_t*)(x.row[R] + OFFSET)), [w0] "w"(w.low), [w1] "w"(w.high));
}

template <int R, int OFFSET>
INLINE void step(i8& acc, i8 w, const Near<int16_t>& x) {
    int32x4_t t, a, b;
    asm volatile("ldr %s[t], %[p]\n\tdup %[t].4s, %[t].s[0]\n\t"
                 "smull %[a].4s, %[w0].4h, %[t].4h\n\tsmull2 %[b].4s, %[w0].8h, %[t].8h\n\t"
                 "addp %[a].4s, %[a].4s, %[b].4s\n\tadd %[low].4s, %[low].4s, %[a].4s\n\t"
                 "smull %[a].4s, %[w1].4h, %[t].4h\n\tsmull2 %[b].4s, %[w1].8h, %[t].8h\n\t"
                 "addp %[a].4s, %[a].4s, %[b].4s\n\tadd %[high].4s, %[high].4s, %[a].4s"
                 : [low] "+w"(acc.low), [high] "+w"(acc.high), [t] "=&w"(t), [a] "=&w"(a), [b] "=&w"(b)
                 : [p] "m"(*(const int32_t*)(x.row[R] + OFFSET / 2)), [w0] "w"(w.low), [w1] "w"(w.high));
}

INLINE i8 group_sum(i8 acc) { return acc; }

#endif

#ifdef ROADTRAIN_FAST

typedef __m256 Floats;
typedef __m256i Wholes;

INLINE Floats zero_floats() { return _mm256_setzero_ps(); }
INLINE Wholes zero_wholes() { return _mm256_setzero_si256(); }
INLINE Floats every(float x) { return _mm256_set1_ps(x); }
INLINE Floats every_at(const float* p) { return _mm256_broadcast_ss(p); }
INLINE Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store_floats(float* p, Floats x) { _mm256_storeu_ps(p, x); }
INLINE Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Floats as_floats(Wholes x) { return _mm256_cvtepi32_ps(x); }
INLINE Floats halves(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE Floats bfloats(const uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
INLINE Wholes load_nibbles(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
INLINE Wholes low_nibbles(Wholes both) { return _mm256_and_si256(both, _mm256_set1_epi8(15)); }
INLINE Wholes high_nibbles(Wholes both) { return _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15)); }
INLINE Wholes widened(const uint8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }

// The weights that meet the number a group keeps apart times that number, of the nibbles at p, plus x.
INLINE Floats plus_apart(const uint8_t* p, const rt_group* group, Floats x) {
    const __m256i there = _mm256_srl_epi32(_mm256_loadu_si256((const __m256i*)(p + group->offset)), _mm_loadu_si128((const __m128i*)&group->shift));
    return fused(as_floats(_mm256_and_si256(there, _mm256_set1_epi32(15))), every(group->rest), x);
}

#endif
