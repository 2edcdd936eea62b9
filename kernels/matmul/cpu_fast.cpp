// Products of repacked weights (cpu_fast.h) with rows of activations; every element is one chain over K in rising order,
// whatever the number of rows or threads.
// It knows nothing of layers.
#include "cpu_fast.h"
#include "../parallel.h"
#include <array>

#ifdef ROADTRAIN_FAST

#include "tiles.h"

namespace {

constexpr int64_t FEW = 12;  // rows up to which a tile is done so soon that threads take several at once
constexpr int64_t MOST_GATED = 36, CACHED = 16384;

// The tile of a kind for M rows; FETCH: weights come from memory, as they do for the first rows that are multiplied with them.
template <int KIND, int M, bool FETCH>
constexpr Tile tile_of() {
    if constexpr (KIND <= RT_Q4_MIN) return tile_q4<M, KIND, FETCH>;
    else if constexpr (KIND <= RT_Q8_HALF) return tile_q8<M, KIND, FETCH>;
    else return tile_float<KIND, M, FETCH>;
}

template <int KIND, int... M>
constexpr std::array<std::array<Tile, TILE_COUNT>, 2> by_rows(std::integer_sequence<int, M...>) {
    return {{{tile_of<KIND, M + 1, false>()...}, {tile_of<KIND, M + 1, true>()...}}};
}

template <int... KIND>
constexpr std::array<std::array<std::array<Tile, TILE_COUNT>, 2>, sizeof...(KIND)> by_kind(std::integer_sequence<int, KIND...>) {
    return {{by_rows<KIND>(std::make_integer_sequence<int, TILE_COUNT>())...}};
}

// By kind, whether to prefetch, and rows.
constexpr auto TILES = by_kind(std::make_integer_sequence<int, RT_BF16 + 1>());
// Room for the products of one tile with all rows at once.
struct Scratch {
    alignas(32) float results[MOST_ROWS * 2 * LANES], both[2][MOST_GATED][32];
};

Scratch& scratch() {
    thread_local Scratch own;
    return own;
}

// The products of one tile with rows of x, which is not of floats: results [rows][LANES].
void multiply_packed(const rt_weight& weight, const uint8_t* w, const rt_rows& x, const Pieces& pieces, Scratch& own) {
    const int64_t groups = weight.k / 32, start = pieces.from[0];
    for (int64_t i = 0; i < pieces.count; i++) {
        const int64_t row = pieces.from[i];
        const bool narrow = weight.kind <= RT_Q4_MIN;
        const void* whole = narrow ? (const void*)(x.q8 + row * x.width) : (const void*)(x.q16 + row * x.width);
        const Operand operand{whole, (narrow ? x.q8_groups : x.q16_groups) + row * groups, x.width, groups};
        TILES[weight.kind][i == 0][pieces.from[i + 1] - row - 1](w, operand, own.results + (row - start) * LANES);
    }
}

// The same for floats: results [rows][2 LANES]. K goes by in pieces that stay in the first cache from one few rows to the next.
void multiply_floats(const rt_weight& weight, const uint8_t* w, const rt_rows& x, const Pieces& pieces, float* results) {
    const int64_t start = pieces.from[0], piece = pieces.count > 1 ? CACHED / tile_bytes(weight.kind, 1) : weight.k;
    memset(results, 0, sizeof(float) * (size_t)((pieces.end() - start) * 2 * LANES));
    for (int64_t k = 0; k < weight.k; k += piece, w += tile_bytes(weight.kind, piece))
        for (int64_t i = 0; i < pieces.count; i++) {
            const int64_t row = pieces.from[i], end = weight.k - k < piece ? weight.k - k : piece;
            const Operand operand{x.y + row * x.y_stride + k, nullptr, x.y_stride, end};
            TILES[weight.kind][i == 0][pieces.from[i + 1] - row - 1](w, operand, results + (row - start) * 2 * LANES);
        }
}

// The products of one tile with rows of x, into own.results [rows][tile rows].
void multiply(const rt_weight& weight, int64_t tile, const rt_rows& x, const Pieces& pieces, Scratch& own) {
    const uint8_t* w = weight.data + tile * tile_bytes(weight.kind, weight.k);
    if (weight.kind >= RT_F32) multiply_floats(weight, w, x, pieces, own.results);
    else multiply_packed(weight, w, x, pieces, own);
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
        multiply(i < per ? a.gate : a.up, chunk * per + i % per, a.x, pieces, own);
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
    Scratch& own = scratch();
    Shares shares(blocks.count * tiles, a.counter, rows <= FEW ? 4 : 1, tid, nth);
    for (int64_t unit, end; shares.next(&unit, &end);)
        while (unit < end) {
            const int64_t block = unit / tiles, stop = end < (block + 1) * tiles ? end : (block + 1) * tiles;
            const Pieces pieces(blocks.first(block), blocks.first(block + 1));
            for (; unit < stop; unit++) {
                multiply(a.weight, unit - block * tiles, a.x, pieces, own);
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
