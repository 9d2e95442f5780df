#include "model/ring_attention.h"

#include "parallel/sequence_parts.h"

// One process's view of the ring, and the layout of its pieces.
typedef struct {
    Device *device;
    const AttentionPlan *plan;
    StorageType storage, accumulator;
    Group group;
    int64_t piece;                 // tokens of one of this rank's two
    int64_t rows;                  // tokens of all sequences here
    int64_t query_width, kv_width; // elements of a token's queries, and of its keys and values
} Ring;

static Ring ring_of(Device *device, const AttentionPlan *plan) {
    const StorageType storage = device->ops->storage;
    Ring ring = {.device = device,
                 .plan = plan,
                 .storage = storage,
                 .accumulator = accumulator_type(storage),
                 .group = plan->context->communicator->groups[GROUP_CONTEXT],
                 .piece = plan->seq_len / 2,
                 .rows = plan->batch * plan->seq_len,
                 .query_width = (int64_t)plan->heads * plan->head_dim,
                 .kv_width = (int64_t)2 * plan->kv_heads * plan->head_dim};
    return ring;
}

static int next_rank(const Ring *ring) {
    return (ring->group.rank + 1) % ring->group.size;
}
static int previous_rank(const Ring *ring) {
    return (ring->group.rank + ring->group.size - 1) % ring->group.size;
}

// --- workspace ------------------------------------------------------------------------------------------

// Buffers laid out one after the other from `start` on; with start NULL their end is what they need.
typedef struct {
    char *start;
    size_t end;
} Layout;

static void *place(Layout *layout, int64_t elements, StorageType type) {
    const size_t offset = layout->end;
    layout->end += aligned((size_t)elements * storage_size(type));
    return layout->start + offset;
}

typedef struct {
    void *call;           // of the device's operation
    void *key_values[2];  // S[batch, seq_len, 2*kv_heads, head_dim]: the turn's, and the next one's
    void *sum;            // A[batch, seq_len, heads, head_dim]: the output so far
    void *part;           // S, and
    void *part_logsumexp; // A[batch, heads, …]: what a turn adds to it
    size_t bytes;
} ForwardBuffers;

static ForwardBuffers forward_buffers(const Ring *ring, void *workspace) {
    Layout layout = {workspace, aligned(ring->plan->forward_call_bytes)};
    ForwardBuffers buffers = {.call = workspace};
    for (int i = 0; i < 2; i++)
        buffers.key_values[i] = place(&layout, ring->rows * ring->kv_width, ring->storage);
    buffers.sum = place(&layout, ring->rows * ring->query_width, ring->accumulator);
    buffers.part = place(&layout, ring->rows * ring->query_width, ring->storage);
    buffers.part_logsumexp = place(&layout, ring->rows * ring->plan->heads, ring->accumulator);
    buffers.bytes = layout.end;
    return buffers;
}

size_t ring_forward_bytes(Device *device, const AttentionPlan *plan) {
    const Ring ring = ring_of(device, plan);
    return forward_buffers(&ring, NULL).bytes;
}

typedef struct {
    void *call;
    void *key_values[2];      // as in the forward
    void *grad_key_values[2]; // A, laid out likewise: they travel one turn behind
    void *grad_query;         // A[batch, seq_len, heads, head_dim]
    void *scratch;            // of block_backward
    size_t bytes;
} BackwardBuffers;

static BackwardBuffers backward_buffers(const Ring *ring, void *workspace) {
    Layout layout = {workspace, aligned(ring->plan->call_bytes)};
    BackwardBuffers buffers = {.call = workspace};
    for (int i = 0; i < 2; i++) {
        buffers.key_values[i] = place(&layout, ring->rows * ring->kv_width, ring->storage);
        buffers.grad_key_values[i] = place(&layout, ring->rows * ring->kv_width, ring->accumulator);
    }
    buffers.grad_query = place(&layout, ring->rows * ring->query_width, ring->accumulator);
    buffers.scratch = layout.start + layout.end;
    buffers.bytes = layout.end + block_scratch_bytes(ring->device, ring->plan);
    return buffers;
}

size_t ring_backward_bytes(Device *device, const AttentionPlan *plan) {
    const Ring ring = ring_of(device, plan);
    return backward_buffers(&ring, NULL).bytes;
}

// --- turns ----------------------------------------------------------------------------------------------

// The keys and values, without the queries before them, as they travel.
static void pack_key_values(const Ring *ring, void *key_values, const void *qkv) {
    const void *first = (const char *)qkv + ring->query_width * (int64_t)storage_size(ring->storage);
    ring->device->ops->convert.copy_rows(key_values, ring->kv_width, first,
                                         ring->query_width + ring->kv_width, ring->rows, ring->kv_width,
                                         ring->device->stream);
}

// Sends what is here of a turn to the next rank, and receives the previous rank's: pairs of buffers to send
// from and to receive into.
typedef struct {
    const void *from;
    void *to;
    StorageType type;
} Travel;

