// Paged causal attention in two passes: all scores of a query first, then their exponentials, then the weighted values.
//
// Every sum runs over keys in rising order, one chain per lane (keys 8 apart) or column, so the tile a query shares, the
// chunk it came in and the thread make no difference. All query heads of a key head read a block together; where more
// than six queries do, the block is first unpacked to float32. While a block is worked on, the one after is fetched,
// from keys to values to the next task. The scales of int8 come in after the scores and before the values: the sums, unpacked
// or not, are over whole numbers.
//
// So few single queries that threads would wait for each other are shared out finer, which changes no sum: the keys of a
// head in the body before, its columns in this one. It knows nothing of Python: shapes are checked before it is called.
#include "../kv_write/layout.h"
#include "../parallel.h"
#include "../rows.h"
#include <math.h>
#include <vector>

extern "C" {

struct rt_fast_attention_args {
    const int64_t* num_seqs;
    const float* q;  // [T][q_stride]: heads of d, already scaled
    int64_t q_stride;
    const void *k_cache, *v_cache;  // [num_blocks][kv_heads] blocks (layout.h) of [d][16], of [16][d]
    const int32_t* tables;  // [num_seqs][*table_stride]
    const int64_t* table_stride;
    const int32_t *query_start, *seq_lens;  // [num_seqs + 1], [num_seqs]
    rt_rows out;  // width heads d; d a multiple of 32 where it is quantised
    int64_t* counter;  // zero before the body
    int64_t heads, kv_heads, d, kind, window;  // d a multiple of 8; kind of cache: see layout.h; window 0: all
    float softcap;  // 0: none
    float* scores;  // null, or what rt_fast_attention_scores leaves here for rt_fast_attention
    int64_t room;  // floats in scores
};

}

#ifdef ROADTRAIN_FAST

