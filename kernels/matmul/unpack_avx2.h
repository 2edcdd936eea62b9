// AVX2: thirty-two weights of eight rows at a time, turned so that the eight weights of one k lie side by side.
//
// Part of unpack.h, which says what the formats are; it knows nothing of activations.
#pragma once

#include "unpack.h"

#ifdef ROADTRAIN_AVX2

constexpr bool packed(int fmt) { return fmt <= Q6_K; }
constexpr bool has_min(int fmt) { return fmt == Q4_1 || fmt == Q4_K || fmt == Q5_K; }
constexpr int64_t block_k(int fmt) { return fmt >= Q4_K ? 256 : 32; }

INLINE __m256i bytes_at(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }

// The 32 whole numbers of group j of the block at p, as signed bytes, in order.
template <int FMT>
INLINE __m256i quants(const uint8_t* p, int j) {
    const __m256i four = _mm256_set1_epi8(15);
    if (FMT == Q8_0) return bytes_at(p + 2);
    if (FMT == Q4_0 || FMT == Q4_1) {
        __m128i x = _mm_loadu_si128((const __m128i*)(p + (FMT == Q4_0 ? 2 : 4)));
        __m256i q = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), four);
        return FMT == Q4_0 ? _mm256_sub_epi8(q, _mm256_set1_epi8(8)) : q;
    }
    if (FMT == Q6_K) {
        __m256i low = _mm256_and_si256(_mm256_srli_epi16(bytes_at(p + j / 4 * 64 + j % 2 * 32), j % 4 / 2 * 4), four);
        __m256i high = _mm256_srli_epi16(bytes_at(p + 128 + j / 4 * 32), j % 4 * 2);
        high = _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(3)), 4);
        return _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32));
    }
    __m256i q = _mm256_and_si256(_mm256_srli_epi16(bytes_at(p + (FMT == Q4_K ? 16 : 48) + j / 2 * 32), j % 2 * 4), four);
    if (FMT == Q4_K) return q;
    __m256i fifth = _mm256_and_si256(_mm256_srli_epi16(bytes_at(p + 16), j), _mm256_set1_epi8(1));
    return _mm256_or_si256(q, _mm256_slli_epi16(fifth, 4));
}

// Group j of eight rows, `stride` bytes apart: to[k][row] for k of 0 to 31.
template <int FMT>
INLINE void turn(const uint8_t* p, int64_t stride, int j, uint8_t* to) {
    __m256i r[8], s[8];
    for (int i = 0; i < 8; i++) r[i] = quants<FMT>(p + i * stride, j);
    for (int i = 0; i < 4; i++) {
        s[i] = _mm256_unpacklo_epi8(r[i], r[i + 4]);
        s[i + 4] = _mm256_unpackhi_epi8(r[i], r[i + 4]);
    }
    for (int h = 0; h < 8; h += 4) {
        __m256i even = _mm256_unpacklo_epi8(s[h], s[h + 2]), odd = _mm256_unpacklo_epi8(s[h + 1], s[h + 3]);
        __m256i even2 = _mm256_unpackhi_epi8(s[h], s[h + 2]), odd2 = _mm256_unpackhi_epi8(s[h + 1], s[h + 3]);
        __m256i pair[4] = {_mm256_unpacklo_epi8(even, odd), _mm256_unpackhi_epi8(even, odd),
                           _mm256_unpacklo_epi8(even2, odd2), _mm256_unpackhi_epi8(even2, odd2)};
        for (int i = 0; i < 4; i++) {
            _mm_store_si128((__m128i*)(to + h * 16 + i * 16), _mm256_castsi256_si128(pair[i]));
            _mm_store_si128((__m128i*)(to + 128 + h * 16 + i * 16), _mm256_extracti128_si256(pair[i], 1));
        }
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

// Scales and mins of one block of eight rows, per group of 32 (Q6_K: per 16), rows side by side.
struct Scales {
    alignas(32) float scale[16][8], least[8][8];
};

template <int FMT>
INLINE void read_scales(const uint8_t* p, int64_t stride, Scales& to) {
    if (FMT <= Q4_1) {
        _mm256_store_ps(to.scale[0], halves(p, stride));
        if (FMT == Q4_1) _mm256_store_ps(to.least[0], halves(p + 2, stride));
        return;
    }
    for (int r = 0; r < 8; r++, p += stride) {
        if (FMT == Q6_K) {
            float d = half_at(p + 208);
            for (int j = 0; j < 16; j++) to.scale[j][r] = d * (float)(int8_t)p[192 + j];
            continue;
        }
        float d = half_at(p), dmin = half_at(p + 2), scale, least;
        for (int j = 0; j < 8; j++) {
            scale_and_min(p + 4, j, &scale, &least);
            to.scale[j][r] = d * scale;
            to.least[j][r] = -dmin * least;
        }
    }
}

// Eight weights of one k from their turned bytes.
template <int FMT>
INLINE v8 weights_at(const uint8_t* turned, v8 scale, v8 least) {
    __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)turned));
    v8 w = (v8)_mm256_cvtepi32_ps(q);
    return has_min(FMT) ? fma(scale, w, least) : scale * w;
}

