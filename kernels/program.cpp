// A recorded step: bodies one after another, all threads in each, in one parallel region from first to last.
//
// Between two bodies stands a barrier of its own, which costs 0.06 us where a region of its own costs 0.5 us. A thread that
// waits long gives its core away: another process may hold the one it waits for. It knows nothing of what bodies compute.
#include "parallel.h"
#include "simd.h"
#include <sched.h>

namespace {

constexpr int PATIENCE = 20000;  // pauses before a waiting thread yields

struct Barrier {
    alignas(64) int32_t arrived = 0;
    alignas(64) int32_t generation = 0;

    void wait(int32_t threads) {
        int32_t now = __atomic_load_n(&generation, __ATOMIC_RELAXED);
        if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == threads) {
            arrived = 0;
            __atomic_store_n(&generation, now + 1, __ATOMIC_RELEASE);
            return;
        }
        for (int spins = 0; __atomic_load_n(&generation, __ATOMIC_ACQUIRE) == now; spins++) {
            if (spins >= PATIENCE) sched_yield();
#ifdef ROADTRAIN_AVX2
            else _mm_pause();
#elif defined(ROADTRAIN_NEON)
            else asm volatile("yield");
#endif
        }
    }
};

}  // namespace

extern "C" {

struct rt_command {
    rt_body body;
    const void* args;
};

}

// Runs commands 0 to n; the counters bodies share work out with are set to zero first.
EXPORT void rt_run(const rt_command* commands, int64_t n, int64_t* counters, int64_t num_counters, int num_threads) {
    memset(counters, 0, sizeof(int64_t) * (size_t)num_counters);
    Barrier barrier;
#pragma omp parallel num_threads(num_threads)
    {
        const int tid = omp_get_thread_num(), nth = omp_get_num_threads();
        for (int64_t i = 0; i < n; i++) {
            commands[i].body(commands[i].args, tid, nth);
            if (nth > 1) barrier.wait(nth);
        }
    }
}
