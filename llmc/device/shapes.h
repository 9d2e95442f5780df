// Sizes and strides: of the arrays that attention reads and writes, and of the pyramid that Lighthouse
// attention builds over a sequence.
#pragma once
#include "base/common.h"

// Distances, in elements, between neighbours along the first three axes of a [batch, token, head, head_dim]
// array; the last axis is contiguous. A log-sum-exp is [batch, token, head]: its strides locate single
// elements.
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
    AttentionStrides logsumexp;                        // of the log-sum-exp
    AttentionStrides grad_query, grad_key, grad_value; // of the backward's outputs
} AttentionShape;

// The sizes, of a decoder and of its batches, that a device may limit (Device.supports).
typedef struct {
    int64_t batch; // sequences in a batch
    int64_t dim;   // width of the residual stream
    int64_t heads, head_dim;
} DecoderShape;

// The pyramid of Lighthouse attention (arXiv 2605.06554). Entry (level, index) covers the tokens from
// index·pool^level to (index + 1)·pool^level - 1, and is their mean. Level 0 is the tokens themselves, level
// `levels - 1` is the coarsest. A head's pyramid is an array of all its entries, level 0 first.
typedef struct {
    int64_t batch, seq_len;
    int heads, kv_heads, head_dim;
    int key_score_heads; // rows of key scores: kv_heads, or heads if keys are scored for each query head
    int levels;
    int log2_pool;   // log2 of pool, the number of entries that one entry of the next coarser level covers
    int tile;        // parents that a chunk selects at each level
    int64_t chunks;  // equal parts of the sequence; parents are selected within each on its own
    int64_t entries; // length of the subsequence: seq_len/pool^(levels-1) + (levels-1)·pool·tile·chunks
    int64_t pyramid; // entries of all levels together
    int pieces;      // under context parallelism seq_len is this many pieces that are not neighbours in the
                     // whole sequence, each a whole number of chunks; 1: one whole sequence
} LighthouseShape;

// Rows in the scores of one sequence: query heads, then key heads.
static inline int64_t score_rows(const LighthouseShape *shape) {
    return shape->heads + shape->key_score_heads;
}

// The number of entries of a level, and the index of its first entry in a head's pyramid.
static inline int64_t level_entries(const LighthouseShape *shape, int level) {
    return shape->seq_len >> (level * shape->log2_pool);
}
static inline int64_t level_start(const LighthouseShape *shape, int level) {
    int64_t start = 0;
    for (int below = 0; below < level; below++) start += level_entries(shape, below);
    return start;
}
