// Repacked weights: a tile is L (or, for floats, 2 L) rows side by side, so that no product needs a sum over lanes. L is 16
// for AVX-512, else 8.
//
// Rows beyond the last are zero. A tile of a packed kind is K / 32 groups end to end, a group being
//
//     Q4      L f16 d; 4 x 4 L bytes of nibbles                 w = d (q - 8)     Q4_0
//     Q4_MIN  L f16 d; L f16 m; 4 x 4 L bytes of nibbles        w = d q + m       Q4_1, Q4_K
//     Q8      L f16 d; 16 x 2 L bytes                           w = d q           Q8_0
//     Q8_MIN  L f16 d; L f16 m; 16 x 2 L bytes                  w = d q + m       Q5_K
//     Q8_HALF twice (L f16 d; 8 x 2 L bytes), 16 weights each   w = d q           Q6_K
//
// Bytes 4 r to 4 r + 3 of vector j of nibbles hold weights 4 j to 4 j + 3 of row r low, and the 16 after them high. Bytes
// 2 r and 2 r + 1 of vector j of bytes are weights 2 j and 2 j + 1 of row r. A tile of floats is [K][2 L].
// It knows nothing of files.
#pragma once

#include "../rows.h"
#include "unpack.h"

extern "C" {

enum rt_kind { RT_Q4, RT_Q4_MIN, RT_Q8, RT_Q8_MIN, RT_Q8_HALF, RT_F32, RT_F16, RT_BF16 };

struct rt_weight {
    const uint8_t* data;
    int64_t kind, n, k;
};

struct rt_fast_matmul_args {
    const int64_t* num_rows;
    rt_weight weight;
    rt_rows x;  // Q4, Q4_MIN read q8; Q8, Q8_MIN, Q8_HALF read q16; the float kinds read y
    float* out;  // [T][out_stride]
    int64_t out_stride;
    const float* bias;  // [n], or null
    int64_t add;  // 1: out += product, 0: out = product
    int64_t* counter;  // zero before the body, or null
};

struct rt_fast_gate_up_args {
    const int64_t* num_rows;
    rt_weight gate, up;  // n a multiple of 32, the same kind
    rt_rows x;
    rt_rows out;
    int64_t gelu;  // 1: the tanh form of GELU, 0: SiLU
    int64_t* counter;  // zero before the body, or null
};

struct rt_fast_embed_args {
    const int64_t* num_rows;
    const int64_t* ids;
    rt_weight weight;
    float scale;
    float* out;  // [T][out_stride]
    int64_t out_stride;
};

}

#if ROADTRAIN_VNNI == 512
#define ROADTRAIN_AVX512 1
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif

INLINE int64_t tile_rows(int64_t kind) { return kind >= RT_F32 ? 2 * LANES : LANES; }

INLINE int64_t tile_bytes(int64_t kind, int64_t k) {
    switch (kind) {
        case RT_Q4: return k / 32 * 18 * LANES;
        case RT_Q4_MIN: return k / 32 * 20 * LANES;
        case RT_Q8: return k / 32 * 34 * LANES;
        case RT_F32: return k * 8 * LANES;
        case RT_F16: case RT_BF16: return k * 4 * LANES;
        default: return k / 32 * 36 * LANES;
    }
}

#ifdef ROADTRAIN_FAST

constexpr int64_t TILE_COUNT = LANES == 16 ? 9 : 6;  // most rows of x a tile takes
constexpr int64_t MOST_ROWS = 16 * TILE_COUNT;  // most that are multiplied with a tile before the next tile is read

// Bytes of activations that stay close to a tile: in the first cache, or, where one load of them serves sixteen rows of weights,
// in the second.
constexpr int64_t CLOSE = LANES == 16 ? 70000 : 17500;

// How many rows of x are multiplied with a tile before the next tile is read: what stays close, or, for floats, whose tiles do not
// fit the first cache anyway, in the second.
INLINE int64_t rows_at_once(const rt_weight& weight) {
    const bool floats = weight.kind >= RT_F32;
    const int64_t bytes = weight.k * (floats ? 4 : weight.kind <= RT_Q4_MIN ? 1 : 2), rows = (floats ? 100000 : CLOSE) / bytes / TILE_COUNT * TILE_COUNT;
    return rows < TILE_COUNT ? TILE_COUNT : rows > MOST_ROWS ? MOST_ROWS : rows;
}

// Rows in blocks of at most so many, as even as can be, each multiplied with every tile: a unit of work is one block with one tile
// (or a few that belong together).
struct Blocks {
    int64_t rows, count;
    Blocks(int64_t num_rows, int64_t most) : rows(num_rows), count((num_rows + most - 1) / most) {}
    int64_t first(int64_t block) const { return rows * block / count; }
};

// Rows first to end cut into pieces of at most TILE_COUNT, as even as can be: cut once, used for every tile.
struct Pieces {
    int64_t count, from[MOST_ROWS / TILE_COUNT + 2];
    Pieces(int64_t first, int64_t end) : count((end - first + TILE_COUNT - 1) / TILE_COUNT) {
        for (int64_t i = 0; i <= count; i++) from[i] = first + (end - first) * i / count;
    }
    int64_t end() const { return from[count]; }
};

#endif
