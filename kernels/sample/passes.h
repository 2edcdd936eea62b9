// Passes over one row of logits, eight at a time: the highest, the sum of all weights, the likely tokens, the largest k.
//
// A row is cut into blocks whose highest numbers are kept, so that looking for a few tokens skips most blocks. Weights are
// those of reference.py, bit for bit: products and additions only, none fused, and whole numbers, so that any order of
// adding gives the same sums. It knows nothing of parameters or of the draw.
#pragma once

#include "../simd.h"
#include <math.h>
#include <vector>

namespace {

typedef double d4 __attribute__((vector_size(32)));
typedef uint64_t u4 __attribute__((vector_size(32)));

constexpr int64_t BLOCK = 256;           // numbers; a multiple of 8
constexpr float LEAST = -46.0f;          // of y: its weight is 0
constexpr float ALL_THAT_WEIGH = -45.5f; // of y: nothing below it weighs anything

// What one thread works in. It is kept from call to call: fresh pages would cost more than the work done in them.
struct Scratch {
    int64_t blocks = 0, held = 0;
    std::vector<float> edited, tops;  // of tops, eight per block: the highest of each lane
    std::vector<int64_t> masses;      // of each block
    // Members: some of the tokens, in id order, and what is known of each; `order`: some of the members, by size.
    std::vector<int32_t> ids, buckets, order;
    std::vector<float> values;
    std::vector<int64_t> weights;

    void fit(int64_t v) {
        blocks = (v + BLOCK - 1) / BLOCK;
        const size_t most = (size_t)(blocks * BLOCK);
        if (ids.size() >= most) return;
        for (auto* floats : {&edited, &values}) floats->resize(most);
        for (auto* whole : {&ids, &buckets}) whole->resize(most);
        weights.resize(most);
        tops.resize((size_t)blocks * 8);
        masses.resize((size_t)blocks);
    }
};

struct Scale {  // y = (x - highest) * factor, at least LEAST; also where it is not a number
    v8 highest, factor;
    Scale(float h, float f) : highest(splat(h)), factor(splat(f)) {}
    v8 operator()(v8 x) const { return larger((x - highest) * factor, splat(LEAST)); }
};

// Up to eight numbers, -inf after them.
INLINE v8 load_some(const float* p, int64_t n) {
    if (n >= 8) return load(p);
    v8 r = splat(-INFINITY);
    memcpy(&r, p, sizeof(float) * (size_t)n);
    return r;
}

// 2^(y + 44), for LEAST <= y <= 0.
INLINE v8 power(v8 y) {
    const v8 magic = splat(12582912.0f), unit = splat(0x1p44f);  // 1.5 * 2^23 rounds to whole numbers
    const v8 shifted = y + magic, f = y - (shifted - magic);
    // By pairs, in powers of f * f: half as long a chain as one term after the other.
    const v8 square = f * f;
    const v8 first = splat(0.6931471824645996f) * unit * f + unit;
    const v8 second = splat(0.055503323674201965f) * unit * f + splat(0.24022647738456726f) * unit;
    const v8 third = splat(0.0013398875016719103f) * unit * f + splat(0.00961843691766262f) * unit;
    const v8 p = ((splat(0.00015353361959569156f) * unit * square + third) * square + second) * square + first;
    return (v8)((i8)p + ((i8)shifted << 23));
}

constexpr uint64_t ROUNDED = 0x4338000000000000;  // the bits of 1.5 * 2^52: a double of that size holds whole numbers

// Eight powers as whole numbers, each ROUNDED more than it is.
struct Rounded {
    u4 low, high;
    explicit Rounded(v8 power) {
#ifdef ROADTRAIN_AVX2
        const d4 first = (d4)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)power));
        const d4 second = (d4)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)power, 1));
#else
        const d4 first = {power[0], power[1], power[2], power[3]}, second = {power[4], power[5], power[6], power[7]};
#endif
        low = (u4)(first + 0x1.8p52);
        high = (u4)(second + 0x1.8p52);
    }
};

