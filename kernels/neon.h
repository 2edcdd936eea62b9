// 64-bit ARM: eight lanes as a pair of vectors, and the AVX2 operations that fast bodies are written in.
//
// GCC keeps a vector wider than the processor's in memory, a pair of vectors in registers: so v8 and i8 are pairs here. The
// fast bodies name the operations they need as AVX2 does; those, and no others, are given below under the same names. Results
// are those of AVX2, bit for bit, but for which of two NaNs is kept. It knows nothing of kernels.
#pragma once

#include <arm_neon.h>

struct i8;

struct v8 {
    float32x4_t low, high;
    v8() = default;
    v8(float32x4_t l, float32x4_t h) : low(l), high(h) {}
    v8(float a, float b, float c, float d, float e, float f, float g, float h) : low{a, b, c, d}, high{e, f, g, h} {}
    inline explicit v8(i8 bits);
    float operator[](int i) const { return i < 4 ? low[i] : high[i - 4]; }
};

struct i8 {
    int32x4_t low, high;
    i8() = default;
    i8(int32x4_t l, int32x4_t h) : low(l), high(h) {}
    i8(uint32x4_t l, uint32x4_t h) : low(vreinterpretq_s32_u32(l)), high(vreinterpretq_s32_u32(h)) {}
    i8(int a, int b, int c, int d, int e, int f, int g, int h) : low{a, b, c, d}, high{e, f, g, h} {}
    explicit i8(v8 bits) : low(vreinterpretq_s32_f32(bits.low)), high(vreinterpretq_s32_f32(bits.high)) {}
    int32_t operator[](int i) const { return i < 4 ? low[i] : high[i - 4]; }
};

#define ON_ARM static inline __attribute__((always_inline))

inline __attribute__((always_inline)) v8::v8(i8 bits)
    : low(vreinterpretq_f32_s32(bits.low)), high(vreinterpretq_f32_s32(bits.high)) {}

ON_ARM v8 operator+(v8 a, v8 b) { return {a.low + b.low, a.high + b.high}; }
ON_ARM v8 operator-(v8 a, v8 b) { return {a.low - b.low, a.high - b.high}; }
ON_ARM v8 operator*(v8 a, v8 b) { return {a.low * b.low, a.high * b.high}; }
ON_ARM v8 operator/(v8 a, v8 b) { return {a.low / b.low, a.high / b.high}; }
ON_ARM v8 operator-(v8 a) { return {-a.low, -a.high}; }
ON_ARM i8 operator<(v8 a, v8 b) { return {vcltq_f32(a.low, b.low), vcltq_f32(a.high, b.high)}; }
ON_ARM i8 operator>(v8 a, v8 b) { return {vcgtq_f32(a.low, b.low), vcgtq_f32(a.high, b.high)}; }
ON_ARM i8 operator>=(v8 a, v8 b) { return {vcgeq_f32(a.low, b.low), vcgeq_f32(a.high, b.high)}; }

ON_ARM i8 operator&(i8 a, i8 b) { return {a.low & b.low, a.high & b.high}; }
ON_ARM i8 operator|(i8 a, i8 b) { return {a.low | b.low, a.high | b.high}; }
ON_ARM i8 operator~(i8 a) { return {~a.low, ~a.high}; }
ON_ARM i8& operator&=(i8& a, i8 b) { return a = a & b; }
ON_ARM i8 operator+(i8 a, i8 b) { return {a.low + b.low, a.high + b.high}; }
ON_ARM i8 operator+(i8 a, int32_t b) { return {a.low + b, a.high + b}; }
ON_ARM i8 operator<<(i8 a, int n) { return {a.low << n, a.high << n}; }
ON_ARM i8 operator==(i8 a, int32_t b) { return {vceqq_s32(a.low, vdupq_n_s32(b)), vceqq_s32(a.high, vdupq_n_s32(b))}; }
ON_ARM i8 operator>=(i8 a, int32_t b) { return {vcgeq_s32(a.low, vdupq_n_s32(b)), vcgeq_s32(a.high, vdupq_n_s32(b))}; }
ON_ARM i8 operator<=(i8 a, int32_t b) { return {vcleq_s32(a.low, vdupq_n_s32(b)), vcleq_s32(a.high, vdupq_n_s32(b))}; }

