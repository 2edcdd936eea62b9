// Gated activations: silu(g) u = g / (1 + exp(-g)) u, and gelu in its tanh form, which is g / (1 + exp(-2 z)) u with
// z = sqrt(2 / pi) (g + 0.044715 g^3).
//
// It knows nothing of Python: shapes are checked before it is called.
#include "../simd.h"

namespace {

template <bool GELU>
v8 gated(v8 gate, v8 up) {
    v8 exponent = -gate;
    if (GELU) exponent = splat(-1.5957691216f) * fma(gate * gate * gate, splat(0.044715f), gate);
    return gate / (splat(1.0f) + exp8(exponent)) * up;
}

template <bool GELU>
void run(const float* x, float* y, int64_t t, int64_t f, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static) if (t * f > 16384)
    for (int64_t row = 0; row < t; row++) {
        const float *gate = x + row * 2 * f, *up = gate + f;
        float* out = y + row * f;
        int64_t i = 0;
        for (; i + 8 <= f; i += 8) store(out + i, gated<GELU>(load(gate + i), load(up + i)));
        if (i < f) {
            v8 last_gate = splat(0), last_up = splat(0);
            size_t bytes = sizeof(float) * (size_t)(f - i);
            memcpy(&last_gate, gate + i, bytes);
            memcpy(&last_up, up + i, bytes);
            v8 last = gated<GELU>(last_gate, last_up);
            memcpy(out + i, &last, bytes);
        }
    }
}

}  // namespace

EXPORT void rt_silu_mul(const float* x, float* y, int64_t t, int64_t f, int num_threads) { run<false>(x, y, t, f, num_threads); }
EXPORT void rt_gelu_mul(const float* x, float* y, int64_t t, int64_t f, int num_threads) { run<true>(x, y, t, f, num_threads); }
