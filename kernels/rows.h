// Rows of activations between two bodies: float32, int8 in groups of 32, int16 in groups of 32, whichever are asked for.
//
// A group holds whole numbers q with x = scale q, up to half a scale; scale = largest magnitude / 127 (32767 for int16). In int8
// the number of largest magnitude stands apart: its q is 0, `rest` is the number itself, and the others have steps made for
// them. Activations of language models have outliers, and one in 32 kept whole leaves a seventh of the divergence (docs/performance.md).
// sum is that of the 32 numbers as they are kept, which is what the min of a weight format is multiplied by. Rows are
// quantised each on its own, so nothing depends on the batch. It knows nothing of what the rows mean.
#pragma once

#include "lanes.h"
#include <math.h>

extern "C" {

struct rt_group {
    float scale, sum, rest, nothing;
    // Where four-bit weights (matmul/cpu_fast.h) have those that meet the number apart: bytes from the group's first nibbles, and
    // bits to the right. A shift by a vector takes 8 bytes.
    int64_t shift, offset;
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

// The first of the 32 numbers at x whose magnitude is `most`.
INLINE int64_t index_of(const float* x, float most) {
    int64_t i = 0;
    while (i < 31 && fabsf(x[i]) != most) i++;
    return i;
}

// The 32 numbers at x as group `group` of row `row`, in every form asked for but float32.
INLINE void quantize_group(const rt_rows& to, int64_t row, int64_t group, const float* x) {
    const int64_t at = row * to.width + group * 32, g = row * (to.width / 32) + group;
    float most = largest_magnitude(x);
    alignas(32) float others[32];
    for (int form = 1; form >= 0; form--) {
        if (form ? !to.q16 : !to.q8) continue;
        rt_group about = {0.0f, 0.0f, 0.0f, 0.0f, 0, 0};
        if (!form) {
            const int64_t apart = index_of(x, most);
            memcpy(others, x, sizeof others);
            about.rest = x[apart];
            about.shift = apart % 4 * 8 + apart / 16 * 4;
            about.offset = apart % 16 / 4 * 32;
            others[apart] = 0.0f;
            x = others;
            most = largest_magnitude(x);
        }
        const bool nothing = most < 1e-30f;
        const float range = form ? 32767.0f : 127.0f;
        about.scale = nothing ? 0.0f : most / range;
        const v8 inverse = splat(nothing ? 0.0f : range / most);
        const i8 i0 = nearest(load(x) * inverse), i1 = nearest(load(x + 8) * inverse);
        const i8 i2 = nearest(load(x + 16) * inverse), i3 = nearest(load(x + 24) * inverse);
        about.sum = fma1(about.scale, (float)whole_sum((i0 + i1) + (i2 + i3)), about.rest);
        if (form) {
            put_words(to.q16 + at, i0, i1);
            put_words(to.q16 + at + 16, i2, i3);
            to.q16_groups[g] = about;
        } else {
            put_bytes(to.q8 + at, i0, i1, i2, i3);
            to.q8_groups[g] = about;
        }
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
