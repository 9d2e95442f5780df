// How a context-parallel group divides a sequence: in 2·size equal pieces, of which rank r holds piece r and
// piece 2·size-1-r, in this order. So all have the same work in causal attention: the early pieces see few
// keys, the late ones many. A group of one holds the sequence as it is.
#pragma once
#include "parallel/communicator.h"

#include <string.h>

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

// out int32[tokens]: what a rank holds of a whole sequence.
static inline void context_slice(int32_t *out, const int32_t *sequence, Group context, int64_t tokens) {
    const int64_t pieces = context.size == 1 ? 1 : 2, length = tokens / pieces;
    for (int64_t piece = 0; piece < pieces; piece++)
        memcpy(out + piece * length, sequence + context_position(context, tokens, piece * length),
               (size_t)length * sizeof(*out));
}
