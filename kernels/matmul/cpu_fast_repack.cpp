// From the bytes of a file to tiles (cpu_fast.h), and single rows back out of them.
//
// Scales of Q4_K, Q5_K and Q6_K, products in the file, are rounded to 16 bits here (relative error at most 5e-4, an order
// below that of int8 activations). It knows nothing of files.
#include "cpu_fast.h"
#include "../parallel.h"

namespace {

struct Group {
    int16_t q[32];
    float d[2], m;  // d of the first and of the last 16 weights
};

void read_nibbles(const uint8_t* qs, Group& to) {
    for (int i = 0; i < 16; i++) {
        to.q[i] = qs[i] & 15;
        to.q[i + 16] = qs[i] >> 4;
    }
}

void read_k45(const uint8_t* block, int j, bool five, Group& to) {
    float scale, least;
    scale_and_min(block + 4, j, &scale, &least);
    to.d[0] = to.d[1] = half_at(block) * scale;
    to.m = -half_at(block + 2) * least;
    const uint8_t* q = block + (five ? 48 : 16) + j / 2 * 32;
    for (int i = 0; i < 32; i++) {
        to.q[i] = q[i] >> j % 2 * 4 & 15;
        if (five) to.q[i] = (int16_t)(to.q[i] | (block[16 + i] >> j & 1) << 4);
    }
}

void read_q6_k(const uint8_t* block, int j, Group& to) {
    const uint8_t *low = block + j / 4 * 64 + j % 2 * 32, *high = block + 128 + j / 4 * 32;
    for (int i = 0; i < 32; i++)
        to.q[i] = (int16_t)(((low[i] >> j % 4 / 2 * 4 & 15) | (high[i] >> j % 4 * 2 & 3) << 4) - 32);
    for (int h = 0; h < 2; h++) to.d[h] = half_at(block + 208) * (float)(int8_t)block[192 + j * 2 + h];
}

// Group g of a row; Q4_0 keeps its nibbles without the 8 they are less.
Group read_group(int fmt, const uint8_t* row, int64_t g) {
    Group to{};
    const uint8_t* p = row + byte_offset(fmt, fmt >= Q4_K ? g / 8 * 256 : g * 32);
    int j = (int)(g % 8);
    if (fmt == Q4_K || fmt == Q5_K) read_k45(p, j, fmt == Q5_K, to);
    else if (fmt == Q6_K) read_q6_k(p, j, to);
    else {
        to.d[0] = to.d[1] = half_at(p);
        if (fmt == Q4_1) to.m = half_at(p + 2);
        if (fmt == Q8_0) for (int i = 0; i < 32; i++) to.q[i] = (int8_t)p[2 + i];
        else read_nibbles(p + (fmt == Q4_0 ? 2 : 4), to);
    }
    return to;
}

void put_half(uint8_t* to, int64_t index, float value) {
    uint16_t half = float_to_half(value);
    memcpy(to + index * 2, &half, 2);
}

void write_group(int64_t kind, const Group& from, int64_t r, uint8_t* to) {
    put_half(to, r, from.d[0]);
    if (kind == RT_Q4_MIN || kind == RT_Q8_MIN) put_half(to, LANES + r, from.m);
    uint8_t* q = to + (kind == RT_Q4_MIN || kind == RT_Q8_MIN ? 4 : 2) * LANES;
    if (kind <= RT_Q4_MIN) {
        for (int i = 0; i < 16; i++) q[i / 4 * 4 * LANES + r * 4 + i % 4] = (uint8_t)(from.q[i] | from.q[i + 16] << 4);
        return;
    }
    for (int i = 0; i < 32; i++) {
        int64_t gap = kind == RT_Q8_HALF && i >= 16 ? 2 * LANES : 0;
        q[gap + i / 2 * 2 * LANES + r * 2 + i % 2] = (uint8_t)(int8_t)from.q[i];
    }
    if (kind == RT_Q8_HALF) put_half(to + 18 * LANES, r, from.d[1]);
}

void read_tile_row(const rt_weight& w, int64_t row, float scale, float* out) {
    const uint8_t* tile = w.data + row / tile_rows(w.kind) * tile_bytes(w.kind, w.k);
    const int64_t r = row % tile_rows(w.kind), size = tile_bytes(w.kind, 32);
    for (int64_t i = 0; i < w.k; i++) {
        if (w.kind == RT_F32) { memcpy(out + i, tile + (i * 2 * LANES + r) * 4, 4); out[i] *= scale; continue; }
        if (w.kind == RT_F16) { out[i] = half_at(tile + (i * 2 * LANES + r) * 2) * scale; continue; }
        if (w.kind == RT_BF16) {
            uint16_t high;
            memcpy(&high, tile + (i * 2 * LANES + r) * 2, 2);
            uint32_t bits = (uint32_t)high << 16;
            memcpy(out + i, &bits, 4);
            out[i] *= scale;
            continue;
        }
        const uint8_t* g = tile + i / 32 * size;
        const int j = (int)(i % 32);
        const bool least = w.kind == RT_Q4_MIN || w.kind == RT_Q8_MIN;
        float d = half_at(g + r * 2 + (w.kind == RT_Q8_HALF && j >= 16 ? 18 * LANES : 0)), m = least ? half_at(g + 2 * LANES + r * 2) : 0.0f;
        const uint8_t* q = g + (least ? 4 : 2) * LANES;
        float value;
        if (w.kind <= RT_Q4_MIN) {
            uint8_t both = q[j % 16 / 4 * 4 * LANES + r * 4 + j % 4];
            value = (float)(j < 16 ? both & 15 : both >> 4) - (w.kind == RT_Q4 ? 8.0f : 0.0f);
        } else value = (float)(int8_t)q[(w.kind == RT_Q8_HALF && j >= 16 ? 2 * LANES : 0) + j / 2 * 2 * LANES + r * 2 + j % 2];
        out[i] = (d * value + m) * scale;
    }
}

}  // namespace

