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