namespace {

constexpr int64_t MOST = 48, STRIP = 6, CHUNK = 4, ROOM = 1 << 16, COLUMNS = 32;
#define EACH(r, count) _Pragma("GCC unroll 12") for (int r = 0; r < count; r++)

INLINE __m256 eight(const float* p) { return _mm256_loadu_ps(p); }
INLINE __m256 eight(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE __m256 eight(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
INLINE void fetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

// exp(x) for x at most 0, relative error below 2e-7; 0 below -87 (minus infinity included).
INLINE v8 exp_down(v8 x) {
    const v8 magic = splat(12582912.0f), z = (v8)_mm256_max_ps((__m256)x, (__m256)splat(-87.0f)), t = fma(z, splat(1.44269504f), magic);
    const v8 n = t - magic, r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), z));
    v8 p = fma(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + splat(1.0f);
    return (v8)(((i8)p + ((i8)t << 23)) & (x > splat(-87.0f)));
}

struct Task {
    int64_t seq, kv_head, token, count, position;  // queries token to token + count of the batch, the first at `position`
};

struct Scratch {
    std::vector<float> q, scores, out, block, factor;
};

// Raw scores of R queries against the 16 keys of each of B blocks. Blocks `next` are fetched on the way.
template <typename T, int R, int B>
void score(const float* q, int64_t d, const T* const* keys, const T* const* next, float* out, int64_t stride) {
    __m256 acc[R * B * 2];
    EACH(r, R * B * 2) acc[r] = _mm256_setzero_ps();
    for (int64_t i = 0; i < d; i++) {
        EACH(b, B) {
            if (i % (4 / sizeof(T)) == 0) fetch(next[b] + i * BLOCK);
            const __m256 k0 = eight(keys[b] + i * BLOCK), k1 = eight(keys[b] + i * BLOCK + 8);
            EACH(r, R) {
                const __m256 a = _mm256_broadcast_ss(q + r * d + i);
                acc[(r * B + b) * 2] = _mm256_fmadd_ps(a, k0, acc[(r * B + b) * 2]);
                acc[(r * B + b) * 2 + 1] = _mm256_fmadd_ps(a, k1, acc[(r * B + b) * 2 + 1]);
            }
        }
    }
    EACH(r, R) EACH(b, B) EACH(h, 2) _mm256_storeu_ps(out + r * stride + b * BLOCK + h * 8, acc[(r * B + b) * 2 + h]);
}

// out[r] += weights[r][16 b + j] values[b][j] for 8 W columns, blocks from first to last and slots up to `slots`.
template <typename T, int R, int W>
void weigh(const float* weights, int64_t stride, const T* const* values, const T* const* next, int64_t blocks, int64_t slots,
           int64_t d, float* out) {
    __m256 acc[R * W];
    EACH(r, R) EACH(w, W) acc[r * W + w] = _mm256_loadu_ps(out + r * d + w * 8);
    for (int64_t b = 0; b < blocks; b++) {
        const T *v = values[b], *ahead = next[b];
        const float* p = weights + b * BLOCK;
        const int64_t end = slots - b * BLOCK < BLOCK ? slots - b * BLOCK : BLOCK;
        for (int64_t j = 0; j < end; j++, v += d, ahead += d) {
            __m256 column[W];
            EACH(w, W) {
                if (w % (8 / sizeof(T)) == 0) fetch(ahead + w * 8);
                column[w] = eight(v + w * 8);
            }
            EACH(r, R) {
                const __m256 a = _mm256_broadcast_ss(p + r * stride + j);
                EACH(w, W) acc[r * W + w] = _mm256_fmadd_ps(a, column[w], acc[r * W + w]);
            }
        }
    }
    EACH(r, R) EACH(w, W) _mm256_storeu_ps(out + r * d + w * 8, acc[r * W + w]);
}

template <typename T, int R>
void weigh_rows(const float* weights, int64_t stride, const T* const* values, const T* const* next, int64_t blocks,
                int64_t slots, int64_t d, int64_t i, int64_t end, float* out) {
    constexpr int W = R == 1 ? 8 : R <= 3 ? 4 : 2;
    const T *v[CHUNK], *n[CHUNK];
    auto at = [&](int64_t column) {
        for (int64_t b = 0; b < blocks; b++) {
            v[b] = values[b] + column;
            n[b] = next[b] + column;
        }
    };
    for (; i + 8 * W <= end; i += 8 * W) at(i), weigh<T, R, W>(weights, stride, v, n, blocks, slots, d, out + i);
    for (; i < end; i += 8) at(i), weigh<T, R, 1>(weights, stride, v, n, blocks, slots, d, out + i);
}

template <typename T, int B>
void score_strip(int64_t rows, const float* q, int64_t d, const T* const* keys, const T* const* next, float* out, int64_t stride) {
    switch (rows) {
        case 1: return score<T, 1, B>(q, d, keys, next, out, stride);
        case 2: return score<T, 2, B>(q, d, keys, next, out, stride);
        case 3: return score<T, 3, B>(q, d, keys, next, out, stride);
        case 4: return score<T, 4, 1>(q, d, keys, next, out, stride);
        case 5: return score<T, 5, 1>(q, d, keys, next, out, stride);
        default: return score<T, 6, 1>(q, d, keys, next, out, stride);
    }
}

template <typename T>
void weigh_strip(int64_t rows, const float* weights, int64_t stride, const T* const* values, const T* const* next, int64_t blocks,
                 int64_t slots, int64_t d, int64_t first, int64_t end, float* out) {
    switch (rows) {
        case 1: return weigh_rows<T, 1>(weights, stride, values, next, blocks, slots, d, first, end, out);
        case 2: return weigh_rows<T, 2>(weights, stride, values, next, blocks, slots, d, first, end, out);
        case 3: return weigh_rows<T, 3>(weights, stride, values, next, blocks, slots, d, first, end, out);
        case 4: return weigh_rows<T, 4>(weights, stride, values, next, blocks, slots, d, first, end, out);
        case 5: return weigh_rows<T, 5>(weights, stride, values, next, blocks, slots, d, first, end, out);
        default: return weigh_rows<T, 6>(weights, stride, values, next, blocks, slots, d, first, end, out);
    }
}

// Scores of the slots low to high become exponentials, all others of [0, padded) zero. Returns 1 / their sum.
float soften(float* s, int64_t low, int64_t high, int64_t padded, float softcap) {
    const i8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    v8 most = splat(-INFINITY);
    const int64_t first = low / 8 * 8;
    for (int64_t j = first; j <= high; j += 8) {
        v8 x = load(s + j);
        if (softcap > 0) x = splat(softcap) * tanh8(x / splat(softcap));
        if (j < low || j + 7 > high) x = select((lane >= (int32_t)(low - j)) & (lane <= (int32_t)(high - j)), x, splat(-INFINITY));
        store(s + j, x);
        most = (v8)_mm256_max_ps((__m256)most, (__m256)x);
    }
    const v8 top = splat(largest(most));
    v8 total = splat(0);
    for (int64_t j = first; j <= high; j += 8) {
        const v8 e = exp_down(load(s + j) - top);
        store(s + j, e);
        total = total + e;
    }
    memset(s, 0, sizeof(float) * (size_t)first);
    for (int64_t j = high / 8 * 8 + 8; j < padded; j += 8) store(s + j, splat(0));
    return 1.0f / sum(total);
}

// The first block that a query at `position` sees.
INLINE int64_t first_of(const rt_fast_attention_args& a, int64_t position) {
    return a.window > 0 && position >= a.window ? (position - a.window + 1) / BLOCK : 0;
}

// Tasks in order of their number; each thread asks for rising numbers only.
class Tasks {
public:
    explicit Tasks(const rt_fast_attention_args& args) : a(args) { enter(0); }

