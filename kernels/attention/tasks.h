// How attention is shared out: the arguments, tasks of a few queries and one key head, and what a thread keeps for its task.
//
// It knows nothing of how scores are computed.
#pragma once

#include "../kv_write/layout.h"
#include "../parallel.h"
#include "../rows.h"
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

constexpr int64_t MOST = 48, STRIP = 6, CHUNK = 4, ROOM = 1 << 16, COLUMNS = 32;

struct Task {
    int64_t seq, kv_head, token, count, position;  // queries token to token + count of the batch, the first at `position`
};

// Room that a thread keeps from task to task. words, steps and masses are for whole numbers alone.
struct Scratch {
    std::vector<float> q, scores, out, block, factor, steps, masses;
    std::vector<int16_t> words, unpacked;
    template <typename T> static void grow(std::vector<T>& v, int64_t size) { if ((int64_t)v.size() < size) v.resize((size_t)size); }
};

// The first block that a query at `position` sees.
INLINE int64_t first_of(const rt_fast_attention_args& a, int64_t position) {
    return a.window > 0 && position >= a.window ? (position - a.window + 1) / BLOCK : 0;
}

// A task under way.
struct Frame {
    const rt_fast_attention_args& a;
    Scratch& s;
    Task task = {};
    int64_t group, queries = 0, last = 0, first_block = 0, blocks = 0, stride = 0;  // stride: floats in a row of scores

    Frame(const rt_fast_attention_args& args, Scratch& scratch) : a(args), s(scratch), group(a.heads / a.kv_heads) {}

    void enter(const Task& next) {
        task = next;
        queries = task.count * group;
        last = task.position + task.count - 1;
        first_block = first_of(a, task.position);
        blocks = last / BLOCK + 1 - first_block;
        stride = blocks * BLOCK + BLOCK;
        Scratch::grow(s.q, queries * a.d);
        Scratch::grow(s.out, queries * a.d);
        Scratch::grow(s.scores, queries * stride + 8);
        Scratch::grow(s.factor, queries);
        for (int64_t i = 0; i < task.count; i++)
            memcpy(s.q.data() + i * group * a.d, a.q + (task.token + i) * a.q_stride + task.kv_head * group * a.d,
                   sizeof(float) * (size_t)(group * a.d));
    }

    // Block `index` of those the task reads.
    template <typename T> const T* keys(int64_t index) const { return block_of<T>(a.k_cache, task, first_block + index); }
    template <typename T> const T* values(int64_t index) const { return block_of<T>(a.v_cache, task, first_block + index); }

    // What is read after the keys of block index - 1: more keys, then values.
    template <typename T> const T* after_keys(int64_t index) const {
        return index < blocks ? keys<T>(index) : values<T>(index - blocks < blocks ? index - blocks : 0);
    }

    // What is read after the values of block index - 1, the i-th of a few: more values, then the keys of the next task.
    template <typename T> const T* after_values(int64_t index, int64_t i, const Task* next) const {
        if (index < blocks) return values<T>(index);
        if (next && i < (sizeof(T) == 1 ? CHUNK : 2) && a.window == 0 && next->position >= BLOCK * i) return block_of<T>(a.k_cache, *next, i);
        return values<T>(blocks - 1);
    }

private:
    template <typename T> const T* block_of(const void* cache, const Task& of, int64_t index) const {
        return block_at<T>(cache, a.tables[of.seq * *a.table_stride + index] * a.kv_heads + of.kv_head, a.d);
    }
};

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

#endif
