// Gated activations: silu(g) u = g / (1 + exp(-g)) u, and gelu in its tanh form, which is g / (1 + exp(-2 z)) u with
// z = sqrt(2 / pi) (g + 0.044715 g^3). And gelu by itself in its first form, x (1 + erf(x / sqrt(2))) / 2, which is
// max(x, 0) - |x| erfc(|x| / sqrt(2)) / 2; erfc by Abramowitz and Stegun 7.1.26, which is off by 1.5e-7 at most.
//
// It knows nothing of Python: shapes are checked before it is called.
#include "../parallel.h"
#include "../simd.h"

extern "C" {

struct rt_gated_args {
    const int64_t* num_rows;
    const float* x;  // [T][x_stride], gate of f first, then up
    float* y;        // [T][f]
    int64_t x_stride, f, gelu;
};

struct rt_softcap_args {
    const int64_t* num_rows;
    float* x;  // [T][stride], in place
    int64_t stride, width;
    float cap;
};

}

namespace {

template <bool GELU>
v8 gated(v8 gate, v8 up) {
    v8 exponent = -gate;
    if (GELU) exponent = splat(-1.5957691216f) * fma(gate * gate * gate, splat(0.044715f), gate);
    return gate / (splat(1.0f) + exp8(exponent)) * up;
}

template <bool GELU>
void row(const float* gate, const float* up, float* out, int64_t f) {
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

v8 gelu_erf(v8 x) {
    const v8 size = larger(x, -x), z = size * splat(0.70710678119f);
    const v8 t = splat(1.0f) / fma(z, splat(0.3275911f), splat(1.0f));
    v8 p = fma(t, splat(1.061405429f), splat(-1.453152027f));
    p = fma(p, t, splat(1.421413741f));
    p = fma(p, t, splat(-0.284496736f));
    p = fma(p, t, splat(0.254829592f));
    return larger(x, splat(0.0f)) - size * (splat(0.5f) * p * t * exp8(-(z * z)));
}

struct plain_args {
    const float* x;
    float* y;
    int64_t n;
};

// Every element by the same operations, wherever it stands: the last ones of a thread are padded, not done otherwise.
void gelu_body(const void* args, int tid, int nth) {
    const plain_args& a = *(const plain_args*)args;
    int64_t i = part(a.n, tid, nth);
    const int64_t end = part(a.n, tid + 1, nth);
    for (; i + 8 <= end; i += 8) store(a.y + i, gelu_erf(load(a.x + i)));
    if (i < end) {
        v8 last = splat(0);
        memcpy(&last, a.x + i, sizeof(float) * (size_t)(end - i));
        last = gelu_erf(last);
        memcpy(a.y + i, &last, sizeof(float) * (size_t)(end - i));
    }
}

}  // namespace

EXPORT void rt_gated_body(const void* args, int tid, int nth) {
    const rt_gated_args& a = *(const rt_gated_args*)args;
    for (int64_t t = part(*a.num_rows, tid, nth); t < part(*a.num_rows, tid + 1, nth); t++) {
        const float* gate = a.x + t * a.x_stride;
        (a.gelu ? row<true> : row<false>)(gate, gate + a.f, a.y + t * a.f, a.f);
    }
}

// x = cap tanh(x / cap).
EXPORT void rt_softcap_body(const void* args, int tid, int nth) {
    const rt_softcap_args& a = *(const rt_softcap_args*)args;
    for (int64_t t = part(*a.num_rows, tid, nth); t < part(*a.num_rows, tid + 1, nth); t++) {
        float* x = a.x + t * a.stride;
        int64_t i = 0;
        for (; i + 8 <= a.width; i += 8) store(x + i, splat(a.cap) * tanh8(load(x + i) / splat(a.cap)));
        for (; i < a.width; i++) x[i] = (splat(a.cap) * tanh8(splat(x[i]) / splat(a.cap)))[0];
    }
}

namespace {

void run(const float* x, float* y, int64_t t, int64_t f, int gelu, int num_threads) {
    rt_gated_args args{&t, x, y, 2 * f, f, gelu};
    in_parallel(rt_gated_body, &args, num_threads, t * f <= 16384);
}

}  // namespace

EXPORT void rt_silu_mul(const float* x, float* y, int64_t t, int64_t f, int num_threads) { run(x, y, t, f, 0, num_threads); }
EXPORT void rt_gelu_mul(const float* x, float* y, int64_t t, int64_t f, int num_threads) { run(x, y, t, f, 1, num_threads); }
EXPORT void rt_gelu(const float* x, float* y, int64_t n, int num_threads) {
    plain_args args{x, y, n};
    in_parallel(gelu_body, &args, num_threads, n <= 16384);
}
