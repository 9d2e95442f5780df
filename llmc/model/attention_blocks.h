// Blocks of attention, as llmc/model/attention.c and llmc/model/ring_attention.c put it together: some
// consecutive queries on some consecutive keys, in one call of the device's operation or in several.
#pragma once
#include "model/attention.h"

// A [batch, token, head, head_dim] array of device memory, or a log-sum-exp, from some token and head on.
typedef struct {
    char *at;
    StorageType type;
    AttentionStrides strides;
} View;

View view_from(View view, int64_t token, int64_t head);

// An array without gaps, of `heads` heads.
View packed_view(const void *at, StorageType type, int64_t tokens, int heads, int head_dim);

// The queries, keys and values of an array that holds these heads one after the other (heads = 0: only keys
// and values).
typedef struct {
    View query, key, value;
} PackedViews;

PackedViews packed_views(const void *at, StorageType type, int64_t tokens, int heads, int kv_heads,
                         int head_dim);

// The log-sum-exp A[batch, heads, tokens].
View logsumexp_view(const void *at, StorageType type, int64_t tokens, int heads);

// All of the block's queries see all of its keys, or (causal, as many as queries) those up to their own
// place. grad_out is the backward's.
typedef struct {
    int64_t query_len, key_len;
    bool causal;
    View query, key, value, out, logsumexp, grad_out;
} AttentionBlock;

// out and logsumexp are written, as if there were no other keys.
void block_forward(Device *device, const AttentionPlan *plan, const AttentionBlock *block, void *workspace);
size_t block_forward_bytes(Device *device, const AttentionPlan *plan, int64_t query_len, int64_t key_len,
                           bool causal);

// Adds the block's gradients to `sums` A; out and logsumexp are those of the whole softmax. In calls of at
// most piece_len queries and keys. The workspace is the call's own, then `scratch`: block_scratch_bytes of
// it. What the sums' keys and values hold may still be on its way: `arriving`, if not NULL, is finished
// before they are used.
void block_backward(Device *device, const AttentionPlan *plan, const AttentionBlock *block,
                    const PackedViews *sums, Collectives *arriving, void *workspace, void *scratch);
size_t block_scratch_bytes(Device *device, const AttentionPlan *plan);

// `bytes` so that what follows is aligned as allocations are.
static inline size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}
