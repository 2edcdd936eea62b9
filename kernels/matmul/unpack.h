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

#ifdef ROADTRAIN_AVX2

// Sixteen bytes of eight rows, turned: out holds byte 0 of rows 0 to 7, then byte 1 of rows 0 to 7, and so on.
INLINE void turn_bytes(const uint8_t* p, int64_t stride, uint8_t* out) {
    __m128i r[8], s[8];
    for (int i = 0; i < 8; i++) r[i] = _mm_loadu_si128((const __m128i*)(p + i * stride));
    for (int i = 0; i < 4; i++) {
        s[i] = _mm_unpacklo_epi8(r[i], r[i + 4]);
        s[i + 4] = _mm_unpackhi_epi8(r[i], r[i + 4]);
    }
    for (int h = 0; h < 8; h += 4) {
        __m128i even = _mm_unpacklo_epi8(s[h], s[h + 2]), odd = _mm_unpacklo_epi8(s[h + 1], s[h + 3]);
        __m128i even2 = _mm_unpackhi_epi8(s[h], s[h + 2]), odd2 = _mm_unpackhi_epi8(s[h + 1], s[h + 3]);
        __m128i* to = (__m128i*)(out + h * 16);
        _mm_store_si128(to, _mm_unpacklo_epi8(even, odd));
        _mm_store_si128(to + 1, _mm_unpackhi_epi8(even, odd));
        _mm_store_si128(to + 2, _mm_unpacklo_epi8(even2, odd2));
        _mm_store_si128(to + 3, _mm_unpackhi_epi8(even2, odd2));
    }
}

INLINE int word_at(const uint8_t* p) { uint16_t word; memcpy(&word, p, 2); return word; }

INLINE __m256 halves(const uint8_t* p, int64_t stride) {
    __m128i h = _mm_cvtsi32_si128(word_at(p));
    h = _mm_insert_epi16(h, word_at(p + stride), 1);
    h = _mm_insert_epi16(h, word_at(p + 2 * stride), 2);
    h = _mm_insert_epi16(h, word_at(p + 3 * stride), 3);
    h = _mm_insert_epi16(h, word_at(p + 4 * stride), 4);
    h = _mm_insert_epi16(h, word_at(p + 5 * stride), 5);
    h = _mm_insert_epi16(h, word_at(p + 6 * stride), 6);
    return _mm256_cvtph_ps(_mm_insert_epi16(h, word_at(p + 7 * stride), 7));
}

// Eight rows of Q4_0 or Q4_1, kc weights each, into one half of a panel.
template <int FMT>
INLINE void panel8_q4(const uint8_t* p, int64_t stride, int64_t kc, float* panel) {
    constexpr int size = FMT == Q4_0 ? 18 : 20, head = FMT == Q4_0 ? 2 : 4;
    alignas(32) uint8_t turned[128];
    const __m256i mask = _mm256_set1_epi32(15);
    for (int64_t k = 0; k < kc; k += 32, p += size, panel += 32 * PANEL_ROWS) {
        __m256 d = halves(p, stride);
        __m256 m = FMT == Q4_0 ? _mm256_mul_ps(d, _mm256_set1_ps(-8)) : halves(p + 2, stride);
        turn_bytes(p + head, stride, turned);
        for (int i = 0; i < 16; i++) {
            __m256i q = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(turned + i * 8)));
            __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(q, mask)), high = _mm256_cvtepi32_ps(_mm256_srli_epi32(q, 4));
            _mm256_storeu_ps(panel + i * PANEL_ROWS, _mm256_fmadd_ps(d, low, m));
            _mm256_storeu_ps(panel + (i + 16) * PANEL_ROWS, _mm256_fmadd_ps(d, high, m));
        }
    }
}

INLINE void panel8_q8(const uint8_t* p, int64_t stride, int64_t kc, float* panel) {
    alignas(32) uint8_t turned[128];
    for (int64_t k = 0; k < kc; k += 32, p += 34) {
        __m256 d = halves(p, stride);
        for (int part = 0; part < 32; part += 16, panel += 16 * PANEL_ROWS) {
            turn_bytes(p + 2 + part, stride, turned);
            for (int i = 0; i < 16; i++) {
                __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(turned + i * 8)));
                _mm256_storeu_ps(panel + i * PANEL_ROWS, _mm256_mul_ps(d, _mm256_cvtepi32_ps(q)));
            }
        }
    }
}

#endif

// Rows row0 to row0 + rows (at most 16), weights k0 to k0 + kc (at most 256), into a panel.
template <int FMT>
static void unpack_panel(const uint8_t* data, int64_t stride, int64_t rows, int64_t k0, int64_t kc, float* panel) {
#ifdef ROADTRAIN_AVX2
    if (rows == PANEL_ROWS && (FMT == Q4_0 || FMT == Q4_1 || FMT == Q8_0)) {
        for (int half = 0; half < 2; half++) {
            const uint8_t* p = data + half * 8 * stride + byte_offset(FMT, k0);
            if (FMT == Q8_0) panel8_q8(p, stride, kc, panel + half * 8);
            else panel8_q4<FMT>(p, stride, kc, panel + half * 8);
        }
        return;
    }
#endif
    float line[PANEL_K];
    if (rows < PANEL_ROWS) memset(panel, 0, sizeof(float) * PANEL_ROWS * (size_t)kc);
    for (int64_t r = 0; r < rows; r++) {
        unpack_row<FMT>(data + r * stride, k0, kc, line);
        for (int64_t k = 0; k < kc; k++) panel[k * PANEL_ROWS + r] = line[k];
    }
}
