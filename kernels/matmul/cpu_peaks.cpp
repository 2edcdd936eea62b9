// What this processor can do at most, measured: reading memory, and the three multiply-add instructions of the products.
//
// Loops are written out in assembler, since compilers measure their own spills here. It knows nothing of kernels.
#include "../parallel.h"
#include "cpu_fast.h"

extern "C" {

enum rt_peak { RT_PEAK_READ, RT_PEAK_FMA, RT_PEAK_MADD, RT_PEAK_MADDUBS };

struct rt_peaks_args {
    int64_t what;  // an rt_peak
    const uint8_t* data;  // READ: what to read
    int64_t count;  // READ: bytes, a multiple of 256 times the threads; others: rounds of 10 instructions on 8 lanes
};

}

#ifdef ROADTRAIN_FAST

namespace {

#define TEN(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9)

#ifdef ROADTRAIN_AVX2

#define CLOBBERS "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", "ymm13"
#define CLEAR(i) "vpxor %%xmm" #i ", %%xmm" #i ", %%xmm" #i "\n\t"
#if ROADTRAIN_VNNI == 512
#define FMA(i) "vfmadd231ps %%zmm10, %%zmm11, %%zmm" #i "\n\t"
#define MADD(i) "vpdpwssd %%zmm10, %%zmm11, %%zmm" #i "\n\t"
#define MADDUBS(i) "vpdpbusd %%zmm10, %%zmm11, %%zmm" #i "\n\t"
#else
#define FMA(i) "vfmadd231ps %%ymm10, %%ymm11, %%ymm" #i "\n\t"
#if ROADTRAIN_VNNI == 256
#define MADD(i) "%{vex%} vpdpwssd %%ymm10, %%ymm11, %%ymm" #i "\n\t"
#define MADDUBS(i) "%{vex%} vpdpbusd %%ymm10, %%ymm11, %%ymm" #i "\n\t"
#else
#define MADD(i) "vpmaddwd %%ymm10, %%ymm11, %%ymm12\n\tvpaddd %%ymm12, %%ymm" #i ", %%ymm" #i "\n\t"
#define MADDUBS(i) "vpmaddubsw %%ymm10, %%ymm11, %%ymm12\n\tvpaddw %%ymm12, %%ymm" #i ", %%ymm" #i "\n\t"
#endif
#endif
#define ROUNDS(STEP) \
    asm volatile(TEN(CLEAR) CLEAR(10) CLEAR(11) "1:\n\t" TEN(STEP) "dec %[n]\n\tjnz 1b" : [n] "+r"(n) : : CLOBBERS, "cc")

void read(const uint8_t* p, int64_t bytes) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (const uint8_t* end = p + bytes; p < end; p += 128) {
        _mm_prefetch((const char*)p + 1024, _MM_HINT_T0);
        _mm_prefetch((const char*)p + 1088, _MM_HINT_T0);
        a = _mm256_xor_si256(a, _mm256_loadu_si256((const __m256i*)p));
        b = _mm256_xor_si256(b, _mm256_loadu_si256((const __m256i*)(p + 32)));
        c = _mm256_xor_si256(c, _mm256_loadu_si256((const __m256i*)(p + 64)));
        d = _mm256_xor_si256(d, _mm256_loadu_si256((const __m256i*)(p + 96)));
    }
    asm volatile("" : : "x"(_mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d))));
}

#else

// A pair of vectors for one of AVX2's: accumulators i and 1i.
#define CLOBBERS "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", \
                 "v17", "v18", "v19", "v30", "v31"
#define CLEAR(i) "movi v" #i ".4s, #0\n\tmovi v1" #i ".4s, #0\n\t"
#define FMA(i) "fmla v" #i ".4s, v30.4s, v31.4s\n\tfmla v1" #i ".4s, v30.4s, v31.4s\n\t"
#define MADD_HALF(to) "smlal v" to ".4s, v30.4h, v31.4h\n\tsmlal2 v" to ".4s, v30.8h, v31.8h\n\t"
#define MADD(i) MADD_HALF(#i) MADD_HALF("1" #i)
#define MADDUBS(i) "sdot v" #i ".4s, v30.16b, v31.16b\n\tsdot v1" #i ".4s, v30.16b, v31.16b\n\t"
#define ROUNDS(STEP) \
    asm volatile(TEN(CLEAR) "movi v30.4s, #0\n\tmovi v31.4s, #0\n\t1:\n\t" TEN(STEP) "subs %[n], %[n], #1\n\tb.ne 1b" \
                 : [n] "+r"(n) : : CLOBBERS, "cc")

void read(const uint8_t* p, int64_t bytes) {
    uint8x16_t a = vdupq_n_u8(0), b = a;
    for (const uint8_t* end = p + bytes; p < end; p += 64) {
        __builtin_prefetch(p + 1024);
        a = veorq_u8(a, veorq_u8(vld1q_u8(p), vld1q_u8(p + 16)));
        b = veorq_u8(b, veorq_u8(vld1q_u8(p + 32), vld1q_u8(p + 48)));
    }
    asm volatile("" : : "w"(veorq_u8(a, b)));
}

#endif

}  // namespace

EXPORT void rt_peaks(const void* args, int tid, int nth) {
    const rt_peaks_args& a = *(const rt_peaks_args*)args;
    int64_t n = a.count / (LANES / 8);  // one on sixteen lanes is two on eight
    switch (a.what) {
        case RT_PEAK_READ: return read(a.data + part(a.count, tid, nth), a.count / nth);
        case RT_PEAK_FMA: ROUNDS(FMA); return;
        case RT_PEAK_MADD: ROUNDS(MADD); return;
        default: ROUNDS(MADDUBS);
    }
}

#endif
