// Unpacking of weights: one row at a time for every format, sixteen rows into a panel for products.
//
// A panel is [kc][16] floats: the 16 weights of one k side by side, rows beyond the last one zero. Formats and their
// bytes are those of formats.py; every product is exact, so all ways of unpacking give the same bits.
// It knows nothing of activations.
#pragma once

#include "../simd.h"

constexpr int PANEL_ROWS = 16;
constexpr int PANEL_K = 256;

enum Format { Q8_0, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K, F32, F16, BF16 };

INLINE float half_at(const uint8_t* p) { uint16_t h; memcpy(&h, p, 2); return half_to_float(h); }

// How far one row's weight k lies from its start; k a multiple of 32, and of 256 for the K formats.
INLINE int64_t byte_offset(int fmt, int64_t k) {
    switch (fmt) {
        case Q8_0: return k / 32 * 34;
        case Q4_0: return k / 32 * 18;
        case Q4_1: return k / 32 * 20;
        case Q4_K: return k / 256 * 144;
        case Q5_K: return k / 256 * 176;
        case Q6_K: return k / 256 * 210;
        case F32: return k * 4;
        default: return k * 2;
    }
}

INLINE void unpack_q8_0(const uint8_t* block, float* out) {
    float d = half_at(block);
    for (int i = 0; i < 32; i++) out[i] = d * (float)(int8_t)block[2 + i];
}

INLINE void unpack_q4(const uint8_t* qs, float d, float m, float* out) {
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(qs[i] & 15) + m;
        out[i + 16] = d * (float)(qs[i] >> 4) + m;
    }
}

INLINE void scale_and_min(const uint8_t* s, int j, float* scale, float* least) {
    int low = j < 4;
    *scale = (float)(low ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4);
    *least = (float)(low ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4);
}

// Q4_K and Q5_K; high: the 32 bytes of fifth bits, or null.
INLINE void unpack_k45(const uint8_t* block, const uint8_t* high, const uint8_t* qs, float* out) {
    float d = half_at(block), dmin = half_at(block + 2);
    for (int j = 0; j < 8; j++) {
        float scale, least;
        scale_and_min(block + 4, j, &scale, &least);
        scale *= d;
        least *= dmin;
        const uint8_t* q = qs + j / 2 * 32;
        int shift = j % 2 * 4;
        for (int i = 0; i < 32; i++) {
            int value = q[i] >> shift & 15;
            if (high) value |= (high[i] >> j & 1) << 4;
            out[j * 32 + i] = scale * (float)value - least;
        }
    }
}

INLINE void unpack_q6_k(const uint8_t* block, float* out) {
    float d = half_at(block + 208);
    const int8_t* scales = (const int8_t*)(block + 192);
    for (int j = 0; j < 8; j++) {
        const uint8_t* low = block + j / 4 * 64 + j % 2 * 32;
        const uint8_t* high = block + 128 + j / 4 * 32;
        int low_shift = j % 4 / 2 * 4, high_shift = j % 4 * 2;
        for (int i = 0; i < 32; i++) {
            int value = ((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4) - 32;
            out[j * 32 + i] = d * (float)scales[j * 2 + i / 16] * (float)value;
        }
    }
}

// Weights k0 to k0 + kc of the row at `row`.
template <int FMT>
static void unpack_row(const uint8_t* row, int64_t k0, int64_t kc, float* out) {
    const uint8_t* p = row + byte_offset(FMT, k0);
    if (FMT == F32) memcpy(out, p, (size_t)kc * 4);
    if (FMT == F16) for (int64_t i = 0; i < kc; i++) out[i] = half_at(p + 2 * i);
    if (FMT == BF16) for (int64_t i = 0; i < kc; i++) {
        uint32_t bits = (uint32_t)p[2 * i] << 16 | (uint32_t)p[2 * i + 1] << 24;
        memcpy(out + i, &bits, 4);
    }
    if (FMT == Q8_0) for (int64_t i = 0; i < kc; i += 32, p += 34) unpack_q8_0(p, out + i);
    if (FMT == Q4_0) for (int64_t i = 0; i < kc; i += 32, p += 18) unpack_q4(p + 2, half_at(p), -8 * half_at(p), out + i);
    if (FMT == Q4_1) for (int64_t i = 0; i < kc; i += 32, p += 20) unpack_q4(p + 4, half_at(p), half_at(p + 2), out + i);
    if (FMT == Q4_K) for (int64_t i = 0; i < kc; i += 256, p += 144) unpack_k45(p, nullptr, p + 16, out + i);
    if (FMT == Q5_K) for (int64_t i = 0; i < kc; i += 256, p += 176) unpack_k45(p, p + 16, p + 48, out + i);
    if (FMT == Q6_K) for (int64_t i = 0; i < kc; i += 256, p += 210) unpack_q6_k(p, out + i);
}
