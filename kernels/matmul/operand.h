// What every tile is given, and how the loops of tiles are written.
//
// It knows nothing of instruction sets.
#pragma once

#include "cpu_fast.h"
#include <utility>

#define NOINLINE __attribute__((noinline))
// Unrolled before gcc makes a memset of the first one, which would keep the accumulators in memory.
#define EACH(r, count) _Pragma("GCC unroll 9") for (int r = 0; r < count; r++)

struct Operand {
    const void* x;
    const rt_group* groups;  // of rows, stride / 32 apart
    int64_t stride, count;   // elements from row to row, groups of 32 (of floats: elements) in a row
};

// The products of a tile with some rows, [rows][tile rows], from `w`, which is the tile.
typedef void (*Tile)(const uint8_t* w, const Operand& x, float* out);

INLINE void fetch(const uint8_t* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char*)p + 128 * LANES + i, _MM_HINT_T0);
}
