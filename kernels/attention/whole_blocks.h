// Scores and weighted sums over the blocks of an int8 cache, in whole numbers: products of 16 bits, sums of 32.
//
// A query is rounded to 32,767 steps of its largest number; so are its weights (times the steps of values) in each run of four
// blocks, counted from the first of the sequence, so that small weights far from large ones keep their digits. Sums of whole
// numbers have no order; what is float32 runs over keys in rising order, one chain per lane (keys 8 apart) or column. So the
// queries beside a query make no difference. Words, one per token, give
//
//     score = step (query . numbers) + centre (sum of the query)        out = sum of (weight step) numbers + sum of weight centre
//
// Slots that no query sees have weight 0 and may hold anything. It knows nothing of who shares what.
#pragma once

#include "../kv_write/whole.h"
#include "blocks.h"
#include <utility>

#ifdef ROADTRAIN_FAST

namespace {

constexpr int64_t RUN = CHUNK * BLOCK;  // tokens whose weights are rounded together

// Sixteen numbers as int16.
INLINE __m256i sixteen(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
INLINE __m256i sixteen(const int16_t* p) { return _mm256_loadu_si256((const __m256i*)p); }

// Two numbers, for every lane.
INLINE __m256i pair_at(const int16_t* p) {
    int32_t both;
    memcpy(&both, p, sizeof both);
    return _mm256_set1_epi32(both);
}

// acc += the two products of each lane. One asm, as gcc 12 hoists products that are left apart and spills them.
INLINE void add_products(__m256i& acc, __m256i numbers, __m256i pair) {
#if ROADTRAIN_VNNI == 512
    asm volatile("vpdpwssd %[p], %[n], %[acc]" : [acc] "+x"(acc) : [n] "x"(numbers), [p] "x"(pair));
#elif ROADTRAIN_VNNI == 256
    asm volatile("%{vex%} vpdpwssd %[p], %[n], %[acc]" : [acc] "+x"(acc) : [n] "x"(numbers), [p] "x"(pair));
#elif defined(ROADTRAIN_AVX2)
    __m256i t;
    asm volatile("vpmaddwd %[p], %[n], %[t]\n\tvpaddd %[t], %[acc], %[acc]"
                 : [acc] "+x"(acc), [t] "=&x"(t) : [n] "x"(numbers), [p] "x"(pair));
#else
    const int16x8_t a = (int16x8_t)numbers.low, b = (int16x8_t)numbers.high, x = (int16x8_t)pair.low;
    acc.low += vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(x)), vmull_high_s16(a, x));
    acc.high += vpaddq_s32(vmull_s16(vget_low_s16(b), vget_low_s16(x)), vmull_high_s16(b, x));
#endif
}

// How many registers of sums a strip of R rows has, so that none is spilled: one instruction a product needs no register between.
#ifdef ROADTRAIN_VNNI
template <int R> constexpr int WIDE = R == 1 ? 8 : R <= 3 ? 4 : 2;
#else
template <int R> constexpr int WIDE = R == 1 ? 4 : 2;
#endif

// f(0) to f(count - 1), constants from the start: gcc keeps an array in memory that anything else ever indexes.
template <int... i, typename F>
INLINE void each(std::integer_sequence<int, i...>, F f) { (f(std::integral_constant<int, i>()), ...); }

// acc[r * N + n] += the pair of row r, at x + r * stride, times the numbers at p[n] + at; i: 0 to R N. Pairs of few rows stay in
// registers, else the numbers do.
template <int R, int N, typename T, int... i>
INLINE void add_rows(__m256i* acc, const int16_t* x, int64_t stride, const T* const* p, int64_t at, std::integer_sequence<int, i...>) {
    constexpr bool few = R <= 3;
    (add_products(acc[few ? i % R * N + i / R : i], sixteen(p[few ? i / R : i % N] + at), pair_at(x + (few ? i % R : i / N) * stride)),
     ...);
}

// What a score is made from besides the products: of R queries, the size of a step and the sum.
struct Sizes {
    const float *step, *sum;
};

// Scores of R queries for the 16 keys of each of B blocks. Words of a block at words[b]; blocks `next` are fetched on the way.
template <typename T, int R, int B>
void score_whole(const int16_t* q, Sizes sizes, int64_t d, const T* const* keys, const uint32_t* const* words,
                 const int8_t* const* next, float* out, int64_t stride) {
    constexpr int N = B * 2;
    constexpr std::make_integer_sequence<int, R * N> all;
    __m256i acc[R * N];
    const T* halves[N];
    each(all, [&](auto i) __attribute__((always_inline)) { acc[i] = _mm256_setzero_si256(); });
    EACH(n, N) halves[n] = keys[n / 2] + n % 2 * BLOCK;
    for (int64_t i = 0; i < d; i += 8) {
        EACH(b, B * 2) fetch(next[b / 2] + (i + b % 2 * 4) * BLOCK);
        add_rows<R, N>(acc, q + i, d, halves, i * BLOCK, all);
        add_rows<R, N>(acc, q + i + 2, d, halves, (i + 2) * BLOCK, all);
        add_rows<R, N>(acc, q + i + 4, d, halves, (i + 4) * BLOCK, all);
        add_rows<R, N>(acc, q + i + 6, d, halves, (i + 6) * BLOCK, all);
    }
    each(all, [&](auto i) __attribute__((always_inline)) {
        constexpr int r = i / N, n = i % N;
        const uint32_t* own = words[n / 2] + n % 2 * 8;
        const v8 products = (v8)_mm256_cvtepi32_ps(acc[i]) * splat(sizes.step[r]);
        store(out + r * stride + n * 8, fma(products, steps_of(own), centres_of(own) * splat(sizes.sum[r])));
    });
}

