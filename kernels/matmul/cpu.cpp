// y[t][n] = sum over k of x[t][k] w[n][k], one chain of additions in rising k for every element, whatever T is.
//
// Sixteen weight rows at a time are unpacked 256 weights deep into a panel that stays in the first cache, and up to
// six activation rows run over it with their sums in registers; between panels the sums rest, exactly, in y.
// It knows nothing of Python: shapes are checked before it is called.
#include "../parallel.h"
#include "unpack.h"
#include "unpack_avx2.h"

extern "C" {

struct rt_matmul_args {
    const int64_t* num_rows;
    const float* x;  // [T][k]
    const uint8_t* data;
    float* y;  // [T][ldy]
    const float* bias;  // [n], or null
    int64_t k, n, row_bytes, ldy, fmt;
    int64_t* counter;
    float* into;  // [T][n]: into += the finished product, or null
};

struct rt_unpack_args {
    const int64_t *num_rows, *ids;
    const uint8_t* data;
    float* y;  // [T][k]
    int64_t k, row_bytes, fmt;
    float scale;
};

struct rt_take_args {
    const int64_t *num_rows, *indices;
    const float* x;  // [T][k]
    float* y;  // [S][k]
    int64_t k;
};

}

namespace {

constexpr int64_t BLOCK_T = 96;  // activation rows whose panel products share one unpacking
constexpr int64_t ALONE = 200000;  // products that one thread does sooner than it can wake another

typedef rt_matmul_args Job;

// Rows row0 to row0 + rows (at most 16), weights k0 to k0 + kc (at most 256), into a panel.
template <int FMT>
void unpack_panel(const uint8_t* data, int64_t stride, int64_t rows, int64_t k0, int64_t kc, float* panel) {
#ifdef ROADTRAIN_AVX2
    if constexpr (packed(FMT)) {
        if (rows == PANEL_ROWS) {
            const uint8_t* p = data + byte_offset(FMT, k0);
            panel8<FMT>(p, stride, kc, panel);
            panel8<FMT>(p + 8 * stride, stride, kc, panel + 8);
            return;
        }
    }
#endif
    float line[PANEL_K];
    if (rows < PANEL_ROWS) memset(panel, 0, sizeof(float) * PANEL_ROWS * (size_t)kc);
    for (int64_t r = 0; r < rows; r++) {
        unpack_row<FMT>(data + r * stride, k0, kc, line);
        for (int64_t k = 0; k < kc; k++) panel[k * PANEL_ROWS + r] = line[k];
    }
}

template <int ROWS>
void tile(const float* x, int64_t ldx, const float* panel, int64_t kc, float* y, int64_t ldy, bool first) {
    v8 low[ROWS], high[ROWS];
    for (int r = 0; r < ROWS; r++) {
        low[r] = first ? splat(0) : load(y + r * ldy);
        high[r] = first ? splat(0) : load(y + r * ldy + 8);
    }
    for (int64_t k = 0; k < kc; k++) {
        v8 w0 = load(panel + k * PANEL_ROWS), w1 = load(panel + k * PANEL_ROWS + 8);
        for (int r = 0; r < ROWS; r++) {
            v8 a = splat(x[r * ldx + k]);
            low[r] = fma(a, w0, low[r]);
            high[r] = fma(a, w1, high[r]);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        store(y + r * ldy, low[r]);
        store(y + r * ldy + 8, high[r]);
    }
}

typedef void (*Tile)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);
constexpr Tile TILES[] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

#ifdef ROADTRAIN_AVX2
typedef void (*Few)(const uint8_t*, int64_t, const float*, int64_t, float*, int64_t);
template <int FMT>
constexpr Few FEW[] = {nullptr, few_rows<FMT, 1>, few_rows<FMT, 2>, few_rows<FMT, 3>, few_rows<FMT, 4>};
#endif

// Activation rows t0 to t1 times weight rows n0 to n0 + 16.
template <int FMT>
void product(const Job& job, int64_t t0, int64_t t1, int64_t n0, float* panel, float* edge) {
    int64_t rows = job.n - n0 < PANEL_ROWS ? job.n - n0 : PANEL_ROWS;
    bool whole = rows == PANEL_ROWS;
    float* y = whole ? job.y + t0 * job.ldy + n0 : edge;
    int64_t ldy = whole ? job.ldy : PANEL_ROWS;
#ifdef ROADTRAIN_AVX2
    if constexpr (packed(FMT)) {
        if (whole && t1 - t0 <= 4) {
            return FEW<FMT>[t1 - t0](job.data + n0 * job.row_bytes, job.row_bytes, job.x + t0 * job.k, job.k, y, ldy);
        }
    }
#endif
    for (int64_t k0 = 0; k0 < job.k; k0 += PANEL_K) {
        int64_t kc = job.k - k0 < PANEL_K ? job.k - k0 : PANEL_K;
        unpack_panel<FMT>(job.data + n0 * job.row_bytes, job.row_bytes, rows, k0, kc, panel);
        for (int64_t t = t0; t < t1;) {
            int64_t left = t1 - t, step = left >= 12 || left == 6 ? 6 : left > 6 ? (left + 1) / 2 : left;
            TILES[step](job.x + t * job.k + k0, job.k, panel, kc, y + (t - t0) * ldy, ldy, k0 == 0);
            t += step;
        }
    }
    if (!whole)
        for (int64_t t = t0; t < t1; t++)
            memcpy(job.y + t * job.ldy + n0, edge + (t - t0) * PANEL_ROWS, sizeof(float) * (size_t)rows);
}

// What comes after the product of one tile: the bias, then the sum it belongs to.
void finish(const Job& job, int64_t t0, int64_t t1, int64_t n0) {
    int64_t n1 = n0 + PANEL_ROWS < job.n ? n0 + PANEL_ROWS : job.n;
    for (int64_t t = t0; t < t1; t++) {
        float* y = job.y + t * job.ldy;
        if (job.bias) for (int64_t n = n0; n < n1; n++) y[n] += job.bias[n];
        if (job.into) for (int64_t n = n0; n < n1; n++) job.into[t * job.n + n] += y[n];
    }
}

template <int FMT>
void multiply(const Job& job, int nth) {
    const int64_t rows = *job.num_rows;
    int64_t blocks = (rows + BLOCK_T - 1) / BLOCK_T, tiles = (job.n + PANEL_ROWS - 1) / PANEL_ROWS;
    int64_t chunk = tiles / (nth * 8) + 1;
    alignas(64) float panel[PANEL_K * PANEL_ROWS];
    alignas(64) float edge[BLOCK_T * PANEL_ROWS];
    for (int64_t first; (first = take(job.counter, chunk)) < blocks * tiles;)
        for (int64_t task = first; task < first + chunk && task < blocks * tiles; task++) {
            int64_t t0 = task / tiles * BLOCK_T, t1 = t0 + BLOCK_T < rows ? t0 + BLOCK_T : rows;
            product<FMT>(job, t0, t1, task % tiles * PANEL_ROWS, panel, edge);
            finish(job, t0, t1, task % tiles * PANEL_ROWS);
        }
}

typedef void (*Multiply)(const Job&, int);
constexpr Multiply MULTIPLY[] = {multiply<Q8_0>, multiply<Q4_0>, multiply<Q4_1>, multiply<Q4_K>, multiply<Q5_K>,
                                 multiply<Q6_K>, multiply<F32>,  multiply<F16>,  multiply<BF16>};

typedef void (*UnpackRow)(const uint8_t*, int64_t, int64_t, float*);
constexpr UnpackRow UNPACK_ROW[] = {unpack_row<Q8_0>, unpack_row<Q4_0>, unpack_row<Q4_1>, unpack_row<Q4_K>, unpack_row<Q5_K>,
                                    unpack_row<Q6_K>, unpack_row<F32>,  unpack_row<F16>,  unpack_row<BF16>};

}  // namespace

