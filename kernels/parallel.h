// Running a body on the threads of OpenMP, and sharing work out inside one.
//
// It knows nothing of what bodies compute.
#pragma once

#include "body.h"
#include <omp.h>
#include <stdint.h>

// One body by itself; `alone` where a thread is done sooner than it can wake another.
static inline void in_parallel(rt_body body, const void* args, int num_threads, bool alone) {
#pragma omp parallel num_threads(num_threads) if (!alone)
    body(args, omp_get_thread_num(), omp_get_num_threads());
}

// The first of the next `count` things nobody has taken yet.
static inline int64_t take(int64_t* counter, int64_t count) { return __atomic_fetch_add(counter, count, __ATOMIC_RELAXED); }

// Thread tid's even part of n things: from its first to the next thread's first.
static inline int64_t part(int64_t n, int tid, int nth) { return n * tid / nth; }

// n things in runs: three quarters in even parts, which costs nothing, then shrinking runs of the rest to whoever is done, so
// that a thread whose core is slower or shared holds up the others less. Without a counter all is in even parts.
class Shares {
public:
    Shares(int64_t things, int64_t* runs, int64_t shortest, int tid, int nth)
        : n(things), counter(runs), least(shortest), threads(nth), even(runs ? things * 3 / 4 : things),
          from(part(even, tid, nth)), to(part(even, tid + 1, nth)) {}

    // The next run, first to end; false when there is none.
    bool next(int64_t* first, int64_t* end) {
        if (to == from && counter) {
            const int64_t left = n - even - __atomic_load_n(counter, __ATOMIC_RELAXED);
            if (left <= 0) return false;
            const int64_t count = left / (2 * threads) > least ? left / (2 * threads) : least;
            from = even + take(counter, count);
            to = from + count < n ? from + count : n;
        }
        *first = from, *end = to;
        from = to;
        return *first < *end;
    }

private:
    const int64_t n;
    int64_t* counter;
    const int64_t least, threads, even;
    int64_t from, to;
};
