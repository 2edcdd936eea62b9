// Rotary positions in place: x1' = x1 cos - x2 sin, x2' = x2 cos + x1 sin, half-split pairs.
//
// It knows nothing of Python: shapes are checked before it is called.
#include "../simd.h"

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

// cos_sin [P][2 half]: cosines, then sines. Strides count floats from token to token.
EXPORT void rt_rope(float* q, int64_t q_stride, int64_t q_heads, float* k, int64_t k_stride, int64_t k_heads,
                    const int64_t* positions, const float* cos_sin, int64_t t, int64_t d, int64_t half, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static) if (t * (q_heads + k_heads) * d > 65536)
    for (int64_t i = 0; i < t; i++) {
        const float* cos = cos_sin + positions[i] * 2 * half;
        turn(q + i * q_stride, q_heads, d, half, cos, cos + half);
        turn(k + i * k_stride, k_heads, d, half, cos, cos + half);
    }
}
