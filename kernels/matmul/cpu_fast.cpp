// Products of repacked weights (cpu_fast.h) with rows of activations; every element is one chain over K in rising order,
// whatever the number of rows or threads.
//
// Four-bit weights times int8: eight pair products of at most 15 x 127 x 2 fit in 16 bits, and a group of 32 is just eight
// vectors of them, which makes this twice as fast as anything that widens to 32 bits. The three instructions of the inner
// loop are one asm: left apart, gcc 12 hoists the products and spills them (225 instead of 290 GFLOP/s).
// It knows nothing of layers.
#include "cpu_fast.h"
#include "../parallel.h"

#ifdef ROADTRAIN_AVX2

namespace {

constexpr int64_t FEW = 12;  // rows up to which weights are worth prefetching: they come from memory
constexpr int64_t MOST_GATED = 24, CACHED = 16384;

#define NOINLINE __attribute__((noinline))
// Unrolled before gcc makes a memset of the first one, which would keep the accumulators in memory.
#define EACH(r, count) _Pragma("GCC unroll 8") for (int r = 0; r < count; r++)

INLINE __m256 halves(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE void fetch(const uint8_t* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char*)p + 1024 + i, _MM_HINT_T0);
}

struct Operand {
    const void* x;
    const float *scale, *sum;
    int64_t stride, groups;  // elements from row to row, groups of 32 in a row
};

// acc += u8 weights times four int8 at p, in 16 bits.
INLINE void step_u8(__m256i& acc, __m256i weights, const int8_t* p) {
    __m256i t;
    asm volatile("vpbroadcastd %[p], %[t]\n\tvpmaddubsw %[t], %[w], %[t]\n\tvpaddw %[t], %[acc], %[acc]"
                 : [acc] "+x"(acc), [t] "=&x"(t) : [p] "m"(*(const int32_t*)p), [w] "x"(weights));
}

// acc += int16 weights times two int16 at p, in 32 bits.
INLINE void step_i16(__m256i& acc, __m256i weights, const int16_t* p) {
    __m256i t;
    asm volatile("vpbroadcastd %[p], %[t]\n\tvpmaddwd %[t], %[w], %[t]\n\tvpaddd %[t], %[acc], %[acc]"
                 : [acc] "+x"(acc), [t] "=&x"(t) : [p] "m"(*(const int32_t*)p), [w] "x"(weights));
}

template <int M, bool MIN, bool FETCH>
NOINLINE void tile_q4(const uint8_t* w, const Operand& x, float* out) {
    __m256 acc[M];
    EACH(r, M) acc[r] = _mm256_setzero_ps();
    const __m256i ones = _mm256_set1_epi16(1);
    constexpr int64_t HEAD = MIN ? 32 : 16;
    const int8_t* a = (const int8_t*)x.x;
    const float *scale = x.scale, *sum = x.sum;
    const int64_t stride = x.stride, groups = x.groups;
    for (int64_t g = 0; g < groups; g++, w += HEAD + 128, a += 32) {
        if (FETCH) fetch(w, HEAD + 128);
        const __m256i nibble = _mm256_set1_epi8(15);
        __m256i s[M];
        EACH(r, M) s[r] = _mm256_setzero_si256();
        for (int j = 0; j < 4; j++) {
            const __m256i both = _mm256_loadu_si256((const __m256i*)(w + HEAD + 32 * j));
            const __m256i low = _mm256_and_si256(both, nibble), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
            EACH(r, M) step_u8(s[r], low, a + r * stride + 4 * j);
            EACH(r, M) step_u8(s[r], high, a + r * stride + 16 + 4 * j);
        }
        const __m256 d = halves(w), m = MIN ? halves(w + 16) : _mm256_mul_ps(d, _mm256_set1_ps(-8.0f));
        EACH(r, M) {
            const __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(s[r], ones));
            acc[r] = _mm256_fmadd_ps(whole, _mm256_mul_ps(d, _mm256_broadcast_ss(scale + r * groups + g)), acc[r]);
            acc[r] = _mm256_fmadd_ps(m, _mm256_broadcast_ss(sum + r * groups + g), acc[r]);
        }
    }
    EACH(r, M) _mm256_storeu_ps(out + r * 8, acc[r]);
}

