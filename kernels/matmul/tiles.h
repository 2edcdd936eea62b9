// Tiles of LANES rows of weights (of floats: twice as many) times up to TILE_COUNT rows of activations.
//
// With AVX-512 these functions alone are compiled for it: nothing else may differ from what runs elsewhere. It knows nothing of
// how work is shared out.
#pragma once

#include "operand.h"

#ifdef ROADTRAIN_AVX512
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#include "dot512.h"
#else
#include "dot.h"
#endif

namespace {

template <int OFFSET, typename T, int... R>
INLINE void steps(Wholes* acc, Wholes w, const Near<T>& x, std::integer_sequence<int, R...>) {
    (step<R, OFFSET>(acc[R], w, x), ...);
}

template <int M, int J>
INLINE void nibbles(Wholes* s, const uint8_t* w, const Near<int8_t>& x) {
    const Wholes both = load_nibbles(w + 4 * LANES * J);
    steps<4 * J>(s, low_nibbles(both), x, std::make_integer_sequence<int, M>());
    steps<16 + 4 * J>(s, high_nibbles(both), x, std::make_integer_sequence<int, M>());
}

template <int M, int... J>
INLINE void bytes(Wholes* s, const uint8_t* w, const Near<int16_t>& x, std::integer_sequence<int, J...>) {
    (steps<4 * J>(s, widened(w + 2 * LANES * J), x, std::make_integer_sequence<int, M>()), ...);
}

// What a group of a tile brings to all rows: d and m, made of halves where they stand. A pass of its own over the tile would read
// its weights from memory before the one that fetches them ahead does.
template <int KIND>
struct Brought {
    static constexpr bool LEAST = KIND == RT_Q4_MIN || KIND == RT_Q8_MIN;
    static constexpr int64_t HEAD = (LEAST ? 4 : 2) * LANES, SIZE = (KIND <= RT_Q4_MIN || KIND == RT_Q8_HALF ? 16 : 32) * LANES;
    Floats d, m;
    explicit Brought(const uint8_t* w) : d(halves(w)), m(LEAST ? halves(w + 2 * LANES) : times(d, every(-8.0f))) {}
};

// The products of d q + m with s p over a group, and with the number apart, are d (s sum of q p + rest q there) + m sum.
template <int M, int KIND, bool FETCH>
NOINLINE void tile_q4(const uint8_t* w, const Operand& x, float* out) {
    Floats acc[M];
    EACH(r, M) acc[r] = zero_floats();
    constexpr int64_t HEAD = Brought<KIND>::HEAD, SIZE = Brought<KIND>::SIZE;
    Near<int8_t> a((const int8_t*)x.x, x.stride);
    Near<rt_group> about(x.groups, x.stride / 32);
    for (int64_t g = x.count; g > 0; g--, w += HEAD + SIZE) {
        if (FETCH) fetch(w, HEAD + SIZE);
        Wholes s[M];
        EACH(r, M) s[r] = zero_wholes();
        nibbles<M, 0>(s, w + HEAD, a);
        nibbles<M, 1>(s, w + HEAD, a);
        nibbles<M, 2>(s, w + HEAD, a);
        nibbles<M, 3>(s, w + HEAD, a);
        const Brought<KIND> brought(w);
        EACH(r, M) {
            const rt_group* group = about.of(r);
            const Floats most = times(as_floats(group_sum(s[r])), every(group->scale));
            acc[r] = fused(plus_apart(w + HEAD, group, most), brought.d, acc[r]);
            acc[r] = fused(every(group->sum), brought.m, acc[r]);
        }
        a.advance(32);
        about.advance(1);
    }
    EACH(r, M) store_floats(out + r * LANES, acc[r]);
}

// A scale is that of 32 weights, or of 16 (RT_Q8_HALF).
template <int M, int KIND, bool FETCH>
NOINLINE void tile_q8(const uint8_t* w, const Operand& x, float* out) {
    Floats acc[M];
    EACH(r, M) acc[r] = zero_floats();
    constexpr int64_t HEAD = Brought<KIND>::HEAD, SIZE = Brought<KIND>::SIZE, COUNT = SIZE / LANES, PER = 32 / COUNT;
    Near<int16_t> a((const int16_t*)x.x, x.stride);
    Near<rt_group> about(x.groups, x.stride / 32);
    for (int64_t g = x.count; g > 0; g--) {
        EACH(part, PER) {
            if (FETCH) fetch(w, HEAD + SIZE);
            Wholes s[M];
            EACH(r, M) s[r] = zero_wholes();
            bytes<M>(s, w + HEAD, a, std::make_integer_sequence<int, COUNT / 2>());
            const Brought<KIND> brought(w);
            EACH(r, M) {
                acc[r] = fused(times(as_floats(s[r]), every(about.of(r)->scale)), brought.d, acc[r]);
                if (KIND == RT_Q8_MIN) acc[r] = fused(every(about.of(r)->sum), brought.m, acc[r]);
            }
            a.advance(COUNT);
            w += HEAD + SIZE;
        }
        about.advance(1);
    }
    EACH(r, M) store_floats(out + r * LANES, acc[r]);
}

template <int KIND>
INLINE Floats numbers(const uint8_t* w) {
    return KIND == RT_F32 ? load_floats((const float*)w) : KIND == RT_F16 ? halves(w) : bfloats(w);
}

// out += the products: K may come in pieces.
template <int KIND, int M, bool FETCH>
NOINLINE void tile_float(const uint8_t* w, const Operand& x, float* out) {
    Floats low[M], high[M];
    EACH(r, M) {
        low[r] = load_floats(out + r * 2 * LANES);
        high[r] = load_floats(out + r * 2 * LANES + LANES);
    }
    constexpr int64_t HALF = (KIND == RT_F32 ? 4 : 2) * LANES, LINE = 64;
    const float* a = (const float*)x.x;
    const int64_t stride = x.stride;
    for (int64_t k = 0; k < x.count; k++, w += 2 * HALF) {
        if (FETCH && k * 2 * HALF % LINE == 0) fetch(w, 2 * HALF);
        const Floats w0 = numbers<KIND>(w), w1 = numbers<KIND>(w + HALF);
        EACH(r, M) {
            const Floats v = every_at(a + r * stride + k);
            low[r] = fused(v, w0, low[r]);
            high[r] = fused(v, w1, high[r]);
        }
    }
    EACH(r, M) {
        store_floats(out + r * 2 * LANES, low[r]);
        store_floats(out + r * 2 * LANES + LANES, high[r]);
    }
}

}  // namespace

#ifdef ROADTRAIN_AVX512
#pragma GCC pop_options
#endif