static void pass_on(const Ring *ring, const Travel *travels, int count, const char *what) {
    Message sends[2], receives[2];
    for (int i = 0; i < count; i++) {
        const size_t bytes = (size_t)(ring->rows * ring->kv_width) * storage_size(travels[i].type);
        sends[i] = (Message){(void *)travels[i].from, bytes, next_rank(ring)};
        receives[i] = (Message){travels[i].to, bytes, previous_rank(ring)};
    }
    collectives_exchange(ring->plan->context, GROUP_CONTEXT, sends, count, receives, count, what);
}

// The block of a turn, without what it writes: this rank's queries on the keys and values of the rank so many
// before it in the ring. In the first turn those are its own.
static AttentionBlock turn_block(const Ring *ring, int turn, const void *qkv, const void *key_values,
                                 int64_t *first_query) {
    const AttentionPlan *plan = ring->plan;
    const PackedViews here =
        packed_views(qkv, ring->storage, plan->seq_len, plan->heads, plan->kv_heads, plan->head_dim);
    const View keys =
        packed_view(key_values, ring->storage, plan->seq_len, 2 * plan->kv_heads, plan->head_dim);
    const bool after =
        turn > ring->group.rank; // keys of a rank after this one: only the late piece sees them
    AttentionBlock block = {0};
    *first_query = turn > 0 && after ? ring->piece : 0;
    block.query_len = plan->seq_len - *first_query;
    block.key_len = turn > 0 && !after ? ring->piece : plan->seq_len;
    block.causal = turn == 0;
    block.query = view_from(here.query, *first_query, 0);
    block.key = keys;
    block.value = view_from(keys, 0, plan->kv_heads);
    return block;
}

// --- forward --------------------------------------------------------------------------------------------

// The block of a turn of the forward, whose output is a part of the whole one.
static AttentionBlock forward_block(const Ring *ring, int turn, const void *qkv, const void *key_values,
                                    const ForwardBuffers *buffers, int64_t *first_query) {
    const int heads = ring->plan->heads;
    AttentionBlock block = turn_block(ring, turn, qkv, key_values, first_query);
    block.out = packed_view(buffers->part, ring->storage, block.query_len, heads, ring->plan->head_dim);
    block.logsumexp = logsumexp_view(buffers->part_logsumexp, ring->accumulator, block.query_len, heads);
    return block;
}

size_t ring_forward_call_bytes(Device *device, const AttentionPlan *plan) {
    const Ring ring = ring_of(device, plan);
    const ForwardBuffers nowhere = {0};
    size_t most = 0;
    for (int turn = 0; turn < ring.group.size; turn++) {
        int64_t first_query;
        const AttentionBlock block = forward_block(&ring, turn, NULL, NULL, &nowhere, &first_query);
        const size_t bytes = block_forward_bytes(device, plan, &block);
        if (bytes > most) most = bytes;
    }
    return most;
}

static void add_turn(const Ring *ring, const ForwardBuffers *buffers, const AttentionBlock *block,
                     int64_t first_query, void *logsumexp) {
    const AttentionPlan *plan = ring->plan;
    block_forward(ring->device, plan, block, buffers->call);
    const View sum =
        view_from(packed_view(buffers->sum, ring->accumulator, plan->seq_len, plan->heads, plan->head_dim),
                  first_query, 0);
    const View total =
        view_from(logsumexp_view(logsumexp, ring->accumulator, plan->seq_len, plan->heads), first_query, 0);
    AttentionShape shape = {0};
    shape.batch = plan->batch;
    shape.query_len = block->query_len;
    shape.heads = plan->heads;
    shape.head_dim = plan->head_dim;
    shape.output = sum.strides;
    shape.logsumexp = total.strides;
    ring->device->ops->attention.merge(sum.at, total.at, buffers->part, buffers->part_logsumexp, &shape,
                                       block->causal, ring->device->stream);
}

void ring_forward(Device *device, const AttentionPlan *plan, void *out, void *logsumexp, const void *qkv,
                  void *workspace) {
    const Ring ring = ring_of(device, plan);
    const ForwardBuffers buffers = forward_buffers(&ring, workspace);
    pack_key_values(&ring, buffers.key_values[0], qkv);
    for (int turn = 0; turn < ring.group.size; turn++) {
        void *here = buffers.key_values[turn % 2], *next = buffers.key_values[(turn + 1) % 2];
        const Travel travel = {here, next, ring.storage};
        if (turn > 0) collectives_finish(plan->context);
        if (turn + 1 < ring.group.size) pass_on(&ring, &travel, 1, "ring attention, forward");
        int64_t first_query;
        const AttentionBlock block = forward_block(&ring, turn, qkv, here, &buffers, &first_query);
        add_turn(&ring, &buffers, &block, first_query, logsumexp);
    }
    device->ops->convert.round_to_storage(out, buffers.sum, ring.rows * ring.query_width, device->stream);
}

// --- backward -------------------------------------------------------------------------------------------

typedef struct {
    const void *grad_out, *qkv, *out, *logsumexp;
} BackwardInputs;