typedef v8 __m256;
typedef i8 __m256i;
typedef uint8x16_t __m128i;
enum { _MM_HINT_T0 };

ON_ARM void _mm_prefetch(const char* p, int) { __builtin_prefetch(p); }
ON_ARM __m128i _mm_loadu_si128(const __m128i* p) { return vld1q_u8((const uint8_t*)p); }
ON_ARM __m128i _mm_loadl_epi64(const __m128i* p) { return vcombine_u8(vld1_u8((const uint8_t*)p), vdup_n_u8(0)); }

ON_ARM __m256 _mm256_setzero_ps() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
ON_ARM __m256 _mm256_set1_ps(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
ON_ARM __m256 _mm256_broadcast_ss(const float* p) { const float32x4_t x = vld1q_dup_f32(p); return {x, x}; }
ON_ARM __m256 _mm256_loadu_ps(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
ON_ARM void _mm256_storeu_ps(float* p, __m256 x) { vst1q_f32(p, x.low); vst1q_f32(p + 4, x.high); }
ON_ARM __m256 _mm256_mul_ps(__m256 a, __m256 b) { return a * b; }
ON_ARM __m256 _mm256_max_ps(__m256 a, __m256 b) { return {vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)}; }
ON_ARM __m256 _mm256_fmadd_ps(__m256 a, __m256 b, __m256 c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
ON_ARM __m256 _mm256_cvtepi32_ps(__m256i x) { return {vcvtq_f32_s32(x.low), vcvtq_f32_s32(x.high)}; }
ON_ARM __m256 _mm256_castsi256_ps(__m256i x) { return (__m256)x; }
ON_ARM __m256 _mm256_cvtph_ps(__m128i x) {
    const float16x8_t halves = vreinterpretq_f16_u8(x);
    return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}

ON_ARM __m256i _mm256_setzero_si256() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
ON_ARM __m256i _mm256_set1_epi8(char x) { const int32x4_t v = vreinterpretq_s32_s8(vdupq_n_s8((int8_t)x)); return {v, v}; }
ON_ARM __m256i _mm256_loadu_si256(const __m256i* p) { return {vld1q_s32((const int32_t*)p), vld1q_s32((const int32_t*)p + 4)}; }
ON_ARM void _mm256_storeu_si256(__m256i* p, __m256i x) { vst1q_s32((int32_t*)p, x.low); vst1q_s32((int32_t*)p + 4, x.high); }
ON_ARM __m256i _mm256_and_si256(__m256i a, __m256i b) { return a & b; }
ON_ARM __m256i _mm256_srli_epi16(__m256i a, int n) {
    return {(int32x4_t)((uint16x8_t)a.low >> n), (int32x4_t)((uint16x8_t)a.high >> n)};
}
ON_ARM __m256i _mm256_slli_epi32(__m256i a, int n) { return a << n; }
ON_ARM __m256i _mm256_set1_epi32(int x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
ON_ARM __m256i _mm256_srl_epi32(__m256i a, __m128i n) {
    const int32x4_t left = vdupq_n_s32(-vgetq_lane_s32((int32x4_t)n, 0));
    return {vshlq_u32((uint32x4_t)a.low, left), vshlq_u32((uint32x4_t)a.high, left)};
}
ON_ARM __m256i _mm256_cvtepu16_epi32(__m128i x) {
    const uint16x8_t words = vreinterpretq_u16_u8(x);
    return {vmovl_u16(vget_low_u16(words)), vmovl_high_u16(words)};
}
ON_ARM __m256i _mm256_cvtepi8_epi32(__m128i x) {
    const int16x8_t words = vmovl_s8(vget_low_s8(vreinterpretq_s8_u8(x)));
    return {vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)};
}
ON_ARM __m256i _mm256_cvtepi8_epi16(__m128i x) {
    const int8x16_t bytes = vreinterpretq_s8_u8(x);
    return {vreinterpretq_s32_s16(vmovl_s8(vget_low_s8(bytes))), vreinterpretq_s32_s16(vmovl_high_s8(bytes))};
}