// SIZE weights share a scale: 32 or 16.
template <int M, bool MIN, int SIZE, bool FETCH>
NOINLINE void tile_q8(const uint8_t* w, const Operand& x, float* out) {
    __m256 acc[M];
    EACH(r, M) acc[r] = _mm256_setzero_ps();
    constexpr int64_t HEAD = MIN ? 32 : 16, PER = 32 / SIZE;
    const int16_t* a = (const int16_t*)x.x;
    const float *scale = x.scale, *sum = x.sum;
    const int64_t stride = x.stride, groups = x.groups;
    for (int64_t g = 0; g < groups * PER; g++, w += HEAD + SIZE * 8, a += SIZE) {
        if (FETCH) fetch(w, HEAD + SIZE * 8);
        __m256i s[M];
        EACH(r, M) s[r] = _mm256_setzero_si256();
#pragma GCC unroll 16
        for (int j = 0; j < SIZE / 2; j++) {
            const __m256i both = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + HEAD + 16 * j)));
            EACH(r, M) step_i16(s[r], both, a + r * stride + 2 * j);
        }
        const __m256 d = halves(w), m = MIN ? halves(w + 16) : d;
        EACH(r, M) {
            const __m256 product = _mm256_mul_ps(d, _mm256_broadcast_ss(scale + r * groups + g / PER));
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[r]), product, acc[r]);
            if (MIN) acc[r] = _mm256_fmadd_ps(m, _mm256_broadcast_ss(sum + r * groups + g), acc[r]);
        }
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
    for (int64_t k = 0; k < x.groups; k++, w += 2 * HALF) {
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

// The products of one tile with rows of x: results [rows][tile rows]. Floats go through K in pieces that stay in the first
// cache from one six rows to the next.
void multiply(const rt_weight& weight, int64_t tile, const rt_rows& x, const Pieces& pieces, bool few, float* results) {
    const uint8_t* w = weight.data + tile * tile_bytes(weight.kind, weight.k);
    const int64_t width = tile_rows(weight.kind), groups = weight.k / 32, start = pieces.from[0];
    const bool floats = weight.kind >= RT_F32;
    const int64_t piece = floats && pieces.count > 1 ? CACHED / tile_bytes(weight.kind, 1) : weight.k;
    if (floats) memset(results, 0, sizeof(float) * (size_t)((pieces.end() - start) * width));
    for (int64_t k = 0; k < weight.k; k += piece, w += tile_bytes(weight.kind, piece))
        for (int64_t i = 0; i < pieces.count; i++) {
            const int64_t row = pieces.from[i], at = row * groups, end = weight.k - k < piece ? weight.k - k : piece;
            const Operand operand = floats                      ? Operand{x.y + row * x.y_stride + k, nullptr, nullptr, x.y_stride, end}
                                    : weight.kind <= RT_Q4_MIN ? Operand{x.q8 + row * x.width, x.q8_scale + at, x.q8_sum + at, x.width, groups}
                                                               : Operand{x.q16 + row * x.width, x.q16_scale + at, x.q16_sum + at, x.width, groups};
            TILES[weight.kind][few || (floats && i == 0)][pieces.from[i + 1] - row - 1](w, operand, results + (row - start) * width);
        }
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

}  // namespace

EXPORT void rt_fast_matmul(const void* args, int tid, int nth) {
    const rt_fast_matmul_args& a = *(const rt_fast_matmul_args*)args;
    const int64_t rows = *a.num_rows, width = tile_rows(a.weight.kind), tiles = (a.weight.n + width - 1) / width;
    const int64_t from = part(tiles, tid, nth), to = part(tiles, tid + 1, nth), step = rows_at_once(a.weight);
    alignas(32) float results[MOST_ROWS * 16];
    for (int64_t first = 0; first < rows; first += step) {
        const Pieces pieces(first, first + step < rows ? first + step : rows);
        for (int64_t tile = from; tile < to; tile++) {
            multiply(a.weight, tile, a.x, pieces, rows <= FEW, results);
            place(a, tile, first, pieces.end() - first, results);
        }
    }
}

EXPORT void rt_fast_gate_up(const void* args, int tid, int nth) {
    const rt_fast_gate_up_args& a = *(const rt_fast_gate_up_args*)args;
    const int64_t rows = *a.num_rows, width = tile_rows(a.gate.kind), per = 32 / width, chunks = a.gate.n / 32;
    const int64_t from = part(chunks, tid, nth), to = part(chunks, tid + 1, nth), wanted = rows_at_once(a.gate);
    const int64_t step = wanted < MOST_GATED ? wanted : MOST_GATED;
    alignas(32) float results[MOST_GATED * 16], both[2][MOST_GATED][32];
    for (int64_t first = 0; first < rows; first += step) {
        const Pieces pieces(first, first + step < rows ? first + step : rows);
        const int64_t count = pieces.end() - first;
        for (int64_t chunk = from; chunk < to; chunk++) {
            for (int64_t i = 0; i < 2 * per; i++) {
                multiply(i < per ? a.gate : a.up, chunk * per + i % per, a.x, pieces, rows <= FEW, results);
                for (int64_t r = 0; r < count; r++)
                    for (int64_t at = 0; at < width; at += 8)
                        store(both[i / per][r] + i % per * width + at, load(results + r * width + at));
            }
            for (int64_t r = 0; r < count; r++) {
                gated(both[0][r], both[1][r], a.gelu);
                put_row(a.out, first + r, chunk * 32, 32, both[0][r]);
            }
        }
    }
}

EXPORT void rt_fast_run(rt_body body, const void* args, int num_threads) {
    in_parallel(body, args, num_threads, false);
}

#endif
