// The instructions a variant needs beyond plain C++, to ask a compiler whether it knows them; nothing calls this.
//
// It knows nothing of kernels.
#include "simd.h"

#ifdef ROADTRAIN_FAST
#include "matmul/tiles.h"
Tile rt_probe() { return tile_q8<1, RT_Q8_MIN, true>; }
#endif
