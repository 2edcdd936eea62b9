// Adding, RMS normalising and quantising rows in one pass over them, and quantising alone.
//
// It knows nothing of layers.
#include "../parallel.h"
#include "../rows.h"
#include <math.h>

extern "C" {

struct rt_fast_norm_args {
    const int64_t* num_rows;
    const int64_t* wanted;  // [rows] rows of x and add, or null for all in order
    const float* x;
    int64_t x_stride;
    const float* add;  // null, or added to x first
    int64_t add_stride;
    float* total;  // where x + add goes, x_stride apart; may be x or add itself
    const float* weight;  // [out.width]
    rt_rows out;
    float eps;
};

struct rt_fast_quantize_args {
    const int64_t* num_rows;
    const float* x;
    int64_t x_stride;
    rt_rows out;
};

}

#ifdef ROADTRAIN_FAST

namespace {

constexpr int64_t PIECE = 32;

float square_sum(const float* x, int64_t width) {
    v8 a = splat(0), b = splat(0);
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
        v8 x0 = load(x + i), x1 = load(x + i + 8);
        a = fma(x0, x0, a);
        b = fma(x1, x1, b);
    }
    float total = sum(a + b);
    for (; i < width; i++) total = fma1(x[i], x[i], total);
    return total;
}

void add_rows(const float* x, const float* add, int64_t width, float* total) {
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) store(total + i, load(x + i) + load(add + i));
    for (; i < width; i++) total[i] = x[i] + add[i];
}

}  // namespace

EXPORT void rt_fast_norm(const void* args, int tid, int nth) {
    const rt_fast_norm_args& a = *(const rt_fast_norm_args*)args;
    const int64_t rows = *a.num_rows, width = a.out.width;
    alignas(32) float piece[PIECE];
    for (int64_t row = part(rows, tid, nth); row < part(rows, tid + 1, nth); row++) {
        const int64_t from = a.wanted ? a.wanted[row] : row;
        const float* x = a.x + from * a.x_stride;
        if (a.add) {
            float* total = a.total + row * a.x_stride;
            add_rows(x, a.add + from * a.add_stride, width, total);
            x = total;
        }
        const float scale = 1.0f / sqrtf(square_sum(x, width) / (float)width + a.eps);
        for (int64_t i = 0; i < width; i += PIECE) {
            const int64_t count = width - i < PIECE ? width - i : PIECE;
            int64_t j = 0;
            for (; j + 8 <= count; j += 8) store(piece + j, load(x + i + j) * splat(scale) * load(a.weight + i + j));
            for (; j < count; j++) piece[j] = x[i + j] * scale * a.weight[i + j];
            put_row(a.out, row, i, count, piece);
        }
    }
}

EXPORT void rt_fast_quantize(const void* args, int tid, int nth) {
    const rt_fast_quantize_args& a = *(const rt_fast_quantize_args*)args;
    const int64_t rows = *a.num_rows;
    for (int64_t row = part(rows, tid, nth); row < part(rows, tid + 1, nth); row++)
        put_row(a.out, row, 0, a.out.width, a.x + row * a.x_stride);
}

#endif
