// Choosing tokens, step by step as reference.py numbers them, without sorting the vocabulary: only tokens likely enough to
// stay are looked at one by one, and of those only the ones near a cut are sorted.
//
// It knows nothing of Python: shapes are checked before it is called.
#include "passes.h"
#include <algorithm>

namespace {

constexpr double ONE = 0x1p44, LOG2_E = 1.4426950408889634;
constexpr int BUCKETS = 1473;  // of y, 1/32 wide
constexpr float STEP = 3.0f;   // of y: how much lower the next try looks
constexpr int64_t NOT_A_NUMBER = -1, NO_TOKEN_LEFT = -2;

struct Params {  // the fields of params.py, in their order
    const float* temperature;
    const int32_t* top_k;
    const float *top_p, *min_p, *presence, *frequency, *repetition;
    const int64_t *seed, *position, *choice;
    const int32_t *output_start, *output_ids, *output_counts, *seen_start, *seen_ids, *bias_start, *bias_ids;
    const float* bias_values;
    const int32_t *banned_start, *banned_ids;
    const int32_t* mask_row;
    const uint32_t* mask;
};

bool edited(const Params& p, int64_t row) {
    if (p.mask_row[row] >= 0) return true;
    for (const int32_t* start : {p.seen_start, p.output_start, p.bias_start, p.banned_start})
        if (start[row] < start[row + 1]) return true;
    return false;
}

// Only tokens whose bit is set may come.
void apply_mask(float* x, const uint32_t* mask, int64_t v) {
    for (int64_t first = 0; first < v; first += 32) {
        const uint32_t word = mask[first / 32];
        const int64_t end = std::min<int64_t>(32, v - first);
        if (word == 0)
            std::fill(x + first, x + first + end, -INFINITY);
        else if (word != 0xFFFFFFFF)
            for (int64_t i = 0; i < end; i++) x[first + i] = word >> i & 1 ? x[first + i] : -INFINITY;
    }
}

void edit(float* x, int64_t v, const Params& p, int64_t row) {
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
    if (p.mask_row[row] >= 0) apply_mask(x, p.mask + p.mask_row[row] * ((v + 31) / 32), v);
}

// Amounts, of the j-th of what lies in Scratch.
constexpr auto one = [](const Scratch&, int64_t) { return (int64_t)1; };
constexpr auto weight = [](const Scratch& s, int64_t j) { return s.weights[(size_t)j]; };

// What lies in s.weights and s.buckets of n numbers.
void weigh_with_buckets(Scratch& s, const float* x, int64_t n, const Scale& scale) {
    weigh(x, n, scale, s.weights.data());
    for (int64_t j = 0; j < n; j += 8) {
        const i8 buckets = whole(scale(load_some(x + j, n - j)) * splat(-32.0f));
        memcpy(s.buckets.data() + j, &buckets, 32);
    }
}

// The bucket in which the amounts of n numbers, in falling order, reach `limit`, and the sum before it; BUCKETS if none.
template <typename Amount>
int find_bucket(const Scratch& s, int64_t n, int64_t limit, Amount amount, int64_t* before) {
    int64_t sums[BUCKETS] = {};
    for (int64_t j = 0; j < n; j++) sums[s.buckets[(size_t)j]] += amount(s, j);
    int bucket = 0;
    for (*before = 0; bucket < BUCKETS && *before + sums[bucket] < limit; bucket++) *before += sums[bucket];
    return bucket;
}

// Makes members of the likeliest tokens, so many that their amounts reach `limit`, or of all that weigh anything. The tops
// say how low to look: what they reach, all tokens reach. Where they do not reach it, the first try goes down to y = guess.
template <typename Amount>
void gather_for(Scratch& s, const float* x, int64_t v, const Scale& scale, int64_t limit, Amount amount, float guess) {
    weigh_with_buckets(s, s.tops.data(), s.blocks * 8, scale);
    int64_t reached;
    const int bucket = find_bucket(s, s.blocks * 8, limit, amount, &reached);
    float floor = bucket < BUCKETS ? (float)(bucket + 1) / -32.0f : guess;
    for (;; floor -= STEP) {
        gather(s, x, v, scale, std::max(floor, ALL_THAT_WEIGH));
        weigh_with_buckets(s, s.values.data(), s.held, scale);
        reached = 0;
        for (int64_t j = 0; j < s.held; j++) reached += amount(s, j);
        if (reached >= limit || floor <= ALL_THAT_WEIGH) return;
    }
}

// Of the members, in falling order, as many keep their weights as are needed for their amounts to reach `limit`.
template <typename Amount>
void keep_until(Scratch& s, int64_t limit, Amount amount) {
    int64_t before;
    const int bucket = find_bucket(s, s.held, limit, amount, &before);
    if (bucket == BUCKETS) return;
    s.order.clear();
    for (int64_t j = 0; j < s.held; j++)
        if (s.buckets[(size_t)j] == bucket) s.order.push_back((int32_t)j);
    const float* x = s.values.data();
    std::sort(s.order.begin(), s.order.end(), [x](int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); });
    int32_t last = 0;
    for (auto member = s.order.begin(); before < limit; member++) before += amount(s, last = *member);
    const float bar = x[last];
    int64_t* weights = s.weights.data();
    for (int64_t j = 0; j <= last; j++) weights[j] = x[j] >= bar ? weights[j] : 0;
    for (int64_t j = last + 1; j < s.held; j++) weights[j] = x[j] > bar ? weights[j] : 0;
}

