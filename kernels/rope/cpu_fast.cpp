// From the rows of the fused projection to turned queries, and turned keys and values in the paged cache, in one pass.
//
// Cache layout as in kernels/kv_write/layout.py, rotation as in kernels/rope (half-split pairs). Where keys are spread (int8),
// queries are as well. It knows nothing of layers.
#include "../kv_write/whole.h"
#include "../parallel.h"
#include "../rows.h"
#include <math.h>

extern "C" {

struct rt_fast_rope_args {
    const int64_t* num_rows;
    const float* qkv;  // [T][qkv_stride]: queries, keys, values, heads of d each
    int64_t qkv_stride;
    const float *q_norm, *k_norm;  // [d] weights of RMS norms over each head, or null
    const float* cos_sin;  // [P][rot_dim]: cosines, then sines
    const int64_t *positions, *slots;  // [T]
    float* q;  // [T][heads][d], turned and times q_scale; may be qkv itself with its stride
    int64_t q_stride;
    void *k_cache, *v_cache;
    int64_t heads, kv_heads, d, rot_dim, kind;  // kind of cache: see layout.h
    float q_scale, eps;
};

}

#ifdef ROADTRAIN_FAST

namespace {

INLINE void put(float* to, float value) { *to = value; }
INLINE void put(uint16_t* to, float value) { *to = float_to_half(value); }

// One head from x to y: normalised, turned, times scale.
void turn(const rt_fast_rope_args& a, const float* x, const float* weight, const float* cos, float scale, float* y) {
    const int64_t half = a.rot_dim / 2;
    const float* sin = cos + half;
    if (weight) {
        float squares = 0;
        for (int64_t i = 0; i < a.d; i++) squares = fma1(x[i], x[i], squares);
        const float factor = 1.0f / sqrtf(squares / (float)a.d + a.eps);
        for (int64_t i = 0; i < a.d; i++) y[i] = x[i] * factor * weight[i];
    } else if (y != x) memcpy(y, x, sizeof(float) * (size_t)a.d);
    for (int64_t i = 0; i < half; i++) {
        const float first = y[i], second = y[i + half];
        y[i] = first * cos[i] - second * sin[i];
        y[i + half] = second * cos[i] + first * sin[i];
    }
    if (scale != 1.0f) for (int64_t i = 0; i < a.d; i++) y[i] *= scale;
}

// Keys, which are written over, and values of one head to their token of a block.
template <typename T> INLINE void put_head(T* keys, T* values, int64_t token, const float* k, const float* v, int64_t d) {
    for (int64_t i = 0; i < d; i++) put(keys + token + i * BLOCK, k[i]);
    for (int64_t i = 0; i < d; i++) put(values + token * d + i, v[i]);
}

INLINE void put_head(int8_t* keys, int8_t* values, int64_t token, float* k, const float* v, int64_t d) {
    spread(k, d);
    words_of(keys)[token] = put_whole(keys + token * 2, 2 * BLOCK, 1, k, d);
    words_of(values)[token] = put_whole(values + token / 2 * 2 * d + token % 2, 4, 2, v, d);
}

template <typename T>
void remember(const rt_fast_rope_args& a, int64_t row, const float* k, const float* v, const float* cos, float* room) {
    const int64_t slot = a.slots[row], d = a.d;
    for (int64_t h = 0; h < a.kv_heads; h++) {
        const int64_t index = slot / BLOCK * a.kv_heads + h;
        turn(a, k + h * d, a.k_norm, cos, 1.0f, room);
        put_head(block_at<T>(a.k_cache, index, d), block_at<T>(a.v_cache, index, d), slot % BLOCK, room, v + h * d, d);
    }
}

}  // namespace

// Heads of at most 1024 numbers.
EXPORT void rt_fast_rope(const void* args, int tid, int nth) {
    const rt_fast_rope_args& a = *(const rt_fast_rope_args*)args;
    const int64_t rows = *a.num_rows;
    alignas(32) float room[1024];
    for (int64_t row = part(rows, tid, nth); row < part(rows, tid + 1, nth); row++) {
        const float *q = a.qkv + row * a.qkv_stride, *k = q + a.heads * a.d, *v = k + a.kv_heads * a.d;
        const float* cos = a.cos_sin + a.positions[row] * a.rot_dim;
        for (int64_t h = 0; h < a.heads; h++)
            turn(a, q + h * a.d, a.q_norm, cos, a.q_scale, a.q + row * a.q_stride + h * a.d);
        with_kind(a.kind, [&](auto number) {
            if (sizeof number == 1) for (int64_t h = 0; h < a.heads; h++) {
                float* query = a.q + row * a.q_stride + h * a.d;
                spread(query, a.d);
                for (int64_t i = 0; i < a.d; i++) query[i] *= unspread(a.d);
            }
            remember<decltype(number)>(a, row, k, v, cos, room);
        });
    }
}

#endif
