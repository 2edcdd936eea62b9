// Rows of activations between two bodies: float32, int8 in groups of 32, int16 in groups of 32, whichever are asked for.
//
// A group holds whole numbers q with x = scale q, up to half a scale; scale = largest magnitude / 127 (32767 for int16). In int8
// the number of largest magnitude stands apart: its q is 0, `rest` is the number itself, and the others have steps made for
// them. Activations of language models have outliers, and one in 32 kept whole leaves a seventh of the divergence (docs/performance.md).
// sum is that of the 32 numbers as they are kept, which is what the min of a weight format is multiplied by. Rows are
// quantised each on its own, so nothing depends on the batch. It knows nothing of what the rows mean.
#pragma once

#include "lanes.h"

extern "C" {

struct rt_group {
    float scale, sum, rest, rest_there;
    // Where four-bit weights (matmul/cpu_fast.h) have those that meet the number apart: bytes from the group's first nibbles, and
    // bits to the right, or those bits themselves, for which rest_there is the number over their place value. A shift by a vector
    // takes 8 bytes.
    int64_t shift;
    int32_t offset;
    uint32_t bits;
};

struct rt_rows {
    float* y;  // [T][y_stride], or null
    int64_t y_stride;
    int8_t* q8;  // [T][width], or null
    rt_group* q8_groups;  // [T][width / 32]
    int16_t* q16;  // [T][width], or null
    rt_group* q16_groups;  // [T][width / 32]
    int64_t width;  // a multiple of 32 where q8 or q16 are asked for
};

}

#ifdef ROADTRAIN_FAST

// Scale, sum and whole numbers of 32 numbers; what stands apart of them is in `about` already.
INLINE void quantize(const v8* x, float range, rt_group& about, i8* q) {
    const float most = largest_magnitude(x);
    const bool nothing = most < 1e-30f;
    about.scale = nothing ? 0.0f : most / range;
    const v8 inverse = splat(nothing ? 0.0f : range / most);
    for (int i = 0; i < 4; i++) q[i] = nearest(x[i] * inverse);
    about.sum = fma1(about.scale, (float)whole_sum((q[0] + q[1]) + (q[2] + q[3])), about.rest);
}

// Which of 32 numbers is the first of magnitude `most`.
INLINE int index_of(const v8* x, float most) {
    uint32_t found = 1u << 31;
    for (int i = 0; i < 4; i++) found |= (uint32_t)bits_of(magnitude(x[i]) >= splat(most)) << 8 * i;
    return __builtin_ctz(found);
}

// The 32 numbers at x as group `group` of row `row`, in every form asked for but float32. Nothing is stored and read again in
// another width, and nothing branches on what the numbers are: either costs as much as all the rest.
INLINE void quantize_group(const rt_rows& to, int64_t row, int64_t group, const float* from) {
    const int64_t at = row * to.width + group * 32, g = row * (to.width / 32) + group;
    v8 x[4] = {load(from), load(from + 8), load(from + 16), load(from + 24)};
    i8 q[4];
    if (to.q16) {
        rt_group& about = to.q16_groups[g];
        about = {};
        quantize(x, 32767.0f, about, q);
        put_words(to.q16 + at, q[0], q[1]);
        put_words(to.q16 + at + 16, q[2], q[3]);
    }
    if (to.q8) {
        rt_group& about = to.q8_groups[g];
        const int apart = index_of(x, largest_magnitude(x));
        about.rest = from[apart];
        about.shift = apart % 4 * 8 + apart / 16 * 4;
        about.bits = 15u << about.shift;
        about.rest_there = about.rest / (float)(1u << about.shift);
        about.offset = apart % 16 / 4 * 32;
        for (int i = 0; i < 4; i++) x[i] = select(i8{0, 1, 2, 3, 4, 5, 6, 7} + 8 * i == apart, splat(0), x[i]);
        quantize(x, 127.0f, about, q);
        put_bytes(to.q8 + at, q[0], q[1], q[2], q[3]);
    }
}

// `count` numbers (a multiple of 32 where quantised forms are asked for) from column `first` on.
INLINE void put_row(const rt_rows& to, int64_t row, int64_t first, int64_t count, const float* x) {
    float* y = to.y ? to.y + row * to.y_stride + first : nullptr;
    if (y && y != x) memcpy(y, x, sizeof(float) * (size_t)count);
    if (to.q8 || to.q16)
        for (int64_t i = 0; i < count; i += 32) quantize_group(to, row, (first + i) / 32, x + i);
}

#endif
