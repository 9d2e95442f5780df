#include "attention.h"

#include <math.h>

// The query tokens [query_start, +query_len) against the keys [key_start, +key_len) of `kv_heads` key/value
// heads and their query heads: one call of the device's operation.
typedef struct {
    int64_t query_start, query_len, key_start, key_len;
    int kv_head_start, kv_heads;
} Piece;

static int total_heads(const AttentionPlan *plan) {
    return plan->heads + 2 * plan->kv_heads;
}
static int group_size(const AttentionPlan *plan) {
    return plan->heads / plan->kv_heads;
}
static bool cut_by_length(const AttentionPlan *plan) {
    return plan->piece_len < plan->seq_len;
}

static AttentionStrides packed(int64_t seq_len, int heads, int head_dim) {
    AttentionStrides strides = {seq_len * heads * head_dim, (int64_t)heads * head_dim, head_dim};
    return strides;
}

static AttentionShape piece_shape(const AttentionPlan *plan, const Piece *piece) {
    const AttentionStrides qkv = packed(plan->seq_len, total_heads(plan), plan->head_dim);
    AttentionShape shape = {0};
    shape.batch = plan->batch;
    shape.query_len = piece->query_len;
    shape.key_len = piece->key_len;
    shape.heads = piece->kv_heads * group_size(plan);
    shape.kv_heads = piece->kv_heads;
    shape.head_dim = plan->head_dim;
    shape.causal = piece->query_start == piece->key_start;
    shape.deterministic = plan->deterministic;
    shape.scale = 1 / sqrt((double)plan->head_dim);
    shape.query = shape.key = shape.value = qkv;
    shape.output = packed(plan->seq_len, plan->heads, plan->head_dim);
    shape.logsumexp.batch = plan->heads * plan->seq_len;
    shape.logsumexp.token = 1;
    shape.logsumexp.head = plan->seq_len;
    // A piece's gradients go to a scratch of its own size and are added to the whole from there.
    const bool cut = cut_by_length(plan);
    shape.grad_query = cut ? packed(piece->query_len, shape.heads, plan->head_dim) : qkv;
    shape.grad_key = cut ? packed(piece->key_len, piece->kv_heads, plan->head_dim) : qkv;
    shape.grad_value = shape.grad_key;
    return shape;
}

static Piece whole(const AttentionPlan *plan) {
    Piece piece = {0, plan->seq_len, 0, plan->seq_len, 0, plan->kv_heads};
    return piece;
}

// The workspace holds the operation's own, then (cut by length) the sums of all gradients in the accumulator
// type, then one piece's gradients.
typedef struct {
    size_t sums, grad_query, grad_key, grad_value, end; // byte offsets
} WorkspaceLayout;

