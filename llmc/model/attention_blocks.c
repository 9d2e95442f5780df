#include "model/attention_blocks.h"

#include <math.h>

static int group_size(const AttentionPlan *plan) {
    return plan->heads / plan->kv_heads;
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

AttentionBlock packed_block(Device *device, const AttentionPlan *plan, const void *qkv, const void *out,
                            const void *logsumexp, const void *grad_out) {
    const StorageType storage = device->ops->storage;
    const PackedViews views =
        packed_views(qkv, storage, plan->seq_len, plan->heads, plan->kv_heads, plan->head_dim);
    const AttentionBlock block = {
        .query_len = plan->seq_len,
        .key_len = plan->seq_len,
        .causal = true,
        .query = views.query,
        .key = views.key,
        .value = views.value,
        .out = packed_view(out, storage, plan->seq_len, plan->heads, plan->head_dim),
        .logsumexp = logsumexp_view(logsumexp, accumulator_type(storage), plan->seq_len, plan->heads),
        .grad_out = packed_view(grad_out, storage, plan->seq_len, plan->heads, plan->head_dim)};
    return block;
}

// --- blocks ---------------------------------------------------------------------------------------------

// The call for a block, or a part of one, of `kv_heads` key/value heads and their query heads. The gradients' layout
// is for the caller to set.
static AttentionShape call_shape(const AttentionPlan *plan, const AttentionBlock *block, int kv_heads) {
    AttentionShape shape = {0};
    shape.batch = plan->batch;
    shape.query_len = block->query_len;
    shape.key_len = block->key_len;
    shape.heads = kv_heads * group_size(plan);
    shape.kv_heads = kv_heads;
    shape.head_dim = plan->head_dim;
    shape.causal = block->causal;
    shape.deterministic = plan->deterministic;
    shape.scale = 1 / sqrt((double)plan->head_dim);
    shape.query = block->query.strides;
    shape.key = block->key.strides;
    shape.value = block->value.strides;
    shape.output = block->out.strides;
    shape.logsumexp = block->logsumexp.strides;
    return shape;
}

// The call of the backward for a part of a block, whose gradients go into the whole's layout or into scratch.
static AttentionShape backward_shape(const AttentionPlan *plan, const AttentionBlock *part,
                                     const PackedViews *gradients) {
    AttentionShape shape = call_shape(plan, part, plan->kv_heads_per_call);
    shape.grad_query = gradients->query.strides;
    shape.grad_key = gradients->key.strides;
    shape.grad_value = gradients->value.strides;
    return shape;
}

// A call must not write beyond the workspace that was planned for it: what a library asks for depends on lengths,
// strides and its version.
static void check_workspace(Device *device, const AttentionShape *shape, bool backward, size_t planned) {
    const size_t needed = device->ops->attention.workspace(shape, backward, device->stream);
    if (needed > planned)
        fatal(
            "attention of %ld queries and %ld keys (%s) asks for a workspace of %zu bytes, and %zu were planned",
            (long)shape->query_len, (long)shape->key_len, backward ? "backward" : "forward", needed, planned);
}

void block_forward(Device *device, const AttentionPlan *plan, const AttentionBlock *block, void *workspace) {
    const AttentionShape shape = call_shape(plan, block, plan->kv_heads);
    check_workspace(device, &shape, false, plan->forward_call_bytes);
    device->ops->attention.forward(block->out.at, block->logsumexp.at, block->query.at, block->key.at,
                                   block->value.at, &shape, workspace, device->stream);
}

static void call_backward(Device *device, const AttentionPlan *plan, const AttentionBlock *part,
                          const PackedViews *gradients, void *workspace) {
    const AttentionShape shape = backward_shape(plan, part, gradients);
    check_workspace(device, &shape, true, plan->call_bytes);
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

void block_backward_by_heads(Device *device, const AttentionPlan *plan, const AttentionBlock *block,
                             const PackedViews *gradients, void *workspace) {
    for (int kv_head = 0; kv_head < plan->kv_heads; kv_head += plan->kv_heads_per_call) {
        const int head = kv_head * group_size(plan);
        const AttentionBlock part = block_from(block, 0, 0, head, kv_head);
        const PackedViews call = {view_from(gradients->query, 0, head), view_from(gradients->key, 0, kv_head),
                                  view_from(gradients->value, 0, kv_head)};
        call_backward(device, plan, &part, &call, workspace);
    }
}

// Scratch for one call's gradients, one after the other.
static PackedViews call_scratch(const AttentionPlan *plan, StorageType storage, int64_t query_len,
                                int64_t key_len, void *scratch) {
    const int kv_heads = plan->kv_heads_per_call, dim = plan->head_dim;
    const size_t size = storage_size(storage), row = (size_t)(kv_heads * dim) * size;
    const size_t query_bytes = aligned((size_t)(plan->batch * query_len) * row * (size_t)group_size(plan));
    const size_t key_bytes = aligned((size_t)(plan->batch * key_len) * row);
    char *at = (char *)scratch;
    PackedViews gradients = {packed_view(at, storage, query_len, kv_heads * group_size(plan), dim),
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

// At most piece_len of the block's queries and keys, from these on.
static AttentionBlock piece_of(const AttentionPlan *plan, const AttentionBlock *block, int64_t query,
                               int64_t key, int64_t head, int64_t kv_head) {
    AttentionBlock part = block_from(block, query, key, head, kv_head);
    part.query_len = min_i64(plan->piece_len, block->query_len - query);
    part.key_len = min_i64(plan->piece_len, block->key_len - key);
    part.causal = block->causal && query == key;
    return part;
}

void block_backward(Device *device, const AttentionPlan *plan, const AttentionBlock *block,
                    const PackedViews *sums, Collectives *arriving, void *workspace, void *scratch) {
    const int kv_heads = plan->kv_heads_per_call, heads = kv_heads * group_size(plan);
    const int64_t piece = plan->piece_len;
    for (int kv_head = 0; kv_head < plan->kv_heads; kv_head += kv_heads)
        for (int64_t query = 0; query < block->query_len; query += piece)
            for (int64_t key = 0; key < block->key_len && !(block->causal && key > query); key += piece) {
                const int head = kv_head * group_size(plan);
                const AttentionBlock part = piece_of(plan, block, query, key, head, kv_head);
                const PackedViews gradients =
                    call_scratch(plan, device->ops->storage, part.query_len, part.key_len, scratch);
                call_backward(device, plan, &part, &gradients, workspace);
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

// --- workspaces -------------------------------------------------------------------------------------------

size_t block_forward_bytes(Device *device, const AttentionPlan *plan, const AttentionBlock *block) {
    const AttentionShape shape = call_shape(plan, block, plan->kv_heads);
    return device->ops->attention.workspace(&shape, false, device->stream);
}

size_t block_backward_bytes(Device *device, const AttentionPlan *plan, const AttentionBlock *block,
                            const PackedViews *gradients) {
    const int64_t piece = plan->piece_len;
    size_t most = 0;
    for (int64_t query = 0; query < block->query_len; query += piece)
        for (int64_t key = 0; key < block->key_len && !(block->causal && key > query); key += piece) {
            const AttentionBlock part = piece_of(plan, block, query, key, 0, 0);
            const PackedViews scratch =
                call_scratch(plan, device->ops->storage, part.query_len, part.key_len, NULL);
            const AttentionShape shape = backward_shape(plan, &part, gradients ? gradients : &scratch);
            const size_t bytes = device->ops->attention.workspace(&shape, true, device->stream);
            if (bytes > most) most = bytes;
        }
    return most;
}
