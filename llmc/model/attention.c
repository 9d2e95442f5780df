#include "model/attention.h"

#include "model/attention_blocks.h"
#include "model/ring_attention.h"

#include <math.h>

static int group_size(const AttentionPlan *plan) {
    return plan->heads / plan->kv_heads;
}
static int total_heads(const AttentionPlan *plan) {
    return plan->heads + 2 * plan->kv_heads;
}
static bool cut_by_length(const AttentionPlan *plan) {
    return plan->piece_len < plan->seq_len;
}

// --- views ----------------------------------------------------------------------------------------------

View view_from(View view, int64_t token, int64_t head) {
    const int64_t elements = token * view.strides.token + head * view.strides.head;
    view.at += elements * (int64_t)storage_size(view.type);
    return view;
}

View packed_view(const void *at, StorageType type, int64_t tokens, int heads, int head_dim) {
    const int64_t width = (int64_t)heads * head_dim;
    View view = {(char *)at, type, {tokens * width, width, head_dim}};
    return view;
}

PackedViews packed_views(const void *at, StorageType type, int64_t tokens, int heads, int kv_heads,
                         int head_dim) {
    const View all = packed_view(at, type, tokens, heads + 2 * kv_heads, head_dim);
    PackedViews views = {all, view_from(all, 0, heads), view_from(all, 0, heads + kv_heads)};
    return views;
}

View logsumexp_view(const void *at, StorageType type, int64_t tokens, int heads) {
    View view = {(char *)at, type, {heads * tokens, 1, tokens}};
    return view;
}

// --- blocks ---------------------------------------------------------------------------------------------

// The call for a part of a block: so many queries and keys, of `kv_heads` key/value heads and their query
// heads. The gradients' layout is for the caller to set.
static AttentionShape call_shape(const AttentionPlan *plan, const AttentionBlock *block, int64_t query_len,
                                 int64_t key_len, bool causal, int kv_heads) {
    AttentionShape shape = {0};
    shape.batch = plan->batch;
    shape.query_len = query_len;
    shape.key_len = key_len;
    shape.heads = kv_heads * group_size(plan);
    shape.kv_heads = kv_heads;
    shape.head_dim = plan->head_dim;
    shape.causal = causal;
    shape.deterministic = plan->deterministic;
    shape.scale = 1 / sqrt((double)plan->head_dim);
    shape.query = block->query.strides;
    shape.key = block->key.strides;
    shape.value = block->value.strides;
    shape.output = block->out.strides;
    shape.logsumexp = block->logsumexp.strides;
    return shape;
}

void block_forward(Device *device, const AttentionPlan *plan, const AttentionBlock *block, void *workspace) {
    const AttentionShape shape =
        call_shape(plan, block, block->query_len, block->key_len, block->causal, plan->kv_heads);
    device->ops->attention.forward(block->out.at, block->logsumexp.at, block->query.at, block->key.at,
                                   block->value.at, &shape, workspace, device->stream);
}

// Where a call's gradients go: into the whole's layout, or into scratch of the call's own size.
typedef struct {
    View query, key, value;
} CallGradients;

static void call_backward(Device *device, const AttentionPlan *plan, const AttentionBlock *part, int kv_heads,
                          const CallGradients *gradients, void *workspace) {
    AttentionShape shape = call_shape(plan, part, part->query_len, part->key_len, part->causal, kv_heads);
    shape.grad_query = gradients->query.strides;
    shape.grad_key = gradients->key.strides;
    shape.grad_value = gradients->value.strides;
    device->ops->attention.backward(gradients->query.at, gradients->key.at, gradients->value.at,
                                    part->grad_out.at, part->query.at, part->key.at, part->value.at,
                                    part->out.at, part->logsumexp.at, &shape, workspace, device->stream);
}

// The block without the queries, keys and heads before these.
static AttentionBlock block_from(const AttentionBlock *block, int64_t query, int64_t key, int64_t head,
                                 int64_t kv_head) {
    AttentionBlock part = *block;
    part.query = view_from(block->query, query, head);
    part.out = view_from(block->out, query, head);
    part.grad_out = view_from(block->grad_out, query, head);
    part.logsumexp = view_from(block->logsumexp, query, head);
    part.key = view_from(block->key, key, kv_head);
    part.value = view_from(block->value, key, kv_head);
    return part;
}

