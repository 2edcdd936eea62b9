// Choosing tokens, step by step as reference.py numbers them, without sorting the vocabulary: weights are whole
// numbers, so any order of adding gives the same sums. Where the cuts fall among the likely tokens, as they nearly always
// do, only those are sorted; elsewhere all go into buckets and the buckets in which a cut falls are sorted.
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
constexpr double REACHES[] = {4.0, 10.0};     // of z: which tokens count as likely, tried in turn
constexpr size_t MOST_LIKELY = 4096;
constexpr int64_t STRIDE = 256;               // weights summed together while looking for the drawn token
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
    std::vector<int64_t> weights, parts;
    std::vector<int32_t> members;
    int64_t counts[BUCKETS], masses[BUCKETS];
    explicit Scratch(int64_t v) : x((size_t)v), weights((size_t)(v + STRIDE)), parts((size_t)(v / STRIDE + 1)) {}
};

struct Cut {  // the last token that stays: value and id
    float x;
    int64_t id;
    bool keeps(float value, int64_t at) const { return value > x || (value == x && at <= id); }
};

typedef double d4 __attribute__((vector_size(32)));
typedef int64_t l4 __attribute__((vector_size(32)));
typedef float f4 __attribute__((vector_size(16)));

INLINE d4 four(double x) { return d4{x, x, x, x}; }

INLINE l4 weight(d4 z) {
    const l4 alive = z >= four(-31.0);
    z = (d4)((l4)z & alive);
    d4 shifted = z * four(1.4426950408889634) + four(MAGIC), n = shifted - four(MAGIC);
    d4 r = (z - n * four(0.6931471803691238)) - n * four(1.9082149292705877e-10);
    d4 p = four(1.0 / 39916800);
    p = p * r + four(1.0 / 3628800);
    p = p * r + four(1.0 / 362880);
    p = p * r + four(1.0 / 40320);
    p = p * r + four(1.0 / 5040);
    p = p * r + four(1.0 / 720);
    p = p * r + four(1.0 / 120);
    p = p * r + four(1.0 / 24);
    p = p * r + four(1.0 / 6);
    p = p * r + four(1.0 / 2);
    p = p * r + four(1.0);
    p = p * r + four(1.0);
    const d4 power = (d4)(((l4)shifted - (l4)four(MAGIC) + 1023) << 52);
    const l4 whole = (l4)(p * power * four((double)ONE) + four(MAGIC)) - (l4)four(MAGIC);
    return whole & alive;
}

// The sum of the weights of n numbers, which are left in `weights` unless it is null.
int64_t weigh(const float* x, int64_t n, double highest, double inverse, int64_t* weights) {
    l4 total = {0, 0, 0, 0};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        f4 part;
        memcpy(&part, x + i, 16);
        const l4 w = weight((__builtin_convertvector(part, d4) - four(highest)) * four(inverse));
        total += w;
        if (weights) memcpy(weights + i, &w, 32);
    }
    if (i < n) {
        f4 part = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
        memcpy(&part, x + i, sizeof(float) * (size_t)(n - i));
        const l4 w = weight((__builtin_convertvector(part, d4) - four(highest)) * four(inverse));
        total += w;
        if (weights) memcpy(weights + i, &w, sizeof(int64_t) * (size_t)(n - i));
    }
    return total[0] + total[1] + total[2] + total[3];
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
    i8 bad = {0, 0, 0, 0, 0, 0, 0, 0};
    int64_t i = 0;
    for (; i + 8 <= v; i += 8) bad |= ~(load(x + i) < splat(INFINITY));
    int32_t any = 0;
    for (int j = 0; j < 8; j++) any |= bad[j];
    for (; i < v; i++) any |= !(x[i] < INFINITY);
    return any;
}

