// Rotary positions in place: x1' = x1 cos - x2 sin, x2' = x2 cos + x1 sin, half-split pairs.
//
// It knows nothing of Python: shapes are checked before it is called.
#include "../parallel.h"
#include "../simd.h"

extern "C" {

struct rt_rope_args {
    const int64_t *num_rows, *positions;
    const float* cos_sin;  // [P][2 half]: cosines, then sines
    float *q, *k;
    int64_t q_stride, q_heads, k_stride, k_heads, d, half;  // strides count floats from token to token
};

}

namespace {

void turn(float* x, int64_t heads, int64_t d, int64_t half, const float* cos, const float* sin) {
    for (int64_t h = 0; h < heads; h++, x += d)
        for (int64_t i = 0; i < half; i++) {
            float first = x[i], second = x[i + half];
            x[i] = first * cos[i] - second * sin[i];
            x[i + half] = second * cos[i] + first * sin[i];
        }
}

}  // namespace

EXPORT void rt_rope_body(const void* args, int tid, int nth) {
    const rt_rope_args& a = *(const rt_rope_args*)args;
    for (int64_t t = part(*a.num_rows, tid, nth); t < part(*a.num_rows, tid + 1, nth); t++) {
        const float* cos = a.cos_sin + a.positions[t] * 2 * a.half;
        turn(a.q + t * a.q_stride, a.q_heads, a.d, a.half, cos, cos + a.half);
        turn(a.k + t * a.k_stride, a.k_heads, a.d, a.half, cos, cos + a.half);
    }
}

EXPORT void rt_rope(float* q, int64_t q_stride, int64_t q_heads, float* k, int64_t k_stride, int64_t k_heads,
                    const int64_t* positions, const float* cos_sin, int64_t t, int64_t d, int64_t half, int num_threads) {
    rt_rope_args args{&t, positions, cos_sin, q, k, q_stride, q_heads, k_stride, k_heads, d, half};
    in_parallel(rt_rope_body, &args, num_threads, t * (q_heads + k_heads) * d <= 65536);
}
