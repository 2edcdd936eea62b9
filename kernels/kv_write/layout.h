// A block of the paged cache as one key head has it: 16 tokens of d numbers, int8 behind a word of each token.
//
// As layout.py says it, where the order of numbers is, too. It knows nothing of what is a key and what a value.
#pragma once

#include "../simd.h"

constexpr int64_t BLOCK = 16;

// Bytes of a block before its numbers.
template <typename T> constexpr int64_t word_bytes() { return sizeof(T) == 1 ? BLOCK * (int64_t)sizeof(uint32_t) : 0; }

// The numbers of a block; index: block times key heads, plus head.
template <typename T> INLINE T* block_at(const void* cache, int64_t index, int64_t d) {
    return (T*)((char*)cache + index * (word_bytes<T>() + BLOCK * d * (int64_t)sizeof(T)) + word_bytes<T>());
}

// Of a block of int8.
INLINE uint32_t* words_of(const int8_t* numbers) { return (uint32_t*)((char*)numbers - word_bytes<int8_t>()); }

// Calls run with a number of the cache's type; kind: a value of layout.py's KINDS.
template <typename F> INLINE void with_kind(int64_t kind, F run) {
    if (kind == 2) run(int8_t());
    else if (kind == 1) run(uint16_t());  // float16
    else run(float());
}
