// Products of repacked weights (cpu_fast.h) with rows of activations; every element is one chain over K in rising order,
// whatever the number of rows or threads.
// It knows nothing of layers.
#include "cpu_fast.h"
#include "../parallel.h"
#include "dot.h"
#include <utility>
#include <vector>

#ifdef ROADTRAIN_FAST

namespace {

constexpr int64_t FEW = 12;  // rows up to which weights are worth prefetching: they come from memory
constexpr int64_t MOST_GATED = 36, CACHED = 16384;

#define NOINLINE __attribute__((noinline))
// Unrolled before gcc makes a memset of the first one, which would keep the accumulators in memory.
#define EACH(r, count) _Pragma("GCC unroll 8") for (int r = 0; r < count; r++)

INLINE __m256 halves(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE void fetch(const uint8_t* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char*)p + 1024 + i, _MM_HINT_T0);
}

struct Operand {
    const void* x;
    const rt_group* groups;  // of rows, stride / 32 apart
    const float* staged;     // of the weights
    int64_t stride, count;   // elements from row to row, groups of 32 (of floats: elements) in a row
};

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
constexpr int64_t STAGED = 16;

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

typedef void (*Tile)(const uint8_t*, const Operand&, float*);

#define BY_ROWS(F, ...) {{F<1, __VA_ARGS__, false>, F<2, __VA_ARGS__, false>, F<3, __VA_ARGS__, false>, \
                          F<4, __VA_ARGS__, false>, F<5, __VA_ARGS__, false>, F<6, __VA_ARGS__, false>}, \
                         {F<1, __VA_ARGS__, true>, F<2, __VA_ARGS__, true>, F<3, __VA_ARGS__, true>, \
                          F<4, __VA_ARGS__, true>, F<5, __VA_ARGS__, true>, F<6, __VA_ARGS__, true>}}
#define FLOATS(KIND) {{tile_float<KIND, 1, false>, tile_float<KIND, 2, false>, tile_float<KIND, 3, false>, \
                       tile_float<KIND, 4, false>, tile_float<KIND, 5, false>, tile_float<KIND, 6, false>}, \
                      {tile_float<KIND, 1, true>, tile_float<KIND, 2, true>, tile_float<KIND, 3, true>, \
                       tile_float<KIND, 4, true>, tile_float<KIND, 5, true>, tile_float<KIND, 6, true>}}

// By kind, whether to prefetch, and rows.
constexpr Tile TILES[][2][6] = {
    BY_ROWS(tile_q4, false), BY_ROWS(tile_q4, true), BY_ROWS(tile_q8, false, 32), BY_ROWS(tile_q8, true, 32),
    BY_ROWS(tile_q8, false, 16), FLOATS(RT_F32), FLOATS(RT_F16), FLOATS(RT_BF16)};
constexpr void (*STAGES[])(const uint8_t*, int64_t, float*) = {stage<RT_Q4>, stage<RT_Q4_MIN>, stage<RT_Q8>, stage<RT_Q8_MIN>, stage<RT_Q8_HALF>};

// Room for what is staged of one tile, and the products of one tile with all rows at once.
struct Scratch {
    std::vector<float> staged;
    alignas(32) float results[MOST_ROWS * 16], both[2][MOST_GATED][32];
};

Scratch& scratch() {
    thread_local Scratch own;
    return own;
}

// The products of one tile with rows of x, which is not of floats: results [rows][8].
void multiply_packed(const rt_weight& weight, const uint8_t* w, const rt_rows& x, const Pieces& pieces, bool few, Scratch& own) {
    const int64_t groups = weight.k / 32, parts = weight.kind == RT_Q8_HALF ? 2 * groups : groups, start = pieces.from[0];
    if ((int64_t)own.staged.size() < parts * STAGED) own.staged.resize((size_t)(parts * STAGED));
    STAGES[weight.kind](w, parts, own.staged.data());
    for (int64_t i = 0; i < pieces.count; i++) {
        const int64_t row = pieces.from[i];
        const bool narrow = weight.kind <= RT_Q4_MIN;
        const void* whole = narrow ? (const void*)(x.q8 + row * x.width) : (const void*)(x.q16 + row * x.width);
        const Operand operand{whole, (narrow ? x.q8_groups : x.q16_groups) + row * groups, own.staged.data(), x.width, groups};
        TILES[weight.kind][few][pieces.from[i + 1] - row - 1](w, operand, own.results + (row - start) * 8);
    }
}

// The same for floats: results [rows][16]. K goes by in pieces that stay in the first cache from one six rows to the next.
void multiply_floats(const rt_weight& weight, const uint8_t* w, const rt_rows& x, const Pieces& pieces, float* results) {
    const int64_t start = pieces.from[0], piece = pieces.count > 1 ? CACHED / tile_bytes(weight.kind, 1) : weight.k;
    memset(results, 0, sizeof(float) * (size_t)((pieces.end() - start) * 16));
    for (int64_t k = 0; k < weight.k; k += piece, w += tile_bytes(weight.kind, piece))
        for (int64_t i = 0; i < pieces.count; i++) {
            const int64_t row = pieces.from[i], end = weight.k - k < piece ? weight.k - k : piece;
            const Operand operand{x.y + row * x.y_stride + k, nullptr, nullptr, x.y_stride, end};
            TILES[weight.kind][i == 0][pieces.from[i + 1] - row - 1](w, operand, results + (row - start) * 16);
        }
}

