// Keys and values into the paged cache: k_cache [num_blocks][Hk][D][16], v_cache [num_blocks][Hk][16][D].
//
// It knows nothing of Python: shapes are checked before it is called.
#include "../simd.h"

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

EXPORT void rt_kv_write(const float* k, int64_t k_stride, const float* v, int64_t v_stride, void* k_cache, void* v_cache,
                        const int64_t* slots, int64_t t, int64_t heads, int64_t d, int half, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static) if (t * heads * d > 32768)
    for (int64_t i = 0; i < t; i++) {
        const float *key = k + i * k_stride, *value = v + i * v_stride;
        if (half) write(key, value, (uint16_t*)k_cache, (uint16_t*)v_cache, slots[i], heads, d);
        else write(key, value, (float*)k_cache, (float*)v_cache, slots[i], heads, d);
    }
}
