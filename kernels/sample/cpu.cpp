// Choosing tokens, step by step as reference.py numbers them, without sorting the vocabulary: weights are whole
// numbers, so any order of adding gives the same sums, and only the buckets in which a cut falls are sorted.
//
// It knows nothing of Python: shapes are checked before it is called.
#include "../simd.h"
#include <algorithm>
#include <math.h>
#include <vector>

namespace {

constexpr int64_t ONE = (int64_t)1 << 44;
constexpr double MAGIC = 6755399441055744.0;  // 1.5 * 2^52
constexpr int BUCKETS = 1024;                 // of z, 1/32 wide; the last one holds only weights of 0
constexpr int64_t STRIDE = 512;               // weights summed together while looking for the drawn token
constexpr int64_t NOT_A_NUMBER = -1, NO_TOKEN_LEFT = -2;

struct Params {  // the fields of params.py, in their order
    const float* temperature;
    const int32_t* top_k;
    const float *top_p, *min_p, *presence, *frequency, *repetition;
    const int64_t *seed, *position, *choice;
    const int32_t *output_start, *output_ids, *output_counts, *seen_start, *seen_ids, *bias_start, *bias_ids;
    const float* bias_values;
    const int32_t *banned_start, *banned_ids;
};

struct Scratch {
    std::vector<float> x;
    std::vector<int64_t> weights;
    std::vector<int32_t> members;
    int64_t counts[BUCKETS], masses[BUCKETS];
    explicit Scratch(int64_t v) : x((size_t)v), weights((size_t)v) {}
};

struct Cut {  // the last token that stays: value and id
    float x;
    int64_t id;
    bool keeps(float value, int64_t at) const { return value > x || (value == x && at <= id); }
};

INLINE int64_t bits(double v) { return __builtin_bit_cast(int64_t, v); }

INLINE int64_t weight(double z) {
    bool alive = z >= -31.0;
    z = alive ? z : 0.0;
    double shifted = z * 1.4426950408889634 + MAGIC, n = shifted - MAGIC;
    double r = (z - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
    double p = 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 1.0 / 2;
    p = p * r + 1.0;
    p = p * r + 1.0;
    double power = __builtin_bit_cast(double, (int64_t)((uint64_t)(bits(shifted) - bits(MAGIC) + 1023) << 52));
    int64_t whole = bits(p * power * (double)ONE + MAGIC) - bits(MAGIC);
    return alive ? whole : 0;
}

float highest_of(const float* x, int64_t v) {
    v8 best = splat(-INFINITY);
    int64_t i = 0;
    for (; i + 8 <= v; i += 8) best = larger(best, load(x + i));
    float m = largest(best);
    for (; i < v; i++) m = x[i] > m ? x[i] : m;
    return m;
}

bool broken(const float* x, int64_t v) {
    int bad = 0;
    for (int64_t i = 0; i < v; i++) bad |= !(x[i] < INFINITY);
    return bad;
}

void edit(float* x, const Params& p, int64_t row) {
    float repetition = p.repetition[row], frequency = p.frequency[row], presence = p.presence[row];
    for (int32_t i = p.seen_start[row]; i < p.seen_start[row + 1]; i++) {
        float* at = x + p.seen_ids[i];
        *at = *at > 0 ? *at / repetition : *at * repetition;
    }
    for (int32_t i = p.output_start[row]; i < p.output_start[row + 1]; i++) {
        float* at = x + p.output_ids[i];
        *at = *at - frequency * (float)p.output_counts[i] - presence;
    }
    for (int32_t i = p.bias_start[row]; i < p.bias_start[row + 1]; i++) x[p.bias_ids[i]] += p.bias_values[i];
    for (int32_t i = p.banned_start[row]; i < p.banned_start[row + 1]; i++) x[p.banned_ids[i]] = -INFINITY;
}

INLINE int bucket_of(double z) { return z > -31.96875 ? (int)(z * -32.0) : BUCKETS - 1; }

struct Row {
    Scratch& s;
    int64_t v;
    double highest, inverse;
    double z(int64_t i) const { return ((double)s.x[(size_t)i] - highest) * inverse; }

    void fill_buckets() {
        memset(s.counts, 0, sizeof s.counts);
        memset(s.masses, 0, sizeof s.masses);
        for (int64_t i = 0; i < v; i++) {
            int b = bucket_of(z(i));
            s.counts[b]++;
            s.masses[b] += s.weights[(size_t)i];
        }
    }

    void sort_bucket(int b) {
        s.members.clear();
        for (int64_t i = 0; i < v; i++)
            if (bucket_of(z(i)) == b) s.members.push_back((int32_t)i);
        const float* x = s.x.data();
        std::sort(s.members.begin(), s.members.end(),
                  [x](int32_t a, int32_t c) { return x[a] > x[c] || (x[a] == x[c] && a < c); });
    }

    // The k-th token of the order, and the sum of the weights up to it. All stay if it is in the bucket of zeros.
    Cut cut_at_count(int64_t k, int64_t* mass) {
        int64_t before = 0;
        *mass = 0;
        for (int b = 0; b < BUCKETS - 1; before += s.counts[b], *mass += s.masses[b], b++) {
            if (before + s.counts[b] < k) continue;
            sort_bucket(b);
            for (int64_t i = 0; i < k - before; i++) *mass += s.weights[(size_t)s.members[(size_t)i]];
            int64_t id = s.members[(size_t)(k - before - 1)];
            return {s.x[(size_t)id], id};
        }
        return {-INFINITY, v};
    }

    // The last token of the order before which the weights sum to less than limit.
    Cut cut_at_mass(int64_t limit) {
        int64_t before = 0;
        for (int b = 0; b < BUCKETS - 1; before += s.masses[b], b++) {
            if (before + s.masses[b] < limit) continue;
            sort_bucket(b);
            int64_t id = s.members[0];
            for (int32_t member : s.members) {
                if (before >= limit) break;
                id = member;
                before += s.weights[(size_t)member];
            }
            return {s.x[(size_t)id], id};
        }
        return {-INFINITY, v};
    }

    void truncate(int64_t k, float top_p, float min_p) {
        Cut by_count{-INFINITY, v}, by_mass{-INFINITY, v};
        bool counted = k > 0 && k < v, massed = top_p < 1.0f;
        if (counted || massed) {
            int64_t mass = 0;
            fill_buckets();
            if (counted) by_count = cut_at_count(k, &mass);
            else for (int b = 0; b < BUCKETS; b++) mass += s.masses[b];
            int64_t limit = (int64_t)((double)top_p * (double)mass);
            if (massed) by_mass = cut_at_mass(limit < 1 ? 1 : limit);
        }
        double least = (double)min_p * (double)ONE;
        for (int64_t i = 0; i < v; i++) {
            float x = s.x[(size_t)i];
            int64_t& w = s.weights[(size_t)i];
            if (!((double)w >= least && by_count.keeps(x, i) && by_mass.keeps(x, i))) w = 0;
        }
    }
};

uint64_t philox(uint64_t seed, uint32_t position, uint32_t choice) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32), c0 = position, c1 = choice, c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53 * c0, product1 = (uint64_t)0xCD9E8D57 * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)product0;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return (uint64_t)c1 << 32 | c0;
}

