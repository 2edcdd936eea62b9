// Paged causal attention in two passes: all scores of a query first, then their exponentials, then the weighted values.
//
// Every sum has an order of its own, so the tile a query shares, the chunk it came in and the thread make no difference:
// blocks.h and whole_blocks.h say which. All query heads of a key head read a block together. So few single queries that
// threads would wait for each other are shared out finer, which changes no sum: the keys of a head in the body before, its
// columns in this one. It knows nothing of Python: shapes are checked before it is called.
#include "whole_blocks.h"
#include <math.h>

#ifdef ROADTRAIN_FAST

namespace {

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

template <typename T>
class Worker {
public:
    Worker(const rt_fast_attention_args& args, Scratch& scratch) : a(args), s(scratch), f(args, scratch) {}

    void run(const Task& task, const Task* after) {
        enter(task);
        kernel.score(f, 0, f.blocks, s.scores.data());
        finish(0, a.d, after);
    }

    // Only the scores of some of the task's blocks, into a buffer of rows of `row` floats.
    void score_some(const Task& task, int64_t from, int64_t to, float* scores, int64_t row) {
        enter(task);
        f.stride = row;
        kernel.score(f, from, to, scores);
    }

    // All but the scores, for the columns first to end of every head.
    void finish_some(const Task& task, int64_t first, int64_t end, const float* scores, int64_t row) {
        enter(task);
        for (int64_t i = 0; i < f.queries; i++)
            memcpy(s.scores.data() + i * f.stride, scores + i * row, sizeof(float) * (size_t)(f.blocks * BLOCK));
        finish(first, end, nullptr);
    }

private:
    void enter(const Task& task) {
        f.enter(task);
        kernel.enter(f);
    }

    void finish(int64_t first, int64_t end, const Task* after) {
        const int64_t begin = f.first_block * BLOCK;
        float* factor = s.factor.data();
        for (int64_t i = 0; i < f.queries; i++) {
            const int64_t high = f.task.position + i / f.group - begin, low = a.window > 0 ? high - a.window + 1 : 0;
            factor[i] = soften(s.scores.data() + i * f.stride, low < 0 ? 0 : low, high, f.blocks * BLOCK, a.softcap);
        }
        memset(s.out.data(), 0, sizeof(float) * (size_t)(f.queries * a.d));
        kernel.weigh(f, first, end, after);
        for (int64_t i = 0; i < f.queries; i++) {
            float* row = s.out.data() + i * a.d;
            for (int64_t c = first; c < end; c += 8) store(row + c, load(row + c) * splat(factor[i]));
            put_row(a.out, f.task.token + i / f.group, (f.task.kv_head * f.group + i % f.group) * a.d + first, end - first, row + first);
        }
    }

    const rt_fast_attention_args& a;
    Scratch& s;
    Frame f;
    Blocks<T> kernel;
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