static size_t aligned(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static WorkspaceLayout workspace_layout(const AttentionPlan *plan, const Ops *ops) {
    WorkspaceLayout layout = {0};
    layout.sums = layout.grad_query = layout.grad_key = layout.grad_value = layout.end =
        aligned(plan->call_bytes);
    if (!cut_by_length(plan)) return layout;
    const size_t all = (size_t)(plan->batch * plan->seq_len) * (size_t)(total_heads(plan) * plan->head_dim);
    const size_t kv_piece =
        (size_t)(plan->batch * plan->piece_len) * (size_t)(plan->kv_heads_per_call * plan->head_dim);
    const size_t size = storage_size(ops->storage);
    layout.grad_query = layout.sums + aligned(all * storage_size(accumulator_type(ops->storage)));
    layout.grad_key = layout.grad_query + aligned(kv_piece * (size_t)group_size(plan) * size);
    layout.grad_value = layout.grad_key + aligned(kv_piece * size);
    layout.end = layout.grad_value + aligned(kv_piece * size);
    return layout;
}

// The most that one backward call of the plan asks for: a diagonal (causal) piece or a square one off it.
static size_t backward_call_bytes(const AttentionPlan *plan, Device *device) {
    Piece diagonal = {0, plan->piece_len, 0, plan->piece_len, 0, plan->kv_heads_per_call};
    AttentionShape shape = piece_shape(plan, &diagonal);
    size_t bytes = device->ops->attention_workspace(&shape, true, device->stream);
    if (!cut_by_length(plan)) return bytes;
    Piece beside = {plan->piece_len, plan->piece_len, 0, plan->piece_len, 0, plan->kv_heads_per_call};
    shape = piece_shape(plan, &beside);
    size_t other = device->ops->attention_workspace(&shape, true, device->stream);
    return other > bytes ? other : bytes;
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

void attention_plan_sizes(Device *device, AttentionPlan *plan) {
    const Piece all = whole(plan);
    const AttentionShape shape = piece_shape(plan, &all);
    plan->forward_bytes = device->ops->attention_workspace(&shape, false, device->stream);
    plan->call_bytes = backward_call_bytes(plan, device);
    const size_t backward_bytes = workspace_layout(plan, device->ops).end;
    plan->workspace_bytes = plan->forward_bytes > backward_bytes ? plan->forward_bytes : backward_bytes;
}

AttentionPlan attention_plan(Device *device, int64_t batch, int64_t seq_len, int heads, int kv_heads,
                             int head_dim, bool deterministic, size_t workspace_bound) {
    AttentionPlan plan = {batch,    seq_len, heads, kv_heads, head_dim, deterministic,
                          kv_heads, seq_len, 0,     0,        0};
    attention_plan_sizes(device, &plan);
    while (deterministic && plan.call_bytes > workspace_bound) {
        if (!cut_further(&plan))
            fatal("deterministic attention of %ld tokens does not fit a workspace of %zu bytes",
                  (long)seq_len, workspace_bound);
        attention_plan_sizes(device, &plan);
    }
    return plan;
}

static void *at(const void *array, int64_t element, StorageType type) {
    return (char *)array + element * (int64_t)storage_size(type);
}

void attention_forward(Device *device, const AttentionPlan *plan, void *out, void *logsumexp, const void *qkv,
                       void *workspace) {
    const StorageType storage = device->ops->storage;
    const Piece all = whole(plan);
    const AttentionShape shape = piece_shape(plan, &all);
    const void *key = at(qkv, (int64_t)plan->heads * plan->head_dim, storage);
    const void *value = at(qkv, (int64_t)(plan->heads + plan->kv_heads) * plan->head_dim, storage);
    device->ops->attention_forward(out, logsumexp, qkv, key, value, &shape, workspace, device->stream);
}

// Where a piece's queries, keys and values are, as elements from the start of a packed array.
typedef struct {
    int64_t query, key, value;
} PackedOffsets;

static PackedOffsets packed_offsets(const AttentionPlan *plan, const Piece *piece) {
    const int64_t width = (int64_t)total_heads(plan) * plan->head_dim;
    const int64_t head_start = (int64_t)piece->kv_head_start * group_size(plan);
    const int64_t key_head = plan->heads + piece->kv_head_start;
    PackedOffsets offsets = {piece->query_start * width + head_start * plan->head_dim,
                             piece->key_start * width + key_head * plan->head_dim,
                             piece->key_start * width + (key_head + plan->kv_heads) * plan->head_dim};
    return offsets;
}

static void backward_piece(Device *device, const AttentionPlan *plan, const Piece *piece, void *grad_query,
                           void *grad_key, void *grad_value, const void *grad_out, const void *qkv,
                           const void *out, const void *logsumexp, void *workspace) {
    const StorageType storage = device->ops->storage;
    const AttentionShape shape = piece_shape(plan, piece);
    const PackedOffsets offsets = packed_offsets(plan, piece);
    const int64_t head_start = (int64_t)piece->kv_head_start * group_size(plan);
    const int64_t out_start = (piece->query_start * plan->heads + head_start) * plan->head_dim;
    const int64_t logsumexp_start = head_start * plan->seq_len + piece->query_start;
    device->ops->attention_backward(
        grad_query, grad_key, grad_value, at(grad_out, out_start, storage), at(qkv, offsets.query, storage),
        at(qkv, offsets.key, storage), at(qkv, offsets.value, storage), at(out, out_start, storage),
        at(logsumexp, logsumexp_start, accumulator_type(storage)), &shape, workspace, device->stream);
}

// Adds a piece's gradient S[batch, len, heads, head_dim] to the sums from element `offset` on.
static void add_piece(Device *device, const AttentionPlan *plan, void *sums, int64_t offset,
                      const void *gradient, int64_t len, int heads) {
    const StorageType storage = device->ops->storage, accumulator = accumulator_type(storage);
    const int64_t columns = (int64_t)heads * plan->head_dim;
    const int64_t width = (int64_t)total_heads(plan) * plan->head_dim;
    for (int64_t row = 0; row < plan->batch; row++)
        device->ops->accumulate_rows(at(sums, row * plan->seq_len * width + offset, accumulator), width,
                                     at(gradient, row * len * columns, storage), columns, len, columns,
                                     device->stream);
}

static void backward_cut_by_heads(Device *device, const AttentionPlan *plan, void *grad_qkv,
                                  const void *grad_out, const void *qkv, const void *out,
                                  const void *logsumexp, void *workspace) {
    const StorageType storage = device->ops->storage;
    Piece piece = whole(plan);
    piece.kv_heads = plan->kv_heads_per_call;
    for (; piece.kv_head_start < plan->kv_heads; piece.kv_head_start += piece.kv_heads) {
        const PackedOffsets offsets = packed_offsets(plan, &piece);
        backward_piece(device, plan, &piece, at(grad_qkv, offsets.query, storage),
                       at(grad_qkv, offsets.key, storage), at(grad_qkv, offsets.value, storage), grad_out,
                       qkv, out, logsumexp, workspace);
    }
}

static void backward_cut_by_length(Device *device, const AttentionPlan *plan, void *grad_qkv,
                                   const void *grad_out, const void *qkv, const void *out,
                                   const void *logsumexp, void *workspace) {
    char *base = (char *)workspace;
    const WorkspaceLayout layout = workspace_layout(plan, device->ops);
    void *sums = base + layout.sums;
    device->zero(device, sums, layout.grad_query - layout.sums);
    Piece piece = whole(plan);
    piece.kv_heads = plan->kv_heads_per_call;
    for (; piece.kv_head_start < plan->kv_heads; piece.kv_head_start += piece.kv_heads)
        for (piece.query_start = 0; piece.query_start < plan->seq_len; piece.query_start += plan->piece_len)
            for (piece.key_start = 0; piece.key_start <= piece.query_start;
                 piece.key_start += plan->piece_len) {
                piece.query_len = min_i64(plan->piece_len, plan->seq_len - piece.query_start);
                piece.key_len = min_i64(plan->piece_len, plan->seq_len - piece.key_start);
                backward_piece(device, plan, &piece, base + layout.grad_query, base + layout.grad_key,
                               base + layout.grad_value, grad_out, qkv, out, logsumexp, workspace);
                const PackedOffsets offsets = packed_offsets(plan, &piece);
                add_piece(device, plan, sums, offsets.query, base + layout.grad_query, piece.query_len,
                          piece.kv_heads * group_size(plan));
                add_piece(device, plan, sums, offsets.key, base + layout.grad_key, piece.key_len,
                          piece.kv_heads);
                add_piece(device, plan, sums, offsets.value, base + layout.grad_value, piece.key_len,
                          piece.kv_heads);
            }
    device->ops->round_to_storage(
        grad_qkv, sums, plan->batch * plan->seq_len * total_heads(plan) * plan->head_dim, device->stream);
}

void attention_backward(Device *device, const AttentionPlan *plan, void *grad_qkv, const void *grad_out,
                        const void *qkv, const void *out, const void *logsumexp, void *workspace) {
    if (cut_by_length(plan))
        backward_cut_by_length(device, plan, grad_qkv, grad_out, qkv, out, logsumexp, workspace);
    else
        backward_cut_by_heads(device, plan, grad_qkv, grad_out, qkv, out, logsumexp, workspace);
}