// Eight rows, kc weights, into one half of a panel.
template <int FMT>
INLINE void panel8(const uint8_t* p, int64_t stride, int64_t kc, float* panel) {
    alignas(32) uint8_t turned[256];
    Scales scales;
    for (int64_t k = 0; k < kc; k += block_k(FMT), p += byte_offset(FMT, block_k(FMT))) {
        read_scales<FMT>(p, stride, scales);
        for (int j = 0; j < block_k(FMT) / 32; j++) {
            turn<FMT>(p, stride, j, turned);
            for (int half = 0; half < 2; half++) {
                v8 scale = load(scales.scale[FMT == Q6_K ? j * 2 + half : j]), least = load(scales.least[j]);
                for (int i = half * 16; i < half * 16 + 16; i++, panel += PANEL_ROWS)
                    store(panel, weights_at<FMT>(turned + i * 8, scale, least));
            }
        }
    }
}

// ROWS activation rows times sixteen weight rows in one go, without a panel: the sums and their order are those of
// tile() in cpu.cpp, so few rows and many give the same bits.
template <int FMT, int ROWS>
void few_rows(const uint8_t* data, int64_t stride, const float* x, int64_t k, float* y, int64_t ldy) {
    alignas(32) uint8_t turned[2][256];
    Scales scales[2];
    v8 acc[2][ROWS];
    for (int r = 0; r < ROWS; r++) acc[0][r] = acc[1][r] = splat(0);
    for (int64_t at = 0; at < k; at += block_k(FMT), data += byte_offset(FMT, block_k(FMT))) {
        read_scales<FMT>(data, stride, scales[0]);
        read_scales<FMT>(data + 8 * stride, stride, scales[1]);
        for (int j = 0; j < block_k(FMT) / 32; j++) {
            const float* a = x + at + j * 32;
            turn<FMT>(data, stride, j, turned[0]);
            turn<FMT>(data + 8 * stride, stride, j, turned[1]);
            for (int half = 0; half < 2; half++) {
                int s = FMT == Q6_K ? j * 2 + half : j;
                v8 scale0 = load(scales[0].scale[s]), scale1 = load(scales[1].scale[s]);
                v8 least0 = load(scales[0].least[j]), least1 = load(scales[1].least[j]);
                for (int i = half * 16; i < half * 16 + 16; i++) {
                    v8 w0 = weights_at<FMT>(turned[0] + i * 8, scale0, least0);
                    v8 w1 = weights_at<FMT>(turned[1] + i * 8, scale1, least1);
                    for (int r = 0; r < ROWS; r++) {
                        acc[0][r] = fma(splat(a[r * k + i]), w0, acc[0][r]);
                        acc[1][r] = fma(splat(a[r * k + i]), w1, acc[1][r]);
                    }
                }
            }
        }
    }
    for (int r = 0; r < ROWS; r++) {
        store(y + r * ldy, acc[0][r]);
        store(y + r * ldy + 8, acc[1][r]);
    }
}

#endif