EXPORT void rt_matmul_body(const void* args, int, int nth) {
    const Job& job = *(const Job*)args;
    MULTIPLY[job.fmt](job, nth);
}

EXPORT void rt_unpack_body(const void* args, int tid, int nth) {
    const rt_unpack_args& a = *(const rt_unpack_args*)args;
    for (int64_t t = part(*a.num_rows, tid, nth); t < part(*a.num_rows, tid + 1, nth); t++) {
        float* y = a.y + t * a.k;
        UNPACK_ROW[a.fmt](a.data + a.ids[t] * a.row_bytes, 0, a.k, y);
        if (a.scale != 1.0f) for (int64_t i = 0; i < a.k; i++) y[i] *= a.scale;
    }
}

EXPORT void rt_take_body(const void* args, int tid, int nth) {
    const rt_take_args& a = *(const rt_take_args*)args;
    for (int64_t t = part(*a.num_rows, tid, nth); t < part(*a.num_rows, tid + 1, nth); t++)
        memcpy(a.y + t * a.k, a.x + a.indices[t] * a.k, sizeof(float) * (size_t)a.k);
}

EXPORT void rt_matmul(const float* x, const uint8_t* data, float* y, int64_t t, int64_t k, int64_t n, int64_t row_bytes,
                      int fmt, int num_threads) {
    int64_t counter = 0;
    Job job{&t, x, data, y, nullptr, k, n, row_bytes, n, fmt, &counter, nullptr};
    in_parallel(rt_matmul_body, &job, num_threads, t * n * k <= ALONE);
}

// Rows `ids` of the weights, or the first t rows where ids is null. Returns 0, or 1 if an id is outside [0, n).
EXPORT int rt_unpack(const int64_t* ids, const uint8_t* data, float* y, int64_t t, int64_t k, int64_t n, int64_t row_bytes,
                     int fmt, int num_threads) {
    int bad = 0;
#pragma omp parallel for num_threads(num_threads) schedule(static) reduction(| : bad) if (t * k > 65536)
    for (int64_t i = 0; i < t; i++) {
        int64_t row = ids ? ids[i] : i;
        if (row < 0 || row >= n) bad |= 1;
        else UNPACK_ROW[fmt](data + row * row_bytes, 0, k, y + i * k);
    }
    return bad;
}
