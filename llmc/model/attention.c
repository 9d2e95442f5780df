#include "model/attention.h"

#include "model/ring_attention.h"

static int total_heads(const AttentionPlan *plan) {
    return plan->heads + 2 * plan->kv_heads;
}
static bool cut_by_length(const AttentionPlan *plan) {
    return plan->piece_len < plan->seq_len;
}

// --- planning -------------------------------------------------------------------------------------------

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static AttentionBlock whole_block(Device *device, const AttentionPlan *plan) {
    return packed_block(device, plan, NULL, NULL, NULL, NULL);
}

// The most that one call of the plan's forward asks for, and of its backward.
static size_t forward_call_bytes(Device *device, const AttentionPlan *plan) {
    const AttentionBlock block = whole_block(device, plan);
    return plan->context ? ring_forward_call_bytes(device, plan) : block_forward_bytes(device, plan, &block);
}

static size_t backward_call_bytes(Device *device, const AttentionPlan *plan) {
    const AttentionBlock block = whole_block(device, plan);
    const PackedViews gradients =
        packed_views(NULL, device->ops->storage, plan->seq_len, plan->heads, plan->kv_heads, plan->head_dim);
    if (plan->context) return ring_backward_call_bytes(device, plan);
    return block_backward_bytes(device, plan, &block, cut_by_length(plan) ? NULL : &gradients);
}

// Fewer heads first, which costs nothing; then shorter pieces, of a whole number of 128-token tiles.
static bool cut_further(AttentionPlan *plan) {
    if (plan->kv_heads_per_call > 1) {
        do plan->kv_heads_per_call--;
        while (plan->kv_heads % plan->kv_heads_per_call != 0);
        return true;
    }
    const int64_t tile = 128;
    const int64_t pieces = divide_up(plan->seq_len, plan->piece_len) + 1;
    const int64_t shorter = divide_up(divide_up(plan->seq_len, pieces), tile) * tile;
    if (shorter >= plan->piece_len) return false;
    plan->piece_len = shorter;
    return true;
}

// The workspace of the backward that is cut by length: the call's own, the sums of all gradients in the
// accumulator type, and scratch.
static size_t sums_start(const AttentionPlan *plan) {
    return aligned(plan->call_bytes);
}
static size_t sums_bytes(Device *device, const AttentionPlan *plan) {
    const int64_t elements = plan->batch * plan->seq_len * total_heads(plan) * plan->head_dim;
    return aligned((size_t)elements * storage_size(accumulator_type(device->ops->storage)));
}

static size_t backward_bytes(Device *device, const AttentionPlan *plan) {
    if (plan->context) return ring_backward_bytes(device, plan);
    if (!cut_by_length(plan)) return plan->call_bytes;
    return sums_start(plan) + sums_bytes(device, plan) + block_scratch_bytes(device, plan);
}

void attention_plan_sizes(Device *device, AttentionPlan *plan) {
    plan->forward_call_bytes = forward_call_bytes(device, plan);
    plan->call_bytes = backward_call_bytes(device, plan);
    plan->forward_bytes = plan->context ? ring_forward_bytes(device, plan) : plan->forward_call_bytes;
    plan->workspace_bytes = larger(plan->forward_bytes, backward_bytes(device, plan));
}

AttentionPlan attention_plan(Device *device, int64_t batch, int64_t seq_len, int heads, int kv_heads,
                             int head_dim, bool deterministic, size_t workspace_bound, Collectives *context) {
    AttentionPlan plan = {.batch = batch,
                          .seq_len = seq_len,
                          .heads = heads,
                          .kv_heads = kv_heads,
                          .head_dim = head_dim,
                          .deterministic = deterministic,
                          .kv_heads_per_call = kv_heads,
                          .piece_len = seq_len};
    if (context && context->communicator->groups[GROUP_CONTEXT].size > 1) plan.context = context;
    attention_plan_sizes(device, &plan);
    while (deterministic && plan.call_bytes > workspace_bound) {
        if (!cut_further(&plan))
            fatal("deterministic attention of %ld tokens does not fit a workspace of %zu bytes",
                  (long)seq_len, workspace_bound);
        attention_plan_sizes(device, &plan);
    }
    return plan;
}

// --- whole sequences ------------------------------------------------------------------------------------

void attention_forward(Device *device, const AttentionPlan *plan, void *out, void *logsumexp, const void *qkv,
                       void *workspace) {
    if (plan->context) {
        ring_forward(device, plan, out, logsumexp, qkv, workspace);
        return;
    }
    const AttentionBlock block = packed_block(device, plan, qkv, out, logsumexp, NULL);
    block_forward(device, plan, &block, workspace);
}

static void backward_cut_by_length(Device *device, const AttentionPlan *plan, const AttentionBlock *block,
                                   void *grad_qkv, void *workspace) {
    char *sums = (char *)workspace + sums_start(plan);
    const size_t bytes = sums_bytes(device, plan);
    device->zero(device, sums, bytes);
    const PackedViews views = packed_views(sums, accumulator_type(device->ops->storage), plan->seq_len,
                                           plan->heads, plan->kv_heads, plan->head_dim);
    block_backward(device, plan, block, &views, NULL, workspace, sums + bytes);
    device->ops->convert.round_to_storage(
        grad_qkv, sums, plan->batch * plan->seq_len * total_heads(plan) * plan->head_dim, device->stream);
}

void attention_backward(Device *device, const AttentionPlan *plan, void *grad_qkv, const void *grad_out,
                        const void *qkv, const void *out, const void *logsumexp, void *workspace) {
    if (plan->context) {
        ring_backward(device, plan, grad_qkv, grad_out, qkv, out, logsumexp, workspace);
        return;
    }
    const AttentionBlock block = packed_block(device, plan, qkv, out, logsumexp, grad_out);
    if (cut_by_length(plan)) {
        backward_cut_by_length(device, plan, &block, grad_qkv, workspace);
        return;
    }
    const PackedViews gradients = packed_views(grad_qkv, device->ops->storage, plan->seq_len, plan->heads,
                                               plan->kv_heads, plan->head_dim);
    block_backward_by_heads(device, plan, &block, &gradients, workspace);
}
