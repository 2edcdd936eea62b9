// Runs bodies for a process of another architecture: what they read and write comes and goes through a pipe.
//
// A call is: the name's length and the name; the number of threads; buffers (each a length and bytes), the first of which
// are the arguments; and patches (which buffer, where in it, to which buffer it points, where in that). The answer is all
// buffers. Numbers are int64. arm.py is the other end.
#include "../../kernels/parallel.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <vector>

#define BODIES(X)                                                                                                       \
    X(rt_fast_quantize) X(rt_fast_norm) X(rt_fast_rope) X(rt_fast_matmul) X(rt_fast_gate_up) X(rt_fast_embed)           \
    X(rt_fast_attention_scores) X(rt_fast_attention) X(rt_matmul_body) X(rt_unpack_body) X(rt_take_body) X(rt_norm_body) \
    X(rt_rope_body) X(rt_kv_write_body) X(rt_attention_body) X(rt_gated_body) X(rt_softcap_body) X(rt_peaks)

extern "C" {
#define DECLARE(name) void name(const void*, int, int);
BODIES(DECLARE)
void rt_sample(const float* logits, int64_t stride, const void* params, int64_t* out, int64_t rows, int64_t v, int num_threads);
}

namespace {

struct SampleArgs {
    const float* logits;
    const void* params[20];
    int64_t *out, rows, v;
};

// Sampling as a body, for one thread.
void sample(const void* args, int, int) {
    const SampleArgs& a = *(const SampleArgs*)args;
    rt_sample(a.logits, a.v, a.params, a.out, a.rows, a.v, 1);
}

struct Named { const char* name; rt_body body; };
#define ROW(name) {#name, name},
const Named TABLE[] = {BODIES(ROW) {"sample", sample}};

void read_all(void* to, size_t size) {
    if (size && fread(to, size, 1, stdin) != 1) exit(0);
}

int64_t number() {
    int64_t n;
    read_all(&n, sizeof n);
    return n;
}

rt_body find(const std::string& name) {
    for (const Named& each : TABLE) if (name == each.name) return each.body;
    fprintf(stderr, "no body %s\n", name.c_str());
    exit(1);
}

}  // namespace

int main() {
    for (;;) {
        std::string name((size_t)number(), ' ');
        read_all(&name[0], name.size());
        const int num_threads = (int)number();
        std::vector<std::vector<char>> buffers((size_t)number());
        for (auto& buffer : buffers) {
            buffer.resize((size_t)number());
            read_all(buffer.data(), buffer.size());
        }
        for (int64_t left = number(); left > 0; left--) {
            const int64_t buffer = number(), at = number(), target = number(), offset = number();
            char* pointer = buffers[target].data() + offset;
            memcpy(buffers[buffer].data() + at, &pointer, sizeof pointer);
        }
        in_parallel(find(name), buffers[0].data(), num_threads, false);
        for (auto& buffer : buffers) fwrite(buffer.data(), 1, buffer.size(), stdout);
        fflush(stdout);
    }
}
