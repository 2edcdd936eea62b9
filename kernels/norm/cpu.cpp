// RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight, each row summed in one fixed order.
//
// It knows nothing of Python: shapes are checked before it is called.
#include "../parallel.h"
#include "../simd.h"
#include <math.h>

extern "C" {

struct rt_norm_args {
    const int64_t* num_rows;  // tokens; a token has `groups` rows (heads, or 1) of d side by side
    const float* x;           // [T][x_stride]
    const float *residual, *weight;
    float *y, *total;         // y as x lies, or in x itself; residual and total [T][d], or null
    int64_t x_stride, y_stride, groups, d;
    float eps;
    int32_t add;              // 1: y += norm, 0: y = norm
};

}

namespace {

void row(const rt_norm_args& a, const float* in, float* y) {
    v8 squares = splat(0);
    float rest = 0;
    int64_t i = 0;
    for (; i + 8 <= a.d; i += 8) squares = fma(load(in + i), load(in + i), squares);
    for (; i < a.d; i++) rest = fma1(in[i], in[i], rest);
    float scale = 1.0f / sqrtf((sum(squares) + rest) / (float)a.d + a.eps);
    if (a.add) for (i = 0; i < a.d; i++) y[i] = y[i] + in[i] * scale * a.weight[i];
    else for (i = 0; i < a.d; i++) y[i] = in[i] * scale * a.weight[i];
}

}  // namespace

// With a residual, x + residual is written to total first and normalised; without, residual and total are null.
EXPORT void rt_norm_body(const void* args, int tid, int nth) {
    const rt_norm_args& a = *(const rt_norm_args*)args;
    for (int64_t t = part(*a.num_rows, tid, nth); t < part(*a.num_rows, tid + 1, nth); t++) {
        const float* in = a.x + t * a.x_stride;
        if (a.residual) {
            float* out = a.total + t * a.d;
            for (int64_t i = 0; i < a.d; i++) out[i] = a.residual[t * a.d + i] + in[i];
            in = out;
        }
        for (int64_t g = 0; g < a.groups; g++) row(a, in + g * a.d, a.y + t * a.y_stride + g * a.d);
    }
}

EXPORT void rt_rms_norm(const float* x, const float* residual, const float* weight, float* y, float* total, int64_t t, int64_t d,
                        float eps, int num_threads) {
    rt_norm_args args{&t, x, residual, weight, y, total, d, d, 1, d, eps, 0};
    in_parallel(rt_norm_body, &args, num_threads, t * d <= 65536);
}