bool edited(const Params& p, int64_t row) {
    for (const int32_t* start : {p.seen_start, p.output_start, p.bias_start, p.banned_start})
        if (start[row] < start[row + 1]) return true;
    return false;
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
    const float* x;
    int64_t v;
    double highest, inverse;
    double z(int64_t i) const { return ((double)x[i] - highest) * inverse; }

    void fill_buckets() {
        memset(s.counts, 0, sizeof s.counts);
        memset(s.masses, 0, sizeof s.masses);
        for (int64_t i = 0; i < v; i++) {
            int b = bucket_of(z(i));
            s.counts[b]++;
            s.masses[b] += s.weights[(size_t)i];
        }
    }

    void sort_members() {
        const float* at = x;
        std::sort(s.members.begin(), s.members.end(),
                  [at](int32_t a, int32_t c) { return at[a] > at[c] || (at[a] == at[c] && a < c); });
    }

    void sort_bucket(int b) {
        s.members.clear();
        for (int64_t i = 0; i < v; i++)
            if (bucket_of(z(i)) == b) s.members.push_back((int32_t)i);
        sort_members();
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
            return {x[id], id};
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
            return {x[id], id};
        }
        return {-INFINITY, v};
    }

    // Members are the tokens at most `reach` below the likeliest, in order, and s.weights theirs; false if they are many.
    bool gather(double reach) {
        const v8 floor = splat((float)(highest - reach / inverse));
        s.members.clear();
        int64_t i = 0;
        for (; i + 8 <= v; i += 8) {
            const i8 in = load(x + i) >= floor;
#ifdef ROADTRAIN_AVX2
            if (_mm256_testz_si256((__m256i)in, (__m256i)in)) continue;
#endif
            for (int j = 0; j < 8; j++) if (in[j]) s.members.push_back((int32_t)(i + j));
            if (s.members.size() > MOST_LIKELY) return false;
        }
        for (; i < v; i++) if (x[i] >= floor[0]) s.members.push_back((int32_t)i);
        sort_members();
        float values[MOST_LIKELY + 16];
        for (size_t j = 0; j < s.members.size(); j++) values[j] = x[s.members[j]];
        weigh(values, (int64_t)s.members.size(), highest, inverse, s.weights.data());
        return true;
    }

    // How many of the members stay, if no other token can; else 0. `mass`: the sum of all weights.
    int64_t num_kept(int64_t k, float top_p, float min_p, int64_t mass) {
        const int64_t* w = s.weights.data();
        int64_t held = (int64_t)s.members.size(), before = 0, kept = 0;
        if (k > 0 && k < v) {
            if (held < k) return 0;
            held = k;
            mass = 0;
            for (int64_t i = 0; i < k; i++) mass += w[i];
        }
        if (top_p < 1.0f) {
            const int64_t whole = (int64_t)((double)top_p * (double)mass), limit = whole < 1 ? 1 : whole;
            while (kept < held && before < limit) before += w[kept++];
            if (before < limit && !(k > 0 && k < v)) return 0;
            held = kept;
        }
        kept = 1;
        while (kept < held && (double)w[kept] >= (double)min_p * (double)ONE) kept++;
        return kept;
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
            int64_t& w = s.weights[(size_t)i];
            if (!((double)w >= least && by_count.keeps(x[i], i) && by_mass.keeps(x[i], i))) w = 0;
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

int64_t target_of(const Params& p, int64_t row, int64_t total) {
    const uint64_t random = philox((uint64_t)p.seed[row], (uint32_t)p.position[row], (uint32_t)p.choice[row]);
    return (int64_t)((unsigned __int128)random * (uint64_t)total >> 64);
}

// The first of `weights` in order whose running sum exceeds target, which is made less by the sum of all before it.
int64_t pick(const int64_t* weights, int64_t n, int64_t* target) {
    for (int64_t i = 0; i < n; i++) {
        if (weights[i] > *target) return i;
        *target -= weights[i];
    }
    return NO_TOKEN_LEFT;
}

int64_t draw_from_all(const Row& r, const Params& p, int64_t row, int64_t mass) {
    int64_t target = target_of(p, row, mass), first = 0;
    for (; first < r.v && r.s.parts[(size_t)(first / STRIDE)] <= target; first += STRIDE) target -= r.s.parts[(size_t)(first / STRIDE)];
    const int64_t count = r.v - first < STRIDE ? r.v - first : STRIDE;
    weigh(r.x + first, count, r.highest, r.inverse, r.s.weights.data());
    return first + pick(r.s.weights.data(), count, &target);
}

int64_t draw_from_kept(Row& r, const Params& p, int64_t row, int64_t kept) {
    int64_t total = 0;
    for (int64_t i = 0; i < kept; i++) total += r.s.weights[(size_t)i];
    std::sort(r.s.members.begin(), r.s.members.begin() + kept);
    std::vector<float> values((size_t)kept);
    for (int64_t i = 0; i < kept; i++) values[(size_t)i] = r.x[r.s.members[(size_t)i]];
    weigh(values.data(), kept, r.highest, r.inverse, r.s.weights.data());
    int64_t target = target_of(p, row, total);
    return r.s.members[(size_t)pick(r.s.weights.data(), kept, &target)];
}

int64_t draw_token(Row& r, const Params& p, int64_t row) {
    int64_t mass = 0;
    for (int64_t i = 0; i < r.v; i += STRIDE) {
        const int64_t count = r.v - i < STRIDE ? r.v - i : STRIDE;
        mass += r.s.parts[(size_t)(i / STRIDE)] = weigh(r.x + i, count, r.highest, r.inverse, nullptr);
    }
    const int64_t k = p.top_k[row];
    const float top_p = p.top_p[row], min_p = p.min_p[row];
    if (k <= 0 && !(top_p < 1.0f) && !(min_p > 0.0f)) return draw_from_all(r, p, row, mass);
    // Where min_p alone cuts, all it can keep must be among the members.
    const double least = !(k > 0 && k < r.v) && !(top_p < 1.0f) ? 1.0 - log((double)min_p) : 0.0;
    for (double reach : REACHES)
        if (r.gather(reach > least ? reach : least))
            if (int64_t kept = r.num_kept(k, top_p, min_p, mass)) return draw_from_kept(r, p, row, kept);
    int64_t* w = r.s.weights.data();
    weigh(r.x, r.v, r.highest, r.inverse, w);
    r.truncate(k, top_p, min_p);
    int64_t total = 0;
    for (int64_t i = 0; i < r.v; i++) total += w[i];
    int64_t target = target_of(p, row, total);
    return pick(w, r.v, &target);
}

int64_t sample_row(const float* logits, int64_t v, const Params& p, int64_t row, Scratch& s) {
    if (broken(logits, v)) return NOT_A_NUMBER;
    const float* x = logits;
    if (edited(p, row)) {
        memcpy(s.x.data(), logits, sizeof(float) * (size_t)v);
        edit(s.x.data(), p, row);
        x = s.x.data();
    }
    const float highest = highest_of(x, v);
    if (highest == -INFINITY) return NO_TOKEN_LEFT;
    if (p.temperature[row] != 0.0f) {
        Row r{s, x, v, highest, 1.0 / (double)p.temperature[row]};
        return draw_token(r, p, row);
    }
    for (int64_t i = 0; i < v; i++)
        if (x[i] == highest) return i;
    return NO_TOKEN_LEFT;
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
        const int64_t total = weigh(x, v, highest, 1.0, nullptr);
        double normal = log((double)total * 0x1p-44);
        chosen[row] = (float)((double)x[token_ids[row]] - highest - normal);
        if (k > 0) largest_k(x, v, k, top_ids + row * k);
        for (int64_t i = 0; i < k; i++) top[row * k + i] = (float)((double)x[top_ids[row * k + i]] - highest - normal);
    }
}