// The products of one tile with rows of x, into own.results [rows][tile rows].
void multiply(const rt_weight& weight, int64_t tile, const rt_rows& x, const Pieces& pieces, bool few, Scratch& own) {
    const uint8_t* w = weight.data + tile * tile_bytes(weight.kind, weight.k);
    if (weight.kind >= RT_F32) multiply_floats(weight, w, x, pieces, own.results);
    else multiply_packed(weight, w, x, pieces, few, own);
}

// Results of one tile into place: eight lanes at a time, the last ones singly.
void place(const rt_fast_matmul_args& a, int64_t tile, int64_t row, int64_t count, const float* results) {
    const int64_t width = tile_rows(a.weight.kind), first = tile * width;
    const int64_t valid = a.weight.n - first < width ? a.weight.n - first : width;
    for (int64_t r = 0; r < count; r++, results += width) {
        float* out = a.out + (row + r) * a.out_stride + first;
        int64_t i = 0;
        for (; i + 8 <= valid; i += 8) {
            v8 y = load(results + i);
            if (a.bias) y = y + load(a.bias + first + i);
            store(out + i, a.add ? load(out + i) + y : y);
        }
        for (; i < valid; i++) {
            float y = a.bias ? results[i] + a.bias[first + i] : results[i];
            out[i] = a.add ? out[i] + y : y;
        }
    }
}

// act(gate) * up for 32 columns of one row, in place of gate.
void gated(float* gate, const float* up, bool gelu) {
    for (int i = 0; i < 32; i += 8) {
        v8 g = load(gate + i);
        if (gelu) {
            v8 inner = splat(0.7978845608f) * fma(splat(0.044715f) * g, g * g, g);
            g = splat(0.5f) * g * (splat(1.0f) + tanh8(inner));
        } else g = g / (splat(1.0f) + exp8(-g));
        store(gate + i, g * load(up + i));
    }
}

// 32 columns of gate and of up for rows of x, into place.
void gate_up(const rt_fast_gate_up_args& a, int64_t chunk, const Pieces& pieces, Scratch& own) {
    const int64_t width = tile_rows(a.gate.kind), per = 32 / width, first = pieces.from[0], count = pieces.end() - first;
    for (int64_t i = 0; i < 2 * per; i++) {
        multiply(i < per ? a.gate : a.up, chunk * per + i % per, a.x, pieces, *a.num_rows <= FEW, own);
        for (int64_t r = 0; r < count; r++)
            for (int64_t at = 0; at < width; at += 8)
                store(own.both[i / per][r] + i % per * width + at, load(own.results + r * width + at));
    }
    for (int64_t r = 0; r < count; r++) {
        gated(own.both[0][r], own.both[1][r], a.gelu);
        put_row(a.out, first + r, chunk * 32, 32, own.both[0][r]);
    }
}

}  // namespace

EXPORT void rt_fast_matmul(const void* args, int tid, int nth) {
    const rt_fast_matmul_args& a = *(const rt_fast_matmul_args*)args;
    const int64_t rows = *a.num_rows, width = tile_rows(a.weight.kind), tiles = (a.weight.n + width - 1) / width;
    const Blocks blocks(rows, rows_at_once(a.weight));
    const bool few = rows <= FEW;
    Scratch& own = scratch();
    Shares shares(blocks.count * tiles, a.counter, few ? 4 : 1, tid, nth);
    for (int64_t unit, end; shares.next(&unit, &end);)
        while (unit < end) {
            const int64_t block = unit / tiles, stop = end < (block + 1) * tiles ? end : (block + 1) * tiles;
            const Pieces pieces(blocks.first(block), blocks.first(block + 1));
            for (; unit < stop; unit++) {
                multiply(a.weight, unit - block * tiles, a.x, pieces, few, own);
                place(a, unit - block * tiles, pieces.from[0], pieces.end() - pieces.from[0], own.results);
            }
        }
}

EXPORT void rt_fast_gate_up(const void* args, int tid, int nth) {
    const rt_fast_gate_up_args& a = *(const rt_fast_gate_up_args*)args;
    const int64_t rows = *a.num_rows, chunks = a.gate.n / 32, wanted = rows_at_once(a.gate);
    const Blocks blocks(rows, wanted < MOST_GATED ? wanted : MOST_GATED);
    Scratch& own = scratch();
    Shares shares(blocks.count * chunks, a.counter, 1, tid, nth);
    for (int64_t unit, end; shares.next(&unit, &end);)
        for (; unit < end; unit++) {
            const int64_t block = unit / chunks;
            gate_up(a, unit - block * chunks, Pieces(blocks.first(block), blocks.first(block + 1)), own);
        }
}

EXPORT void rt_fast_run(rt_body body, const void* args, int num_threads) {
    in_parallel(body, args, num_threads, false);
}

#endif