int64_t sum_of_weights(const Scratch& s) {
    int64_t total = 0;
    for (int64_t j = 0; j < s.held; j++) total += s.weights[(size_t)j];
    return total;
}

int64_t share(float top_p, int64_t mass) { return std::max((int64_t)((double)top_p * (double)mass), (int64_t)1); }

// Makes members, with their weights, of the tokens that steps 6 to 8 let stay, and of others that now weigh nothing. At
// least one of the steps is asked for.
void truncate(Scratch& s, const float* x, int64_t v, const Scale& scale, int64_t k, float top_p, float min_p) {
    const bool counted = k > 0 && k < v, massed = top_p < 1.0f;
    if (counted) {
        gather_for(s, x, v, scale, k, one, ALL_THAT_WEIGH);
        keep_until(s, k, one);
        if (massed) keep_until(s, share(top_p, sum_of_weights(s)), weight);
    } else if (massed) {
        const int64_t mass = mass_of_row(s, x, v, scale), limit = share(top_p, mass);
        // Tokens that weigh less than an even part of what may go may all go; nearly always heavier ones may, too.
        const float lightest = log2f((float)((double)(mass - limit) / (double)v / ONE));
        gather_for(s, x, v, scale, limit, weight, lightest + STEP);
        keep_until(s, limit, weight);
    } else {
        // A little too low, so that nothing depends on how log2 rounds.
        gather(s, x, v, scale, std::max(log2f(min_p) - 0.01f, ALL_THAT_WEIGH));
        weigh(s.values.data(), s.held, scale, s.weights.data());
    }
    const double least = (double)min_p * ONE;
    for (int64_t j = 0; j < s.held && min_p > 0.0f; j++)
        if ((double)s.weights[(size_t)j] < least) s.weights[(size_t)j] = 0;
}

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

// The first of `weights` whose running sum exceeds target, which is less than the sum of all.
int64_t pick(const int64_t* weights, int64_t target) {
    int64_t at = 0;
    for (; weights[at] <= target; at++) target -= weights[at];
    return at;
}

int64_t draw_from_all(Scratch& s, const float* x, int64_t v, const Scale& scale, const Params& p, int64_t row) {
    int64_t target = target_of(p, row, mass_of_row(s, x, v, scale)), block = 0;
    for (; s.masses[(size_t)block] <= target; block++) target -= s.masses[(size_t)block];
    const int64_t first = block * BLOCK;
    weigh(x + first, std::min(v - first, BLOCK), scale, s.weights.data());
    return first + pick(s.weights.data(), target);
}

int64_t draw_token(Scratch& s, const float* x, int64_t v, float highest, const Params& p, int64_t row) {
    const Scale scale(highest, (float)std::min(1e30, LOG2_E / (double)p.temperature[row]));
    const int64_t k = p.top_k[row];
    const float top_p = p.top_p[row], min_p = std::min(p.min_p[row], 1.0f);
    if (!(k > 0 && k < v) && !(top_p < 1.0f) && !(min_p > 0.0f)) return draw_from_all(s, x, v, scale, p, row);
    truncate(s, x, v, scale, k, top_p, min_p);
    return s.ids[(size_t)pick(s.weights.data(), target_of(p, row, sum_of_weights(s)))];
}

int64_t sample_row(Scratch& s, const float* x, int64_t v, const Params& p, int64_t row) {
    bool broken;
    float highest = highest_of(s, x, v, &broken);
    if (!broken && edited(p, row)) {
        memcpy(s.edited.data(), x, sizeof(float) * (size_t)v);
        x = s.edited.data();
        edit(s.edited.data(), v, p, row);
        highest = highest_of(s, x, v, &broken);
    }
    if (broken) return NOT_A_NUMBER;
    if (highest == -INFINITY) return NO_TOKEN_LEFT;
    if (p.temperature[row] != 0.0f) return draw_token(s, x, v, highest, p, row);
    int64_t token;
    largest_k(s, x, v, 1, &token);
    return token;
}

Scratch& scratch_for(int64_t v) {
    static thread_local Scratch scratch;
    scratch.fit(v);
    return scratch;
}

}  // namespace

// Logits: rows of v, stride apart.
EXPORT void rt_sample(const float* logits, int64_t stride, const Params* params, int64_t* out, int64_t rows, int64_t v,
                      int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1) if (rows > 1)
    for (int64_t row = 0; row < rows; row++) out[row] = sample_row(scratch_for(v), logits + row * stride, v, *params, row);
}

EXPORT void rt_logprobs(const float* logits, const int64_t* token_ids, int64_t k, float* chosen, int64_t* top_ids, float* top,
                        int64_t rows, int64_t v, int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1) if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const float* x = logits + row * v;
        Scratch& s = scratch_for(v);
        bool broken;
        const float highest = highest_of(s, x, v, &broken);
        const int64_t mass = mass_of_row(s, x, v, Scale(highest, (float)LOG2_E));
        const double normal = (double)highest + log((double)mass / ONE);
        chosen[row] = (float)((double)x[token_ids[row]] - normal);
        if (k > 0) largest_k(s, x, v, k, top_ids + row * k);
        for (int64_t i = 0; i < k; i++) top[row * k + i] = (float)((double)x[top_ids[row * k + i]] - normal);
    }
}
