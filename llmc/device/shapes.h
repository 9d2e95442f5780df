// What attention works on, as sizes and strides: plain attention, and the pyramid that Lighthouse attention
// makes of a sequence.
#pragma once
#include "base/common.h"

// How far apart, in elements, neighbours are along each axis of a [batch, token, head, head_dim] array whose
// last axis is contiguous. The log-sum-exp has no last axis: its strides give an element's place directly.
typedef struct {
    int64_t batch, token, head;
} AttentionStrides;

// Softmax attention of `heads` query heads on `kv_heads` key/value heads (query head h uses key head
// h / (heads / kv_heads)). Causal: query i sees keys 0..i, and query_len equals key_len. Otherwise: all keys.
typedef struct {
    int64_t batch, query_len, key_len;
    int heads, kv_heads, head_dim;
    bool causal;
    bool deterministic; // the backward must give the same bits every time
    double scale;       // multiplies q.k before the softmax
    AttentionStrides query, key, value;
    AttentionStrides output;                           // of out and of its gradient
    AttentionStrides logsumexp;                        // of logsumexp
    AttentionStrides grad_query, grad_key, grad_value; // of the backward's outputs
} AttentionShape;

// What a device may have limits on, of a decoder and of the batches that it is given.
typedef struct {
    int64_t batch; // sequences at a time
    int64_t dim;   // width of the residual stream
    int64_t heads, head_dim;
} DecoderShape;

// How Lighthouse attention cuts a sequence. Entry (level, index) covers the tokens
// [index, index + 1)·pool^level; level 0 are the tokens, level `levels - 1` is the coarsest. A head's pyramid
// is all its entries: level after level, from level 0 on.
typedef struct {
    int64_t batch, seq_len;
    int heads, kv_heads, head_dim;
    int key_score_heads; // of the keys' scores: kv_heads, or heads if keys are scored for each query head
    int levels;
    int log2_pool;   // pool, a power of two: how many entries of a level one of the next covers
    int tile;        // parents that a chunk picks at each level
    int64_t chunks;  // of equal length; each picks on its own
    int64_t entries; // of the subsequence: seq_len/pool^(levels-1) + (levels-1)·pool·tile·chunks
    int64_t pyramid; // entries of all levels
    int pieces;      // equal parts of seq_len, each a whole number of chunks, that do not follow one another
                     // (context parallelism); 1: one whole sequence
} LighthouseShape;

// Rows of a sequence's scores: query heads, then key heads.
static inline int64_t score_rows(const LighthouseShape *shape) {
    return shape->heads + shape->key_score_heads;
}

// Entries of a level, and where the level starts in a head's pyramid.
static inline int64_t level_entries(const LighthouseShape *shape, int level) {
    return shape->seq_len >> (level * shape->log2_pool);
}
static inline int64_t level_start(const LighthouseShape *shape, int level) {
    int64_t start = 0;
    for (int below = 0; below < level; below++) start += level_entries(shape, below);
    return start;
}
