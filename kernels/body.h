// The convention every body of the fast path follows.
//
// rt_<name>(args, tid, nth) computes thread tid's share of nth: no OpenMP inside, no barrier, no allocation that outlives
// it; what must wait for all threads is another body. args point at a plain struct; counts that change from step to step
// are read through pointers, so that a recorded list of bodies serves any batch. A body that shares out work through a
// counter finds it zero and leaves it changed: whoever runs bodies zeroes counters. It knows nothing of programs.
#pragma once

extern "C" {

typedef void (*rt_body)(const void* args, int tid, int nth);

}