    // The next number's task; false when there are no more.
    bool next(Task& task) {
        const int64_t number = take(a.counter, 1);
        while (seq < *a.num_seqs && number >= before + tiles * a.kv_heads) {
            before += tiles * a.kv_heads;
            enter(seq + 1);
        }
        if (seq >= *a.num_seqs) return false;
        // The last queries of a row see most: they go first.
        const int64_t tile = tiles - 1 - (number - before) / a.kv_heads, first = tile * per;
        task = {seq, (number - before) % a.kv_heads, a.query_start[seq] + first, count - first < per ? count - first : per,
                a.seq_lens[seq] - count + first};
        return true;
    }

private:
    void enter(int64_t at) {
        seq = at;
        if (seq >= *a.num_seqs) return;
        const int64_t group = a.heads / a.kv_heads, most = ROOM / ((a.seq_lens[seq] + BLOCK) * group);
        count = a.query_start[seq + 1] - a.query_start[seq];
        per = MOST / group < most ? MOST / group : most;
        if (per > (count + 1) / 2) per = (count + 1) / 2;  // a short chunk still gives every thread something
        if (per < 1) per = 1;
        tiles = (count + per - 1) / per;
    }

    const rt_fast_attention_args& a;
    int64_t seq = 0, before = 0, count = 0, per = 1, tiles = 0;
};

template <typename T>
class Worker {
public:
    Worker(const rt_fast_attention_args& args, Scratch& scratch) : a(args), s(scratch), group(a.heads / a.kv_heads) {}

    void run(const Task& task, const Task* after) {
        enter(task);
        score_blocks(task, 0, blocks, s.scores.data());
        finish(task, 0, a.d, after);
    }

    // Only the scores of some of the task's blocks, into a buffer of rows of `row` floats.
    void score_some(const Task& task, int64_t from, int64_t to, float* scores, int64_t row) {
        enter(task);
        stride = row;
        score_blocks(task, from, to, scores);
    }

    // All but the scores, for the columns first to end of every head.
    void finish_some(const Task& task, int64_t first, int64_t end, const float* scores, int64_t row) {
        enter(task);
        for (int64_t i = 0; i < queries; i++)
            memcpy(s.scores.data() + i * stride, scores + i * row, sizeof(float) * (size_t)(blocks * BLOCK));
        finish(task, first, end, nullptr);
    }

private:
    const T* block_of(const void* cache, const Task& task, int64_t index) const {
        return block_at<T>(cache, a.tables[task.seq * *a.table_stride + index] * a.kv_heads + task.kv_head, a.d);
    }

    void enter(const Task& task) {
        queries = task.count * group;
        last = task.position + task.count - 1;
        first_block = first_of(a, task.position);
        blocks = last / BLOCK + 1 - first_block;
        stride = blocks * BLOCK + BLOCK;
        reserve();
        for (int64_t i = 0; i < task.count; i++)
            memcpy(s.q.data() + i * group * a.d, a.q + (task.token + i) * a.q_stride + task.kv_head * group * a.d,
                   sizeof(float) * (size_t)(group * a.d));
    }

    void finish(const Task& task, int64_t first, int64_t end, const Task* after) {
        float* factor = s.factor.data();
        for (int64_t i = 0; i < queries; i++) {
            const int64_t high = task.position + i / group - first_block * BLOCK, low = a.window > 0 ? high - a.window + 1 : 0;
            factor[i] = soften(s.scores.data() + i * stride, low < 0 ? 0 : low, high, blocks * BLOCK, a.softcap);
        }
        memset(s.out.data(), 0, sizeof(float) * (size_t)(queries * a.d));
        weigh_blocks(task, last - first_block * BLOCK + 1, first, end, after);
        for (int64_t i = 0; i < queries; i++) {
            float* row = s.out.data() + i * a.d;
            for (int64_t c = first; c < end; c += 8) store(row + c, load(row + c) * splat(factor[i]));
            put_row(a.out, task.token + i / group, (task.kv_head * group + i % group) * a.d + first, end - first, row + first);
        }
    }

