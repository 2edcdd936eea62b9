// The inputs of a recorded step, written in place from one message: for every row five numbers (tokens before it, its own
// tokens, how many of these give logits, first block that is told, number of those), then the token ids, then the blocks.
//
// A row's blocks before the first that is told are those of the step before, in the same place. It knows nothing of sequences.
#include "simd.h"

namespace {

struct Inputs {  // the fields of inputs.py, in their order
    int64_t* counts;  // tokens, rows, wanted
    int64_t *token_ids, *positions, *slots, *wanted;
    int32_t *query_start, *seq_lens, *tables;
    int64_t most_tokens, most_rows, width, block_size, vocab;
};

constexpr int TOO_LARGE = 1, NO_TOKEN = 2;

}  // namespace

// 0, or what is wrong with the message; then nothing of the inputs may be used.
EXPORT int rt_lay_out(const int64_t* message, int64_t rows, const Inputs* in) {
    if (rows > in->most_rows) return TOO_LARGE;
    int64_t at = 0, wanted = 0;
    in->query_start[0] = 0;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t first = message[0], num = message[1], logits = message[2], told = message[3], blocks = message[4];
        const int64_t* ids = message + 5;
        int32_t* table = in->tables + row * in->width;
        if (at + num > in->most_tokens || told + blocks > in->width || first + num > (told + blocks) * in->block_size)
            return TOO_LARGE;
        for (int64_t i = 0; i < blocks; i++) table[told + i] = (int32_t)ids[num + i];
        for (int64_t i = 0; i < num; i++) {
            const int64_t position = first + i;
            if (ids[i] < 0 || ids[i] >= in->vocab) return NO_TOKEN;
            in->token_ids[at + i] = ids[i];
            in->positions[at + i] = position;
            in->slots[at + i] = table[position / in->block_size] * in->block_size + position % in->block_size;
        }
        at += num;
        for (int64_t i = at - logits; i < at; i++) in->wanted[wanted++] = i;
        in->query_start[row + 1] = (int32_t)at;
        in->seq_lens[row] = (int32_t)(first + num);
        message = ids + num + blocks;
    }
    in->counts[0] = at, in->counts[1] = rows, in->counts[2] = wanted;
    return 0;
}