// Scratch for one call's gradients, one after the other.
static CallGradients call_scratch(const AttentionPlan *plan, StorageType storage, int64_t query_len,
                                  int64_t key_len, void *scratch) {
    const int kv_heads = plan->kv_heads_per_call, dim = plan->head_dim;
    const size_t size = storage_size(storage), row = (size_t)(kv_heads * dim) * size;
    const size_t query_bytes = aligned((size_t)(plan->batch * query_len) * row * (size_t)group_size(plan));
    const size_t key_bytes = aligned((size_t)(plan->batch * key_len) * row);
    char *at = (char *)scratch;
    CallGradients gradients = {packed_view(at, storage, query_len, kv_heads * group_size(plan), dim),
                               packed_view(at + query_bytes, storage, key_len, kv_heads, dim),
                               packed_view(at + query_bytes + key_bytes, storage, key_len, kv_heads, dim)};
    return gradients;
}

size_t block_scratch_bytes(Device *device, const AttentionPlan *plan) {
    const size_t size = storage_size(device->ops->storage);
    const size_t rows = (size_t)(plan->batch * min_i64(plan->piece_len, plan->seq_len));
    const size_t key_row = (size_t)(plan->kv_heads_per_call * plan->head_dim) * size;
    return aligned(rows * key_row * (size_t)group_size(plan)) + 2 * aligned(rows * key_row);
}

// sum A[batch, tokens, heads, head_dim] += part S, without gaps. The heads of both are next to each other.
static void add_part(Device *device, const AttentionPlan *plan, View sum, View part, int64_t tokens,
                     int heads) {
    const int64_t columns = (int64_t)heads * plan->head_dim;
    const int64_t sum_batch = sum.strides.batch * (int64_t)storage_size(sum.type);
    const int64_t part_batch = part.strides.batch * (int64_t)storage_size(part.type);
    for (int64_t row = 0; row < plan->batch; row++)
        device->ops->convert.accumulate_rows(sum.at + row * sum_batch, sum.strides.token,
                                             part.at + row * part_batch, part.strides.token, tokens, columns,
                                             device->stream);
}

void block_backward(Device *device, const AttentionPlan *plan, const AttentionBlock *block,
                    const PackedViews *sums, Collectives *arriving, void *workspace, void *scratch) {
    const int kv_heads = plan->kv_heads_per_call, heads = kv_heads * group_size(plan);
    const int64_t piece = plan->piece_len;
    for (int kv_head = 0; kv_head < plan->kv_heads; kv_head += kv_heads)
        for (int64_t query = 0; query < block->query_len; query += piece)
            for (int64_t key = 0; key < block->key_len && !(block->causal && key > query); key += piece) {
                const int head = kv_head * group_size(plan);
                AttentionBlock part = block_from(block, query, key, head, kv_head);
                part.query_len = min_i64(piece, block->query_len - query);
                part.key_len = min_i64(piece, block->key_len - key);
                part.causal = block->causal && query == key;
                const CallGradients gradients =
                    call_scratch(plan, device->ops->storage, part.query_len, part.key_len, scratch);
                call_backward(device, plan, &part, kv_heads, &gradients, workspace);
                if (arriving) collectives_finish(arriving);
                arriving = NULL;
                add_part(device, plan, view_from(sums->query, query, head), gradients.query, part.query_len,
                         heads);
                add_part(device, plan, view_from(sums->key, key, kv_head), gradients.key, part.key_len,
                         kv_heads);
                add_part(device, plan, view_from(sums->value, key, kv_head), gradients.value, part.key_len,
                         kv_heads);
            }
}

// --- planning -------------------------------------------------------------------------------------------

// A block of the layout that attention has where no block's own is asked for: only its strides matter.
static AttentionBlock nowhere(const AttentionPlan *plan, StorageType storage) {
    const PackedViews qkv =
        packed_views(NULL, storage, plan->seq_len, plan->heads, plan->kv_heads, plan->head_dim);
    AttentionBlock block = {0};
    block.query = qkv.query;
    block.key = qkv.key;
    block.value = qkv.value;
    block.out = block.grad_out = packed_view(NULL, storage, plan->seq_len, plan->heads, plan->head_dim);
    block.logsumexp = logsumexp_view(NULL, accumulator_type(storage), plan->seq_len, plan->heads);
    return block;
}