// out[r] += sizes[r] times weights[r] values for 8 W columns of a run of blocks.
template <typename T, int R, int W>
void weigh_whole(const int16_t* weights, const float* sizes, const T* const* values, const int8_t* const* next, int64_t blocks,
                 int64_t d, int64_t column, float* out) {
    constexpr std::make_integer_sequence<int, R * W> all;
    __m256i acc[R * W];
    each(all, [&](auto i) __attribute__((always_inline)) { acc[i] = _mm256_setzero_si256(); });
    for (int64_t b = 0; b < blocks; b++) {
        const T* columns[W];
        EACH(w, W) columns[w] = values[b] + column * 2 + w * BLOCK;
        const int8_t* ahead = next[b] + column * 2;
        for (int64_t j = 0; j < BLOCK; j += 2) {
            EACH(w, W) if (w % 4 == 0) fetch(ahead + j * d + w * BLOCK);
            add_rows<R, W>(acc, weights + b * BLOCK + j, RUN, columns, j * d, all);
        }
    }
    each(all, [&](auto i) __attribute__((always_inline)) {
        float* to = out + i / W * d + column + i % W * 8;
        store(to, fma((v8)_mm256_cvtepi32_ps(acc[i]), splat(sizes[i / W]), load(to)));
    });
}

template <typename T, int R>
void weigh_whole_rows(const int16_t* weights, const float* sizes, const T* const* values, const int8_t* const* next,
                      int64_t blocks, int64_t d, int64_t first, int64_t end, float* out) {
    constexpr int W = WIDE<R>;
    int64_t i = first;
    for (; i + 8 * W <= end; i += 8 * W) weigh_whole<T, R, W>(weights, sizes, values, next, blocks, d, i, out);
    for (; i < end; i += 8) weigh_whole<T, R, 1>(weights, sizes, values, next, blocks, d, i, out);
}

// `count` numbers, a multiple of 8, as whole ones in `steps` steps of the size that is returned.
INLINE float round_row(const float* x, int64_t count, float steps, int16_t* to) {
    v8 most = splat(0);
    for (int64_t i = 0; i < count; i += 8) most = larger(magnitude(load(x + i)), most);
    const float top = largest(most);
    const bool nothing = top < 1e-30f;
    const v8 inverse = splat(nothing ? 0.0f : steps / top);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) put_words(to + i, nearest(load(x + i) * inverse), nearest(load(x + i + 8) * inverse));
    if (i < count) {
        int16_t last[16];
        const i8 numbers = nearest(load(x + i) * inverse);
        put_words(last, numbers, numbers);
        memcpy(to + i, last, 8 * sizeof(int16_t));
    }
    return nothing ? 0.0f : top / steps;
}

template <>
class Blocks<int8_t> {
public:
    void enter(const Frame& f) {
        const int64_t d = f.a.d, queries = f.queries;
        Scratch::grow(f.s.words, queries * (d > RUN ? d : RUN));
        Scratch::grow(f.s.steps, queries);
        Scratch::grow(f.s.masses, queries * 8);
        Scratch::grow(f.s.unpacked, RUN * d);
    }

    // Scores of all queries for the keys of blocks from to to.
    void score(const Frame& f, int64_t from, int64_t to, float* scores) {
        round_queries(f);
        const int64_t pair = f.queries <= 3 && WIDE<3> == 4 ? 2 : 1, d = f.a.d;
        for (int64_t b = from; b < to;) {
            const int64_t some = b + pair <= to ? pair : 1;
            const int8_t *keys[2], *next[2];
            const uint32_t* words[2];
            for (int64_t i = 0; i < some; i++) {
                keys[i] = f.keys<int8_t>(b + i);
                words[i] = words_of(keys[i]);
                next[i] = f.after_keys<int8_t>(b + CHUNK + i);
                fetch(words_of(next[i]));
            }
            float* out = scores + b * BLOCK;
            const int16_t* unpacked[] = {f.s.unpacked.data()};
            if (f.queries > STRIP) unpack(f.s.unpacked.data(), keys[0], BLOCK * d);
            for (int64_t i = 0; i < f.queries; i += STRIP) {
                const int16_t* q = f.s.words.data() + i * d;
                const Sizes sizes = {f.s.steps.data() + i, f.s.masses.data() + i};
                float* rows = out + i * f.stride;
                with_rows(f.queries - i, [&](auto R) {
                    if (f.queries > STRIP) score_whole<int16_t, R, 1>(q, sizes, d, unpacked, words, next, rows, f.stride);
                    else if (R <= 3 && some == 2)
                        score_whole<int8_t, R <= 3 ? R : 1, 2>(q, sizes, d, keys, words, next, rows, f.stride);
                    else score_whole<int8_t, R, 1>(q, sizes, d, keys, words, next, rows, f.stride);
                });
            }
            b += some;
        }
    }

