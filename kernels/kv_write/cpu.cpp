// Keys and values into the paged cache: k_cache [num_blocks][Hk][D][16], v_cache [num_blocks][Hk][16][D].
//
// It knows nothing of Python: shapes are checked before it is called.
#include "../parallel.h"
#include "../simd.h"

extern "C" {

struct rt_kv_write_args {
    const int64_t *num_rows, *slots;
    const float *k, *v;
    void *k_cache, *v_cache;
    int64_t k_stride, v_stride, heads, d, half;  // half: the caches are float16
};

}

namespace {

constexpr int64_t BLOCK = 16;

INLINE void put(float* to, float value) { *to = value; }
INLINE void put(uint16_t* to, float value) { *to = float_to_half(value); }

template <typename T>
void write(const float* k, const float* v, T* k_cache, T* v_cache, int64_t slot, int64_t heads, int64_t d) {
    for (int64_t h = 0; h < heads; h++, k += d, v += d) {
        int64_t start = (slot / BLOCK * heads + h) * BLOCK * d;
        T *keys = k_cache + start + slot % BLOCK, *values = v_cache + start + slot % BLOCK * d;
        for (int64_t i = 0; i < d; i++) {
            put(keys + i * BLOCK, k[i]);
            put(values + i, v[i]);
        }
    }
}

}  // namespace

EXPORT void rt_kv_write_body(const void* args, int tid, int nth) {
    const rt_kv_write_args& a = *(const rt_kv_write_args*)args;
    for (int64_t t = part(*a.num_rows, tid, nth); t < part(*a.num_rows, tid + 1, nth); t++) {
        const float *key = a.k + t * a.k_stride, *value = a.v + t * a.v_stride;
        if (a.half) write(key, value, (uint16_t*)a.k_cache, (uint16_t*)a.v_cache, a.slots[t], a.heads, a.d);
        else write(key, value, (float*)a.k_cache, (float*)a.v_cache, a.slots[t], a.heads, a.d);
    }
}

EXPORT void rt_kv_write(const float* k, int64_t k_stride, const float* v, int64_t v_stride, void* k_cache, void* v_cache,
                        const int64_t* slots, int64_t t, int64_t heads, int64_t d, int half, int num_threads) {
    rt_kv_write_args args{&t, slots, k, v, k_cache, v_cache, k_stride, v_stride, heads, d, half};
    in_parallel(rt_kv_write_body, &args, num_threads, t * heads * d <= 32768);
}
