#include "model/lighthouse.h"

#include "parallel/sequence_parts.h"

// --- pieces on other ranks -----------------------------------------------------------------------------

// Sends each piece's half of `sent` to the holder of the piece after it and receives that of the piece before
// (backwards: the other way round). Where there is no such piece, zeros are received.
static void exchange_halo(Device *device, const LighthouseShape *shape, Collectives *context, void *sent,
                          void *received, StorageType type, bool backwards) {
    const Group group = context->communicator->groups[GROUP_CONTEXT];
    const int last = 2 * group.size - 1, pieces[2] = {group.rank, last - group.rank};
    const size_t bytes = (size_t)(lighthouse_halo_elements(shape) / shape->pieces) * storage_size(type);
    Message sends[2], receives[2];
    int send_count = 0, receive_count = 0;
    device->zero(device, received, 2 * bytes);
    for (int i = 0; i < 2; i++) {
        const int to = pieces[i] + (backwards ? -1 : 1), from = pieces[i] - (backwards ? -1 : 1);
        if (to >= 0 && to <= last)
            sends[send_count++] =
                (Message){(char *)sent + (size_t)i * bytes, bytes, context_holder(group.size, to)};
        if (from >= 0 && from <= last)
            receives[receive_count++] =
                (Message){(char *)received + (size_t)i * bytes, bytes, context_holder(group.size, from)};
    }
    collectives_exchange(context, GROUP_CONTEXT, sends, send_count, receives, receive_count,
                         backwards ? "the scatter's halo, backward" : "the scatter's halo, forward");
    collectives_finish(context);
}

// --- forward -------------------------------------------------------------------------------------------

AttentionPlan lighthouse_attention_plan(Device *device, const LighthouseShape *shape, bool deterministic,
                                        size_t workspace_bound, Collectives *context) {
    return attention_plan(device, shape->batch, shape->entries, shape->heads, shape->heads, shape->head_dim,
                          deterministic, workspace_bound, context);
}

void lighthouse_select(Device *device, const LighthouseShape *shape, const LighthouseLayer *layer,
                       void *scores) {
    device->ops->selection.pool_scores(scores, shape, device->stream);
    device->ops->selection.select(layer->positions, scores, shape, device->stream);
}

void lighthouse_gather(Device *device, const LighthouseShape *shape, const LighthouseLayer *layer,
                       const void *qkv) {
    const Ops *ops = device->ops;
    ops->gather.forward(layer->gathered, qkv, layer->positions, shape, device->stream);
    if (layer->entry_angles)
        ops->rope.rotate_entries(layer->gathered, layer->positions, layer->entry_angles, shape, false,
                                 device->stream);
}

void lighthouse_attend(Device *device, const AttentionPlan *inner, const LighthouseLayer *layer,
                       void *workspace) {
    attention_forward(device, inner, layer->sub_out, layer->logsumexp, layer->gathered, workspace);
}

void lighthouse_scatter(Device *device, const LighthouseShape *shape, const LighthouseLayer *layer,
                        const LighthouseHalo *halo, void *out) {
    const Ops *ops = device->ops;
    if (halo->context) {
        ops->scatter.halo(halo->sent, layer->sub_out, layer->positions, shape, device->stream);
        exchange_halo(device, shape, halo->context, halo->sent, halo->received, ops->storage, false);
    }
    ops->scatter.forward(out, layer->sub_out, halo->received, layer->positions, shape, device->stream);
}

// --- backward ------------------------------------------------------------------------------------------

static int64_t sub_out_elements(const LighthouseShape *shape) {
    return shape->batch * shape->entries * shape->heads * shape->head_dim;
}

int64_t lighthouse_backward_scratch(const LighthouseShape *shape) {
    return 4 * sub_out_elements(shape); // the gradients of sub_out, and of queries, keys and values
}

void lighthouse_backward(Device *device, const LighthouseShape *shape, const AttentionPlan *inner,
                         const LighthouseLayer *layer, const LighthouseHalo *halo, void *grad_qkv,
                         const void *grad_out, const void *angles, void *scratch, void *workspace) {
    const Ops *ops = device->ops;
    void *grad_gathered = scratch;
    void *grad_sub_out =
        (char *)scratch + 3 * sub_out_elements(shape) * (int64_t)storage_size(device->ops->storage);
    if (halo->context) {
        ops->scatter.halo_backward(halo->grad_sent, grad_out, shape, device->stream);
        exchange_halo(device, shape, halo->context, halo->grad_sent, halo->grad_received,
                      accumulator_type(ops->storage), true);
    }
    ops->scatter.backward(grad_sub_out, grad_out, halo->grad_received, layer->positions, shape,
                          device->stream);
    attention_backward(device, inner, grad_gathered, grad_sub_out, layer->gathered, layer->sub_out,
                       layer->logsumexp, workspace);
    if (layer->entry_angles)
        ops->rope.rotate_entries(grad_gathered, layer->positions, layer->entry_angles, shape, true,
                                 device->stream);
    ops->gather.backward(grad_qkv, grad_gathered, layer->positions, angles, shape, device->stream);
}
