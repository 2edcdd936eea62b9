// RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight, each row summed in one fixed order.
//
// It knows nothing of Python: shapes are checked before it is called.
#include "../simd.h"
#include <math.h>

// With a residual, x + residual is written to total first and normalised; without, residual and total are null.
EXPORT void rt_rms_norm(const float* x, const float* residual, const float* weight, float* y, float* total, int64_t t, int64_t d,
                        float eps, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static) if (t * d > 65536)
    for (int64_t row = 0; row < t; row++) {
        const float* in = x + row * d;
        if (residual) {
            float* out = total + row * d;
            for (int64_t i = 0; i < d; i++) out[i] = residual[row * d + i] + in[i];
            in = out;
        }
        v8 squares = splat(0);
        float rest = 0;
        int64_t i = 0;
        for (; i + 8 <= d; i += 8) squares = fma(load(in + i), load(in + i), squares);
        for (; i < d; i++) rest = fma1(in[i], in[i], rest);
        float scale = 1.0f / sqrtf((sum(squares) + rest) / (float)d + eps);
        for (i = 0; i < d; i++) y[row * d + i] = in[i] * scale * weight[i];
    }
}
