// Blocks of attention, as llmc/model/attention.c and llmc/model/ring_attention.c put it together: some
// consecutive queries on some consecutive keys, in one call of the device's operation or in several.
#pragma once
#include "device/collectives.h"
#include "device/memory_plan.h"

// How attention of one size is run: cut into which calls, with which workspaces (model/attention.h makes it).
typedef struct {
    int64_t batch, seq_len; // sequences, and tokens of each that this rank holds
    int heads, kv_heads, head_dim;
    bool deterministic;
    Collectives *context;  // the context-parallel group; NULL if this rank holds whole sequences
    int kv_heads_per_call; // the backward's cut by heads: so many key/value heads and their query heads a
                           // call
    int64_t piece_len;     // and by length; seq_len if uncut
    size_t forward_call_bytes,
        call_bytes;         // the most workspace that a call of the forward, of the backward is given
    size_t forward_bytes;   // workspace of the forward
    size_t workspace_bytes; // of forward or backward, whichever needs more
} AttentionPlan;

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

// The block of all queries on all keys of whole sequences, in arrays without gaps:
// qkv [batch, seq_len, heads + 2*kv_heads, head_dim], out and grad_out [batch, seq_len, heads, head_dim],
// logsumexp [batch, heads, seq_len]. With NULL for arrays only its strides are of use.
AttentionBlock packed_block(Device *device, const AttentionPlan *plan, const void *qkv, const void *out,
                            const void *logsumexp, const void *grad_out);

// out and logsumexp are written, as if there were no other keys.
void block_forward(Device *device, const AttentionPlan *plan, const AttentionBlock *block, void *workspace);

// The block's gradients, written; in calls of kv_heads_per_call heads.
void block_backward_by_heads(Device *device, const AttentionPlan *plan, const AttentionBlock *block,
                             const PackedViews *gradients, void *workspace);

// Adds the block's gradients to `sums` A; out and logsumexp are those of the whole softmax. In calls of at
// most piece_len queries and keys. The workspace is the call's own, then `scratch`: block_scratch_bytes of
// it. What the sums' keys and values hold may still be on its way: `arriving`, if not NULL, is finished
// before they are used.
void block_backward(Device *device, const AttentionPlan *plan, const AttentionBlock *block,
                    const PackedViews *sums, Collectives *arriving, void *workspace, void *scratch);
size_t block_scratch_bytes(Device *device, const AttentionPlan *plan);

// The most workspace of the calls that block_forward makes for the block; that block_backward_by_heads makes with
// these gradients, or (NULL) block_backward. Of the arrays only the strides are used, so they may be NULL. A call
// that asks for more than the plan's forward_call_bytes or call_bytes ends the process.
size_t block_forward_bytes(Device *device, const AttentionPlan *plan, const AttentionBlock *block);
size_t block_backward_bytes(Device *device, const AttentionPlan *plan, const AttentionBlock *block,
                            const PackedViews *gradients);