    // The weighted sums of values in the columns first to end: all queries' into f.s.out, which is zero.
    void weigh(const Frame& f, int64_t first, int64_t end, const Task* after) {
        const int64_t d = f.a.d;
        memset(f.s.masses.data(), 0, sizeof(float) * (size_t)(f.queries * 8));
        for (int64_t b = 0, some; b < f.blocks; b += some) {
            const int64_t whole = CHUNK - (f.first_block + b) % CHUNK;
            some = f.blocks - b < whole ? f.blocks - b : whole;
            const int8_t *values[CHUNK], *next[CHUNK];
            const int16_t* unpacked[CHUNK];
            for (int64_t i = 0; i < some; i++) {
                values[i] = f.values<int8_t>(b + i);
                next[i] = f.after_values<int8_t>(b + some + i, i, after);
                fetch(words_of(next[i]));
                unpacked[i] = f.s.unpacked.data() + i * BLOCK * d;
                if (f.queries > STRIP) unpack(f.s.unpacked.data() + i * BLOCK * d, values[i], BLOCK * d);
            }
            round_weights(f, values, b, some);
            for (int64_t i = 0; i < f.queries; i += STRIP) {
                const int16_t* weights = f.s.words.data() + i * RUN;
                const float* sizes = f.s.steps.data() + i;
                float* out = f.s.out.data() + i * d;
                with_rows(f.queries - i, [&](auto R) {
                    if (f.queries > STRIP) weigh_whole_rows<int16_t, R>(weights, sizes, unpacked, next, some, d, first, end, out);
                    else weigh_whole_rows<int8_t, R>(weights, sizes, values, next, some, d, first, end, out);
                });
            }
        }
        for (int64_t i = 0; i < f.queries; i++) {
            const v8 mass = splat(sum(load(f.s.masses.data() + i * 8)));
            for (float *p = f.s.out.data() + i * d + first, *stop = p + (end - first); p < stop; p += 8) store(p, load(p) + mass);
        }
    }

private:
    static void unpack(int16_t* to, const int8_t* block, int64_t count) {
        for (int64_t i = 0; i < count; i += 16) _mm256_storeu_si256((__m256i*)(to + i), sixteen(block + i));
    }

    // f.s.words, steps and masses: the queries in whole numbers, how large a step is, and the sum.
    static void round_queries(const Frame& f) {
        const int64_t d = f.a.d;
        const float steps = d <= 512 ? 32767.0f : 16383.0f;  // d products of it and 127 stay below 2^31
        for (int64_t i = 0; i < f.queries; i++) {
            const float* q = f.s.q.data() + i * d;
            f.s.steps[i] = round_row(q, d, steps, f.s.words.data() + i * d);
            v8 total = splat(0);
            for (int64_t j = 0; j < d; j += 8) total = total + load(q + j);
            f.s.masses[i] = sum(total);
        }
    }

    // f.s.words and steps: weights times the steps of values, in whole numbers; masses grow by weights times centres.
    static void round_weights(const Frame& f, const int8_t* const* values, int64_t b, int64_t some) {
        float step[RUN], centre[RUN], row[RUN];
        for (int64_t i = 0; i < some * BLOCK; i += 8) {
            store(step + i, steps_of(words_of(values[i / BLOCK]) + i % BLOCK));
            store(centre + i, centres_of(words_of(values[i / BLOCK]) + i % BLOCK));
        }
        for (int64_t i = 0; i < f.queries; i++) {
            const float* weights = f.s.scores.data() + i * f.stride + b * BLOCK;
            v8 mass = load(f.s.masses.data() + i * 8);
            for (int64_t j = 0; j < some * BLOCK; j += 8) {
                const v8 weight = load(weights + j);
                const i8 seen = weight > splat(0);
                store(row + j, (v8)(seen & (i8)(weight * load(step + j))));
                mass = fma(weight, (v8)(seen & (i8)load(centre + j)), mass);
            }
            store(f.s.masses.data() + i * 8, mass);
            f.s.steps[i] = round_row(row, some * BLOCK, 32767.0f, f.s.words.data() + i * RUN);
        }
    }
};

}  // namespace

#endif