inline int64_t mass_of(const float* x, int64_t n, const Scale& scale) {
    u4 even = {0, 0, 0, 0}, odd = {0, 0, 0, 0};
    for (int64_t i = 0; i < n; i += 8) {
        const Rounded eight(power(scale(load_some(x + i, n - i))));
        even += eight.low;
        odd += eight.high;
    }
    const u4 total = even + odd;
    return (int64_t)(total[0] + total[1] + total[2] + total[3] - ROUNDED * (uint64_t)((n + 7) / 8 * 8));
}

// The sum of all weights of a row, and of each block's.
inline int64_t mass_of_row(Scratch& s, const float* x, int64_t v, const Scale& scale) {
    int64_t total = 0;
    for (int64_t b = 0; b < s.blocks; b++)
        total += s.masses[(size_t)b] = mass_of(x + b * BLOCK, v - b * BLOCK < BLOCK ? v - b * BLOCK : BLOCK, scale);
    return total;
}

// The weights of n numbers; room for eight more is needed behind them.
inline void weigh(const float* x, int64_t n, const Scale& scale, int64_t* weights) {
    for (int64_t i = 0; i < n; i += 8) {
        const Rounded eight(power(scale(load_some(x + i, n - i))));
        const u4 first = eight.low - ROUNDED, second = eight.high - ROUNDED;
        memcpy(weights + i, &first, 32);
        memcpy(weights + i + 4, &second, 32);
    }
}

// The highest number of a row, and of each lane of each block; `broken` if any is NaN or +inf.
inline float highest_of(Scratch& s, const float* x, int64_t v, bool* broken) {
    v8 best = splat(-INFINITY);
    i8 good = ~i8{};
    for (int64_t b = 0; b < s.blocks; b++) {
        v8 top = splat(-INFINITY);
        for (int64_t i = b * BLOCK; i < v && i < (b + 1) * BLOCK; i += 8) {
            const v8 some = load_some(x + i, v - i);
            good &= some < splat(INFINITY);
            top = larger(some, top);
        }
        store(s.tops.data() + b * 8, top);
        best = larger(top, best);
    }
    *broken = bits_of(good) != 255;
    return largest(best);
}

// Calls found(id, value) for tokens of which wanted(eight values) is true, in id order. A block is left out where it is
// false of the highest of every lane, so it must be true of all numbers above any of which it is true.
template <typename Wanted, typename Found>
INLINE void each_wanted(const Scratch& s, const float* x, int64_t v, Wanted wanted, Found found) {
    for (int64_t b = 0; b < s.blocks; b++) {
        if (!bits_of(wanted(load(s.tops.data() + b * 8)))) continue;
        for (int64_t i = b * BLOCK; i < v && i < (b + 1) * BLOCK; i += 8)
            for (int bits = bits_of(wanted(load_some(x + i, v - i))); bits; bits &= bits - 1)
                if (const int64_t id = i + __builtin_ctz((unsigned)bits); id < v) found(id, x[id]);
    }
}

// Makes members of the tokens whose y is at least `floor`.
inline void gather(Scratch& s, const float* x, int64_t v, const Scale& scale, float floor) {
    int64_t held = 0;
    each_wanted(
        s, x, v, [&](v8 some) { return scale(some) >= splat(floor); },
        [&](int64_t id, float value) {
            s.ids[(size_t)held] = (int32_t)id;
            s.values[(size_t)held++] = value;
        });
    s.held = held;
}

// The k largest in falling order, lower ids first among equals; highest_of was called before. k is at most v.
inline void largest_k(const Scratch& s, const float* x, int64_t v, int64_t k, int64_t* ids) {
    int64_t held = 0;
    float bar = -INFINITY;
    each_wanted(
        s, x, v, [&](v8 some) { return held < k ? ~i8{} : some > splat(bar); },
        [&](int64_t id, float value) {
            if (held == k && !(value > bar)) return;
            int64_t at = held < k ? held++ : k - 1;
            for (; at > 0 && value > x[ids[at - 1]]; at--) ids[at] = ids[at - 1];
            ids[at] = id;
            if (held == k) bar = x[ids[k - 1]];
        });
}

}  // namespace