// The block of a turn of the backward, with the whole output and its gradient.
static AttentionBlock backward_block(const Ring *ring, int turn, const BackwardInputs *in,
                                     const void *key_values, int64_t *first) {
    const AttentionPlan *plan = ring->plan;
    const int dim = plan->head_dim;
    AttentionBlock block = turn_block(ring, turn, in->qkv, key_values, first);
    const View out = packed_view(in->out, ring->storage, plan->seq_len, plan->heads, dim);
    const View grad_out = packed_view(in->grad_out, ring->storage, plan->seq_len, plan->heads, dim);
    const View logsumexp = logsumexp_view(in->logsumexp, ring->accumulator, plan->seq_len, plan->heads);
    block.out = view_from(out, *first, 0);
    block.grad_out = view_from(grad_out, *first, 0);
    block.logsumexp = view_from(logsumexp, *first, 0);
    return block;
}

size_t ring_backward_call_bytes(Device *device, const AttentionPlan *plan) {
    const Ring ring = ring_of(device, plan);
    const BackwardInputs nowhere = {0};
    size_t most = 0;
    for (int turn = 0; turn < ring.group.size; turn++) {
        int64_t first;
        const AttentionBlock block = backward_block(&ring, turn, &nowhere, NULL, &first);
        const size_t bytes = block_backward_bytes(device, plan, &block, NULL);
        if (bytes > most) most = bytes;
    }
    return most;
}

static void add_turn_backward(const Ring *ring, const BackwardBuffers *buffers, const BackwardInputs *in,
                              int turn) {
    const AttentionPlan *plan = ring->plan;
    const int dim = plan->head_dim;
    int64_t first;
    const AttentionBlock block = backward_block(ring, turn, in, buffers->key_values[turn % 2], &first);
    const View grad_query =
        packed_view(buffers->grad_query, ring->accumulator, plan->seq_len, plan->heads, dim);
    const View grad_keys = packed_view(buffers->grad_key_values[turn % 2], ring->accumulator, plan->seq_len,
                                       2 * plan->kv_heads, dim);
    const PackedViews sums = {view_from(grad_query, first, 0), grad_keys,
                              view_from(grad_keys, 0, plan->kv_heads)};
    // block_backward waits for the exchange begun before this turn just before it adds to what it receives.
    block_backward(ring->device, plan, &block, &sums, plan->context, buffers->call, buffers->scratch);
}

// grad_qkv from its queries' part, and from its keys' and values' part that has come home.
static void unpack_gradients(const Ring *ring, void *grad_qkv, const void *grad_query,
                             const void *grad_key_values) {
    const Ops *ops = ring->device->ops;
    const int64_t width = ring->query_width + ring->kv_width;
    void *keys = (char *)grad_qkv + ring->query_width * (int64_t)storage_size(ring->storage);
    ops->convert.round_rows(grad_qkv, width, grad_query, ring->query_width, ring->rows, ring->query_width,
                            ring->device->stream);
    ops->convert.round_rows(keys, width, grad_key_values, ring->kv_width, ring->rows, ring->kv_width,
                            ring->device->stream);
}

void ring_backward(Device *device, const AttentionPlan *plan, void *grad_qkv, const void *grad_out,
                   const void *qkv, const void *out, const void *logsumexp, void *workspace) {
    const Ring ring = ring_of(device, plan);
    const BackwardBuffers buffers = backward_buffers(&ring, workspace);
    const BackwardInputs in = {grad_out, qkv, out, logsumexp};
    const size_t accumulator = storage_size(ring.accumulator);
    const int size = ring.group.size;
    device->zero(device, buffers.grad_query, (size_t)(ring.rows * ring.query_width) * accumulator);
    device->zero(device, buffers.grad_key_values[0], (size_t)(ring.rows * ring.kv_width) * accumulator);
    pack_key_values(&ring, buffers.key_values[0], qkv);
    for (int turn = 0; turn < size; turn++) {
        // The next turn's keys and values come while this one is computed, and so do the gradients that the
        // ranks before have summed up for this turn's.
        Travel travels[2];
        int count = 0;
        if (turn + 1 < size)
            travels[count++] =
                (Travel){buffers.key_values[turn % 2], buffers.key_values[(turn + 1) % 2], ring.storage};
        if (turn > 0)
            travels[count++] = (Travel){buffers.grad_key_values[(turn + 1) % 2],
                                        buffers.grad_key_values[turn % 2], ring.accumulator};
        pass_on(&ring, travels, count, "ring attention, backward");
        add_turn_backward(&ring, &buffers, &in, turn);
    }
    const Travel home = {buffers.grad_key_values[(size + 1) % 2], buffers.grad_key_values[size % 2],
                         ring.accumulator};
    pass_on(&ring, &home, 1, "ring attention, backward");
    collectives_finish(plan->context);
    unpack_gradients(&ring, grad_qkv, buffers.grad_query, buffers.grad_key_values[size % 2]);
}