// Bytes of n x k weights of a kind.
EXPORT int64_t rt_fast_repacked_bytes(int64_t kind, int64_t n, int64_t k) {
    return (n + tile_rows(kind) - 1) / tile_rows(kind) * tile_bytes(kind, k);
}

// fmt and the rows, row_bytes apart, as unpack.h has them; `to` takes rt_fast_repacked_bytes and must be zero.
EXPORT int rt_fast_repack(const uint8_t* from, int64_t row_bytes, int fmt, int64_t kind, int64_t n, int64_t k, uint8_t* to,
                          int num_threads) {
    const int64_t rows = tile_rows(kind), bytes = tile_bytes(kind, k), size = kind == RT_F32 ? 4 : 2;
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t tile = 0; tile < (n + rows - 1) / rows; tile++)
        for (int64_t r = 0; r < rows && tile * rows + r < n; r++) {
            const uint8_t* row = from + (tile * rows + r) * row_bytes;
            uint8_t* out = to + tile * bytes;
            if (kind >= RT_F32) for (int64_t i = 0; i < k; i++) memcpy(out + (i * 2 * LANES + r) * size, row + i * size, (size_t)size);
            else for (int64_t g = 0; g < k / 32; g++) write_group(kind, read_group(fmt, row, g), r, out + g * tile_bytes(kind, 32));
        }
    return 0;
}

// Rows `ids` of a repacked weight, times a scale.
EXPORT void rt_fast_embed(const void* args, int tid, int nth) {
    const rt_fast_embed_args& a = *(const rt_fast_embed_args*)args;
    const int64_t rows = *a.num_rows;
    for (int64_t i = part(rows, tid, nth); i < part(rows, tid + 1, nth); i++)
        read_tile_row(a.weight, a.ids[i], a.scale, a.out + i * a.out_stride);
}
