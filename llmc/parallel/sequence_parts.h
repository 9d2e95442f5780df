// How a context-parallel group divides a sequence: into 2·size equal pieces, of which rank r holds piece r
// and piece 2·size-1-r, in this order. An early piece sees few keys in causal attention, a late one many;
// with one of each, all ranks have the same work. In a group of one the sequence is not divided.
#pragma once
#include "parallel/communicator.h"

// A rank holds `tokens` tokens of a sequence, numbered from 0: the position of token i in the whole sequence.
static inline int64_t context_position(Group context, int64_t tokens, int64_t i) {
    if (context.size == 1) return i;
    const int64_t piece = tokens / 2;
    return i < piece ? context.rank * piece + i : (2 * context.size - 1 - context.rank) * piece + (i - piece);
}

// The rank, in a group of `size`, that holds piece `piece`.
static inline int context_holder(int size, int piece) {
    return piece < size ? piece : 2 * size - 1 - piece;
}

// How many pieces of each sequence a rank holds.
static inline int64_t context_pieces(Group context) {
    return context.size == 1 ? 1 : 2;
}
