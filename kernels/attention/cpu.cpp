// Paged causal attention for ragged rows; scores and sums of each query run over the keys in rising order, block by
// block of 16, with a running maximum m and sum l:
//
//     m' = max(m, max s)    l' = l exp(m - m') + sum exp(s - m')    o' = o exp(m - m') + sum exp(s - m') v
//
// A query sees only its own blocks in its own order, so neither the tile it shares nor the chunk it came in matters.
// It knows nothing of Python: shapes are checked before it is called.
#include "../parallel.h"
#include "../simd.h"
#include <math.h>
#include <vector>

extern "C" {

struct rt_attention_args {
    const int64_t* num_rows;  // sequences
    const float* q;           // [T][q_stride]
    const void *k_cache, *v_cache;
    const int32_t *tables, *query_start, *seq_lens;
    float* out;  // [T][heads d]
    int64_t q_stride, table_stride, heads, kv_heads, d, window, half;  // half: the caches are float16
    int64_t* counter;
    float scale, softcap;
};

}

namespace {

constexpr int64_t BLOCK = 16;
constexpr int64_t TILE = 30;  // queries (tokens times heads of a group) that share one reading of a block
constexpr int STRIP = 6;      // queries whose scores stay in registers together
constexpr int64_t ALONE = 100000;  // products of scores that one thread does sooner than it can wake another

typedef rt_attention_args Job;

struct Task {
    int64_t row, kv_head, first, count;  // tokens first to first + count of the row's queries
};

struct Scratch {
    std::vector<float> q, out, weights, maximum, sums, keys, values;
    Scratch(int64_t queries, int64_t d)
        : q((size_t)(queries * d)), out(q.size()), weights((size_t)(queries * BLOCK)), maximum((size_t)queries),
          sums((size_t)(queries * 8)), keys((size_t)(d * BLOCK)), values(keys.size()) {}
};

const float* floats(const float* block, int64_t, float*) { return block; }
const float* floats(const uint16_t* block, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += 8) store(to + i, load_half(block + i));
    return to;
}

