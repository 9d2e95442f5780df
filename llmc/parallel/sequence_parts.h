// How a context-parallel group divides a sequence: in 2·size equal pieces, of which rank r holds piece r and
// piece 2·size-1-r, in this order. So all have the same work in causal attention: the early pieces see few
// keys, the late ones many. A group of one holds the sequence as it is.
#pragma once
#include "parallel/communicator.h"

// The position in the sequence of token i of the `tokens` that a rank holds.
static inline int64_t context_position(Group context, int64_t tokens, int64_t i) {
    if (context.size == 1) return i;
    const int64_t piece = tokens / 2;
    return i < piece ? context.rank * piece + i : (2 * context.size - 1 - context.rank) * piece + (i - piece);
}

// The rank that holds a piece.
static inline int context_holder(int size, int piece) {
    return piece < size ? piece : 2 * size - 1 - piece;
}

// How many pieces a rank holds of a sequence, one after the other.
static inline int64_t context_pieces(Group context) {
    return context.size == 1 ? 1 : 2;
}