    void reserve() {
        auto grow = [](std::vector<float>& v, int64_t size) { if ((int64_t)v.size() < size) v.resize((size_t)size); };
        grow(s.q, queries * a.d);
        grow(s.out, queries * a.d);
        grow(s.scores, queries * stride + 8);
        grow(s.block, BLOCK * a.d);
        grow(s.factor, queries);
    }

    const float* unpacked(const T* block) {
        float* to = s.block.data();
        for (int64_t i = 0, count = BLOCK * a.d; i < count; i += 16) {
            const __m256 x0 = eight(block + i), x1 = eight(block + i + 8);
            _mm256_storeu_ps(to + i, x0);
            _mm256_storeu_ps(to + i + 8, x1);
        }
        return to;
    }

    // The numbers that queries have for the 16 tokens of `block`, times the scales of those tokens, if there are any.
    void scale(float* rows, const T* block) const {
        if (!scale_bytes<T>()) return;
        const v8 low = load(scales_of(block)), high = load(scales_of(block) + 8);
        for (int64_t i = 0; i < queries; i++, rows += stride) {
            store(rows, load(rows) * low);
            store(rows + 8, load(rows + 8) * high);
        }
    }

    void score_blocks(const Task& task, int64_t from, int64_t to, float* scores) {
        const int64_t pair = queries <= 3 ? 2 : 1;
        for (int64_t b = from; b < to;) {
            const int64_t some = b + pair <= to ? pair : 1;
            const T *keys[2], *next[2];
            for (int64_t i = 0; i < some; i++) {
                const int64_t ahead = b + some + i;
                keys[i] = block_of(a.k_cache, task, first_block + b + i);
                next[i] = ahead < blocks ? block_of(a.k_cache, task, first_block + ahead)
                                         : block_of(a.v_cache, task, first_block + (ahead - blocks < blocks ? ahead - blocks : 0));
                if (scale_bytes<T>()) fetch(scales_of(next[i]));
            }
            float* out = scores + b * BLOCK;
            if (queries > STRIP) {
                const float *whole = unpacked(keys[0]), *nothing = whole;
                for (int64_t i = 0; i < queries; i += STRIP)
                    score_strip<float, 1>(queries - i, s.q.data() + i * a.d, a.d, &whole, &nothing, out + i * stride, stride);
            } else if (some == 2) score_strip<T, 2>(queries, s.q.data(), a.d, keys, next, out, stride);
            else score_strip<T, 1>(queries, s.q.data(), a.d, keys, next, out, stride);
            for (int64_t i = 0; i < some; i++) scale(out + i * BLOCK, keys[i]);
            b += some;
        }
    }

    void weigh_blocks(const Task& task, int64_t slots, int64_t first, int64_t end, const Task* after) {
        const int64_t chunk = queries > STRIP ? 1 : CHUNK;
        for (int64_t b = 0; b < blocks; b += chunk) {
            const int64_t some = blocks - b < chunk ? blocks - b : chunk;
            const T *values[CHUNK], *next[CHUNK];
            for (int64_t i = 0; i < some; i++) {
                values[i] = block_of(a.v_cache, task, first_block + b + i);
                next[i] = b + some + i < blocks ? block_of(a.v_cache, task, first_block + b + some + i) : values[i];
                if (b + some + i >= blocks && after && i < 2 && a.window == 0 && after->position >= BLOCK * i)
                    next[i] = block_of(a.k_cache, *after, i);
                if (scale_bytes<T>()) fetch(scales_of(next[i]));
            }
            float* weights = s.scores.data() + b * BLOCK;
            for (int64_t i = 0; i < some; i++) scale(weights + i * BLOCK, values[i]);
            if (queries > STRIP) {
                const float *whole = unpacked(values[0]), *nothing = whole;
                for (int64_t i = 0; i < queries; i += STRIP)
                    weigh_strip<float>(queries - i, weights + i * stride, stride, &whole, &nothing, 1, slots - b * BLOCK, a.d,
                                       first, end, s.out.data() + i * a.d);
            } else weigh_strip<T>(queries, weights, stride, values, next, some, slots - b * BLOCK, a.d, first, end, s.out.data());
        }
    }