// Raw scores of ROWS queries against the 16 keys of a block.
template <int ROWS>
void score(const float* q, int64_t d, const float* keys, float* out) {
    v8 low[ROWS], high[ROWS];
    for (int r = 0; r < ROWS; r++) low[r] = high[r] = splat(0);
    for (int64_t i = 0; i < d; i++) {
        v8 k0 = load(keys + i * BLOCK), k1 = load(keys + i * BLOCK + 8);
        for (int r = 0; r < ROWS; r++) {
            v8 a = splat(q[r * d + i]);
            low[r] = fma(a, k0, low[r]);
            high[r] = fma(a, k1, high[r]);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        store(out + r * BLOCK, low[r]);
        store(out + r * BLOCK + 8, high[r]);
    }
}

typedef void (*Score)(const float*, int64_t, const float*, float*);
constexpr Score SCORES[] = {nullptr, score<1>, score<2>, score<3>, score<4>, score<5>, score<6>};

// Columns of W vectors: out = out * alpha + the weighted values of slots low to high.
template <int W>
INLINE void weigh_columns(const float* p, const float* values, int64_t d, int64_t low, int64_t high, float alpha, float* out) {
    v8 acc[W];
    for (int w = 0; w < W; w++) acc[w] = load(out + w * 8) * splat(alpha);
    for (int64_t j = low; j <= high; j++)
        for (int w = 0; w < W; w++) acc[w] = fma(splat(p[j]), load(values + j * d + w * 8), acc[w]);
    for (int w = 0; w < W; w++) store(out + w * 8, acc[w]);
}

void weigh(const float* p, const float* values, int64_t d, int64_t low, int64_t high, float alpha, float* out) {
    int64_t i = 0;
    for (; i + 64 <= d; i += 64) weigh_columns<8>(p, values + i, d, low, high, alpha, out + i);
    for (; i + 16 <= d; i += 16) weigh_columns<2>(p, values + i, d, low, high, alpha, out + i);
    for (; i + 8 <= d; i += 8) weigh_columns<1>(p, values + i, d, low, high, alpha, out + i);
    for (; i < d; i++) {
        float acc = out[i] * alpha;
        for (int64_t j = low; j <= high; j++) acc = fma1(p[j], values[j * d + i], acc);
        out[i] = acc;
    }
}

// One query and one block: raw scores in p become weights, maximum and sums are brought up to date. Returns exp(m - m').
float soften(const Job& job, float* p, int64_t low, int64_t high, float* maximum, float* sums) {
    v8 s0 = load(p) * splat(job.scale), s1 = load(p + 8) * splat(job.scale);
    if (job.softcap > 0) {
        s0 = splat(job.softcap) * tanh8(s0 / splat(job.softcap));
        s1 = splat(job.softcap) * tanh8(s1 / splat(job.softcap));
    }
    const i8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const int32_t from = (int32_t)low, to = (int32_t)high;
    s0 = select((lane >= from) & (lane <= to), s0, splat(-INFINITY));
    s1 = select((lane + 8 >= from) & (lane + 8 <= to), s1, splat(-INFINITY));
    float highest = largest(larger(s0, s1)), alpha = 1.0f;
    if (highest > *maximum) {
        alpha = exp8(splat(*maximum - highest))[0];
        *maximum = highest;
    }
    v8 e0 = exp8(s0 - splat(*maximum)), e1 = exp8(s1 - splat(*maximum));
    store(p, e0);
    store(p + 8, e1);
    store(sums, load(sums) * splat(alpha) + e0 + e1);
    return alpha;
}

template <typename T>
void block_step(const Job& job, const Task& task, Scratch& s, int64_t position, int64_t b, const T* keys, const T* values) {
    int64_t d = job.d, group = job.heads / job.kv_heads, start = b * BLOCK;
    int64_t from = start > position ? start - position : 0, until = task.count;  // tokens that see this block
    if (job.window > 0 && start + BLOCK - 1 + job.window - position < until) until = start + BLOCK - 1 + job.window - position;
    const float* k = floats(keys, d * BLOCK, s.keys.data());
    const float* v = floats(values, d * BLOCK, s.values.data());
    for (int64_t i = from * group; i < until * group;) {
        int64_t left = until * group - i, step = left < STRIP ? left : STRIP;
        SCORES[step](s.q.data() + i * d, d, k, s.weights.data() + i * BLOCK);
        i += step;
    }
    for (int64_t i = from * group; i < until * group; i++) {
        int64_t p = position + i / group, low = job.window > 0 ? p - job.window + 1 - start : 0, high = p - start;
        if (low < 0) low = 0;
        if (high > BLOCK - 1) high = BLOCK - 1;
        float* weights = s.weights.data() + i * BLOCK;
        float alpha = soften(job, weights, low, high, &s.maximum[(size_t)i], s.sums.data() + i * 8);
        weigh(weights, v, d, low, high, alpha, s.out.data() + i * d);
    }
}

template <typename T>
void run_task(const Job& job, const Task& task, Scratch& s) {
    int64_t d = job.d, group = job.heads / job.kv_heads, queries = task.count * group;
    int64_t token = job.query_start[task.row] + task.first;
    int64_t position = job.seq_lens[task.row] - (job.query_start[task.row + 1] - token);
    for (int64_t i = 0; i < task.count; i++)
        memcpy(s.q.data() + i * group * d, job.q + (token + i) * job.q_stride + task.kv_head * group * d,
               sizeof(float) * (size_t)(group * d));
    memset(s.out.data(), 0, sizeof(float) * (size_t)(queries * d));
    memset(s.sums.data(), 0, sizeof(float) * (size_t)(queries * 8));
    for (int64_t i = 0; i < queries; i++) s.maximum[(size_t)i] = -INFINITY;
    int64_t first = job.window > 0 && position >= job.window ? (position - job.window + 1) / BLOCK : 0;
    int64_t last = (position + task.count - 1) / BLOCK;
    const int32_t* table = job.tables + task.row * job.table_stride;
    for (int64_t b = first; b <= last; b++) {
        int64_t at = (table[b] * job.kv_heads + task.kv_head) * BLOCK * d;
        block_step(job, task, s, position, b, (const T*)job.k_cache + at, (const T*)job.v_cache + at);
    }
    for (int64_t i = 0; i < queries; i++) {
        float scale = 1.0f / sum(load(s.sums.data() + i * 8));
        float* out = job.out + ((token + i / group) * job.heads + task.kv_head * group + i % group) * d;
        for (int64_t c = 0; c < d; c++) out[c] = s.out[(size_t)(i * d + c)] * scale;
    }
}

// Later tokens first: they are the longest work.
std::vector<Task> plan(const Job& job, int64_t rows) {
    int64_t group = job.heads / job.kv_heads, tokens = group < TILE ? TILE / group : 1;
    std::vector<Task> tasks;
    for (int64_t row = 0; row < rows; row++) {
        int64_t count = job.query_start[row + 1] - job.query_start[row];
        for (int64_t first = (count - 1) / tokens * tokens; count > 0 && first >= 0; first -= tokens)
            for (int64_t h = 0; h < job.kv_heads; h++)
                tasks.push_back({row, h, first, count - first < tokens ? count - first : tokens});
    }
    return tasks;
}

}  // namespace

EXPORT void rt_attention_body(const void* args, int, int) {
    const Job& job = *(const Job*)args;
    const std::vector<Task> tasks = plan(job, *job.num_rows);
    const int64_t group = job.heads / job.kv_heads, queries = group < TILE ? TILE : group;
    Scratch scratch(queries, job.d);
    for (size_t i; (i = (size_t)take(job.counter, 1)) < tasks.size();) {
        if (job.half) run_task<uint16_t>(job, tasks[i], scratch);
        else run_task<float>(job, tasks[i], scratch);
    }
}

EXPORT void rt_attention(const float* q, int64_t q_stride, const void* k_cache, const void* v_cache, const int32_t* tables,
                         int64_t table_stride, const int32_t* query_start, const int32_t* seq_lens, float* out, int64_t rows,
                         int64_t heads, int64_t kv_heads, int64_t d, float scale, int64_t window, float softcap, int half,
                         int num_threads) {
    int64_t counter = 0, work = 0;
    Job job{&rows, q, k_cache, v_cache, tables, query_start, seq_lens, out, q_stride, table_stride, heads, kv_heads, d, window,
            half, &counter, scale, softcap};
    for (int64_t r = 0; r < rows; r++) work += (query_start[r + 1] - query_start[r]) * heads * d * seq_lens[r];
    in_parallel(rt_attention_body, &job, num_threads, work <= ALONE);
}
