// The instructions a variant needs beyond plain C++, to ask a compiler whether it knows them; nothing calls this.
//
// It knows nothing of kernels.
#include "matmul/dot.h"

#ifdef ROADTRAIN_FAST
__m256i rt_probe(__m256i sum, __m256i weights, const int8_t* bytes, const int16_t* words) {
    step<0, 0>(sum, weights, Six<int8_t>(bytes, 0));
    step<0, 0>(sum, weights, Six<int16_t>(words, 0));
    return sum;
}
#endif
