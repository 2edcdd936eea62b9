// Scores and weighted sums over the blocks of a float32 or float16 cache.
//
// Every sum runs over keys in rising order, one chain per lane (keys 8 apart) or column. Where more than six queries share a
// block, it is first unpacked to float32. While a block is worked on, the one after is fetched. It knows nothing of who shares what.
#pragma once

#include "tasks.h"
#include <utility>

#ifdef ROADTRAIN_FAST

#define EACH(r, count) _Pragma("GCC unroll 12") for (int r = 0; r < count; r++)

INLINE __m256 eight(const float* p) { return _mm256_loadu_ps(p); }
INLINE __m256 eight(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE void fetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

namespace {

// Raw scores of R queries against the 16 keys of each of B blocks. Blocks `next` are fetched on the way.
template <typename T, int R, int B>
void score(const float* q, int64_t d, const T* const* keys, const T* const* next, float* out, int64_t stride) {
    __m256 acc[R * B * 2];
    EACH(r, R * B * 2) acc[r] = _mm256_setzero_ps();
    for (int64_t i = 0; i < d; i++) {
        EACH(b, B) {
            if (i % (4 / sizeof(T)) == 0) fetch(next[b] + i * BLOCK);
            const __m256 k0 = eight(keys[b] + i * BLOCK), k1 = eight(keys[b] + i * BLOCK + 8);
            EACH(r, R) {
                const __m256 a = _mm256_broadcast_ss(q + r * d + i);
                acc[(r * B + b) * 2] = _mm256_fmadd_ps(a, k0, acc[(r * B + b) * 2]);
                acc[(r * B + b) * 2 + 1] = _mm256_fmadd_ps(a, k1, acc[(r * B + b) * 2 + 1]);
            }
        }
    }
    EACH(r, R) EACH(b, B) EACH(h, 2) _mm256_storeu_ps(out + r * stride + b * BLOCK + h * 8, acc[(r * B + b) * 2 + h]);
}

// out[r] += weights[r][16 b + j] values[b][j] for 8 W columns, blocks from first to last and slots up to `slots`.
template <typename T, int R, int W>
void weigh(const float* weights, int64_t stride, const T* const* values, const T* const* next, int64_t blocks, int64_t slots,
           int64_t d, float* out) {
    __m256 acc[R * W];
    EACH(r, R) EACH(w, W) acc[r * W + w] = _mm256_loadu_ps(out + r * d + w * 8);
    for (int64_t b = 0; b < blocks; b++) {
        const T *v = values[b], *ahead = next[b];
        const float* p = weights + b * BLOCK;
        const int64_t end = slots - b * BLOCK < BLOCK ? slots - b * BLOCK : BLOCK;
        for (int64_t j = 0; j < end; j++, v += d, ahead += d) {
            __m256 column[W];
            EACH(w, W) {
                if (w % (8 / sizeof(T)) == 0) fetch(ahead + w * 8);
                column[w] = eight(v + w * 8);
            }
            EACH(r, R) {
                const __m256 a = _mm256_broadcast_ss(p + r * stride + j);
                EACH(w, W) acc[r * W + w] = _mm256_fmadd_ps(a, column[w], acc[r * W + w]);
            }
        }
    }
    EACH(r, R) EACH(w, W) _mm256_storeu_ps(out + r * d + w * 8, acc[r * W + w]);
}

template <typename T, int R>
void weigh_rows(const float* weights, int64_t stride, const T* const* values, const T* const* next, int64_t blocks,
                int64_t slots, int64_t d, int64_t i, int64_t end, float* out) {
    constexpr int W = R == 1 ? 8 : R <= 3 ? 4 : 2;
    const T *v[CHUNK], *n[CHUNK];
    auto at = [&](int64_t column) {
        for (int64_t b = 0; b < blocks; b++) {
            v[b] = values[b] + column;
            n[b] = next[b] + column;
        }
    };
    for (; i + 8 * W <= end; i += 8 * W) at(i), weigh<T, R, W>(weights, stride, v, n, blocks, slots, d, out + i);
    for (; i < end; i += 8) at(i), weigh<T, R, 1>(weights, stride, v, n, blocks, slots, d, out + i);
}

// Calls run with the number of rows of a strip, at most six.
template <typename F>
INLINE void with_rows(int64_t rows, F run) {
    switch (rows) {
        case 1: return run(std::integral_constant<int, 1>());
        case 2: return run(std::integral_constant<int, 2>());
        case 3: return run(std::integral_constant<int, 3>());
        case 4: return run(std::integral_constant<int, 4>());
        case 5: return run(std::integral_constant<int, 5>());
        default: return run(std::integral_constant<int, 6>());
    }
}

template <typename T, int B>
void score_strip(int64_t rows, const float* q, int64_t d, const T* const* keys, const T* const* next, float* out, int64_t stride) {
    with_rows(rows, [&](auto R) { score<T, R, R <= 3 ? B : 1>(q, d, keys, next, out, stride); });
}

template <typename T>
void weigh_strip(int64_t rows, const float* weights, int64_t stride, const T* const* values, const T* const* next, int64_t blocks,
                 int64_t slots, int64_t d, int64_t first, int64_t end, float* out) {
    with_rows(rows, [&](auto R) { weigh_rows<T, R>(weights, stride, values, next, blocks, slots, d, first, end, out); });
}

template <typename T>
class Blocks {
public:
    void enter(const Frame& f) { Scratch::grow(f.s.block, BLOCK * f.a.d); }

    // Scores of all queries for the keys of blocks from to to.
    void score(const Frame& f, int64_t from, int64_t to, float* scores) {
        const int64_t pair = f.queries <= 3 ? 2 : 1, d = f.a.d;
        for (int64_t b = from; b < to;) {
            const int64_t some = b + pair <= to ? pair : 1;
            const T *keys[2], *next[2];
            for (int64_t i = 0; i < some; i++) {
                keys[i] = f.keys<T>(b + i);
                next[i] = f.after_keys<T>(b + some + i);
            }
            float* out = scores + b * BLOCK;
            if (f.queries > STRIP) {
                const float *whole = unpacked(f, keys[0]), *nothing = whole;
                for (int64_t i = 0; i < f.queries; i += STRIP)
                    score_strip<float, 1>(f.queries - i, f.s.q.data() + i * d, d, &whole, &nothing, out + i * f.stride, f.stride);
            } else if (some == 2) score_strip<T, 2>(f.queries, f.s.q.data(), d, keys, next, out, f.stride);
            else score_strip<T, 1>(f.queries, f.s.q.data(), d, keys, next, out, f.stride);
            b += some;
        }
    }

    // The weighted sums of values in the columns first to end: all queries' into f.s.out, which is zero.
    void weigh(const Frame& f, int64_t first, int64_t end, const Task* after) {
        const int64_t chunk = f.queries > STRIP ? 1 : CHUNK, slots = f.last - f.first_block * BLOCK + 1, d = f.a.d;
        for (int64_t b = 0; b < f.blocks; b += chunk) {
            const int64_t some = f.blocks - b < chunk ? f.blocks - b : chunk;
            const T *values[CHUNK], *next[CHUNK];
            for (int64_t i = 0; i < some; i++) {
                values[i] = f.values<T>(b + i);
                next[i] = f.after_values<T>(b + some + i, i, after);
            }
            const float* weights = f.s.scores.data() + b * BLOCK;
            if (f.queries > STRIP) {
                const float *whole = unpacked(f, values[0]), *nothing = whole;
                for (int64_t i = 0; i < f.queries; i += STRIP)
                    weigh_strip<float>(f.queries - i, weights + i * f.stride, f.stride, &whole, &nothing, 1, slots - b * BLOCK, d,
                                       first, end, f.s.out.data() + i * d);
            } else weigh_strip<T>(f.queries, weights, f.stride, values, next, some, slots - b * BLOCK, d, first, end, f.s.out.data());
        }
    }

private:
    static const float* unpacked(const Frame& f, const T* block) {
        float* to = f.s.block.data();
        for (int64_t i = 0, count = BLOCK * f.a.d; i < count; i += 16) {
            const __m256 x0 = eight(block + i), x1 = eight(block + i + 8);
            _mm256_storeu_ps(to + i, x0);
            _mm256_storeu_ps(to + i + 8, x1);
        }
        return to;
    }
};

}  // namespace

#endif