int64_t draw(const int64_t* weights, int64_t v, uint64_t random) {
    int64_t total = 0, running = 0;
    for (int64_t i = 0; i < v; i++) total += weights[i];
    int64_t target = (int64_t)((unsigned __int128)random * (uint64_t)total >> 64);
    for (int64_t i = 0; i < v; i += STRIDE) {
        int64_t end = i + STRIDE < v ? i + STRIDE : v, part = 0;
        for (int64_t j = i; j < end; j++) part += weights[j];
        if (running + part > target)
            for (int64_t j = i; j < end; j++)
                if ((running += weights[j]) > target) return j;
        running += part;
    }
    return NO_TOKEN_LEFT;
}

int64_t sample_row(const float* logits, int64_t v, const Params& p, int64_t row, Scratch& s) {
    if (broken(logits, v)) return NOT_A_NUMBER;
    float* x = s.x.data();
    memcpy(x, logits, sizeof(float) * (size_t)v);
    edit(x, p, row);
    float highest = highest_of(x, v);
    if (highest == -INFINITY) return NO_TOKEN_LEFT;
    if (p.temperature[row] == 0.0f) {
        for (int64_t i = 0; i < v; i++)
            if (x[i] == highest) return i;
    }
    double inverse = 1.0 / (double)p.temperature[row], top = highest;
    int64_t* w = s.weights.data();
    for (int64_t i = 0; i < v; i++) w[i] = weight(((double)x[i] - top) * inverse);
    if (p.top_k[row] > 0 || p.top_p[row] < 1.0f || p.min_p[row] > 0.0f)
        Row{s, v, top, inverse}.truncate(p.top_k[row], p.top_p[row], p.min_p[row]);
    return draw(w, v, philox((uint64_t)p.seed[row], (uint32_t)p.position[row], (uint32_t)p.choice[row]));
}

// The k largest in falling order, lower ids first among equals.
void largest_k(const float* x, int64_t v, int64_t k, int64_t* ids) {
    int64_t held = 0;
    for (int64_t i = 0; i < v; i++) {
        if (held == k && !(x[i] > x[ids[k - 1]])) continue;
        int64_t at = held < k ? held++ : k - 1;
        for (; at > 0 && x[i] > x[ids[at - 1]]; at--) ids[at] = ids[at - 1];
        ids[at] = i;
    }
}

}  // namespace

EXPORT void rt_sample(const float* logits, const Params* params, int64_t* out, int64_t rows, int64_t v, int num_threads) {
#pragma omp parallel num_threads(num_threads) if (rows > 1)
    {
        Scratch scratch(v);
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < rows; row++) out[row] = sample_row(logits + row * v, v, *params, row, scratch);
    }
}

EXPORT void rt_logprobs(const float* logits, const int64_t* token_ids, int64_t k, float* chosen, int64_t* top_ids, float* top,
                        int64_t rows, int64_t v, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1) if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const float* x = logits + row * v;
        double highest = highest_of(x, v);
        int64_t total = 0;
        for (int64_t i = 0; i < v; i++) total += weight((double)x[i] - highest);
        double normal = log((double)total * 0x1p-44);
        chosen[row] = (float)((double)x[token_ids[row]] - highest - normal);
        if (k > 0) largest_k(x, v, k, top_ids + row * k);
        for (int64_t i = 0; i < k; i++) top[row * k + i] = (float)((double)x[top_ids[row * k + i]] - highest - normal);
    }
}