size_t block_forward_bytes(Device *device, const AttentionPlan *plan, int64_t query_len, int64_t key_len,
                           bool causal) {
    const AttentionBlock block = nowhere(plan, device->ops->storage);
    const AttentionShape shape = call_shape(plan, &block, query_len, key_len, causal, plan->kv_heads);
    return device->ops->attention.workspace(&shape, false, device->stream);
}

static size_t call_backward_bytes(Device *device, const AttentionPlan *plan, int64_t query_len,
                                  int64_t key_len, bool causal) {
    const StorageType storage = device->ops->storage;
    const AttentionBlock block = nowhere(plan, storage);
    const bool direct = !cut_by_length(plan) && !plan->context;
    const CallGradients scratch = call_scratch(plan, storage, query_len, key_len, NULL);
    AttentionShape shape = call_shape(plan, &block, query_len, key_len, causal, plan->kv_heads_per_call);
    shape.grad_query = direct ? block.query.strides : scratch.query.strides;
    shape.grad_key = direct ? block.key.strides : scratch.key.strides;
    shape.grad_value = direct ? block.value.strides : scratch.value.strides;
    return device->ops->attention.workspace(&shape, true, device->stream);
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

// The most that one backward call of the plan asks for: a causal one, or one of those without a mask.
static size_t most_call_bytes(Device *device, const AttentionPlan *plan) {
    const int64_t piece = plan->piece_len;
    size_t most = call_backward_bytes(device, plan, piece, piece, true);
    if (cut_by_length(plan)) most = larger(most, call_backward_bytes(device, plan, piece, piece, false));
    if (plan->context) {
        const int64_t half = min_i64(piece, plan->seq_len / 2);
        most = larger(most, call_backward_bytes(device, plan, piece, half, false));
        most = larger(most, call_backward_bytes(device, plan, half, piece, false));
    }
    return most;
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
    plan->forward_bytes = plan->context
                              ? ring_forward_bytes(device, plan)
                              : block_forward_bytes(device, plan, plan->seq_len, plan->seq_len, true);
    plan->call_bytes = most_call_bytes(device, plan);
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

// All queries on all keys of sequences that are here whole; grad_out may be NULL.
static AttentionBlock whole_block(Device *device, const AttentionPlan *plan, const void *qkv, const void *out,
                                  const void *logsumexp, const void *grad_out) {
    const StorageType storage = device->ops->storage;
    AttentionBlock block = nowhere(plan, storage);
    const PackedViews views =
        packed_views(qkv, storage, plan->seq_len, plan->heads, plan->kv_heads, plan->head_dim);
    block.query_len = block.key_len = plan->seq_len;
    block.causal = true;
    block.query = views.query;
    block.key = views.key;
    block.value = views.value;
    block.out.at = (char *)out;
    block.logsumexp.at = (char *)logsumexp;
    block.grad_out.at = (char *)grad_out;
    return block;
}

void attention_forward(Device *device, const AttentionPlan *plan, void *out, void *logsumexp, const void *qkv,
                       void *workspace) {
    if (plan->context) {
        ring_forward(device, plan, out, logsumexp, qkv, workspace);
        return;
    }
    const AttentionBlock block = whole_block(device, plan, qkv, out, logsumexp, NULL);
    block_forward(device, plan, &block, workspace);
}

static void backward_cut_by_heads(Device *device, const AttentionPlan *plan, const AttentionBlock *block,
                                  void *grad_qkv, void *workspace) {
    const PackedViews grads = packed_views(grad_qkv, device->ops->storage, plan->seq_len, plan->heads,
                                           plan->kv_heads, plan->head_dim);
    for (int kv_head = 0; kv_head < plan->kv_heads; kv_head += plan->kv_heads_per_call) {
        const int head = kv_head * group_size(plan);
        const AttentionBlock part = block_from(block, 0, 0, head, kv_head);
        const CallGradients gradients = {view_from(grads.query, 0, head), view_from(grads.key, 0, kv_head),
                                         view_from(grads.value, 0, kv_head)};
        call_backward(device, plan, &part, plan->kv_heads_per_call, &gradients, workspace);
    }
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
    const AttentionBlock block = whole_block(device, plan, qkv, out, logsumexp, grad_out);
    if (cut_by_length(plan))
        backward_cut_by_length(device, plan, &block, grad_qkv, workspace);
    else
        backward_cut_by_heads(device, plan, &block, grad_qkv, workspace);
}