    const rt_fast_attention_args& a;
    Scratch& s;
    int64_t group, queries = 0, last = 0, first_block = 0, blocks = 0, stride = 0;
};

// Single queries so few that whole heads cannot be shared out evenly; all threads and both bodies agree on it.
struct Few {
    bool yes = false;
    int64_t tasks = 0, row = 0, blocks = 0;  // floats in a row of scores; blocks of all tasks
    Few(const rt_fast_attention_args& a, int nth) : tasks(*a.num_seqs * a.kv_heads) {
        const int64_t group = a.heads / a.kv_heads;
        if (!a.scores || tasks % nth == 0 || tasks > 4 * nth || group > STRIP || a.d % COLUMNS) return;
        for (int64_t seq = 0; seq < *a.num_seqs; seq++) {
            if (a.query_start[seq + 1] - a.query_start[seq] != 1) return;
            const int64_t own = blocks_of(a, seq);
            blocks += own * a.kv_heads;
            if (own * BLOCK + BLOCK > row) row = own * BLOCK + BLOCK;
        }
        yes = tasks * group * row <= a.room;
    }
    static int64_t blocks_of(const rt_fast_attention_args& a, int64_t seq) {
        return (a.seq_lens[seq] - 1) / BLOCK + 1 - first_of(a, a.seq_lens[seq] - 1);
    }
    static Task task_of(const rt_fast_attention_args& a, int64_t number) {
        const int64_t seq = number / a.kv_heads;
        return {seq, number % a.kv_heads, a.query_start[seq], 1, a.seq_lens[seq] - 1};
    }
    float* scores(const rt_fast_attention_args& a, int64_t number) const { return a.scores + number * (a.heads / a.kv_heads) * row; }
};

Scratch& scratch() {
    thread_local Scratch own;
    return own;
}

// Blocks of all tasks end to end, an even part for every thread.
template <typename T>
void score_few(const rt_fast_attention_args& a, const Few& few, int tid, int nth) {
    Worker<T> worker(a, scratch());
    const int64_t low = part(few.blocks, tid, nth), high = part(few.blocks, tid + 1, nth);
    for (int64_t number = 0, before = 0; number < few.tasks; number++) {
        const int64_t own = Few::blocks_of(a, number / a.kv_heads), from = low > before ? low - before : 0;
        const int64_t to = high - before < own ? high - before : own;
        if (from < to) worker.score_some(Few::task_of(a, number), from, to, few.scores(a, number), few.row);
        before += own;
    }
}

// Columns of all tasks end to end.
template <typename T>
void finish_few(const rt_fast_attention_args& a, const Few& few, int tid, int nth) {
    Worker<T> worker(a, scratch());
    const int64_t per = a.d / COLUMNS, low = part(few.tasks * per, tid, nth), high = part(few.tasks * per, tid + 1, nth);
    for (int64_t number = low / per; number * per < high; number++) {
        const int64_t from = low > number * per ? low - number * per : 0, to = high - number * per < per ? high - number * per : per;
        worker.finish_some(Few::task_of(a, number), from * COLUMNS, to * COLUMNS, few.scores(a, number), few.row);
    }
}

template <typename T>
void work(const rt_fast_attention_args& a) {
    Tasks tasks(a);
    Worker<T> worker(a, scratch());
    Task task, after;
    for (bool more = tasks.next(task); more; task = after) {
        more = tasks.next(after);
        worker.run(task, more ? &after : nullptr);
    }
}

}  // namespace

// Before rt_fast_attention, with the same arguments: nothing at all unless queries are few.
EXPORT void rt_fast_attention_scores(const void* args, int tid, int nth) {
    const rt_fast_attention_args& a = *(const rt_fast_attention_args*)args;
    const Few few(a, nth);
    if (!few.yes) return;
    with_kind(a.kind, [&](auto number) { score_few<decltype(number)>(a, few, tid, nth); });
}

EXPORT void rt_fast_attention(const void* args, int tid, int nth) {
    const rt_fast_attention_args& a = *(const rt_fast_attention_args*)args;
    const Few few(a, nth);
    with_kind(a.kind, [&](auto number) {
        if (few.yes) finish_few<decltype(number)>(a, few, tid, nth);
        else work<decltype(number)>(a);
    });
}

#endif
