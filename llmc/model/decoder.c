#include "model/decoder.h"

#include <stdlib.h>

static int64_t rows_of(const Decoder *d) {
    return d->layers.batch * d->layers.seq_len;
}
static StorageType storage_of(const Decoder *d) {
    return d->layers.device->ops->storage;
}
static StorageType accumulator_of(const Decoder *d) {
    return accumulator_type(storage_of(d));
}
static void *buffer(const Decoder *d, size_t offset) {
    return memory_at(d->layers.memory, offset);
}
static const void *weight(const Decoder *d, ParameterKind kind) {
    return weights_get(d->layers.weights, kind, 0);
}
static void *gradient(const Decoder *d, ParameterKind kind) {
    return weights_gradient(d->layers.weights, kind, 0);
}

// --- memory ---------------------------------------------------------------------------------------------

static int64_t default_loss_chunk(const ModelConfig *config, StorageType storage) {
    const size_t bound = (size_t)2 << 30;
    const int64_t chunk = (int64_t)(bound / ((size_t)config->vocab_size * storage_size(storage)));
    // A power of two makes good matrix products and equal chunks of the usual lengths.
    int64_t rows = 128;
    while (2 * rows <= chunk) rows *= 2;
    return rows;
}

static LayerKinds *all_dense(int64_t layers) {
    LayerKinds *kinds = host_allocate((size_t)layers, sizeof(LayerKinds), "layer kinds");
    for (int64_t layer = 0; layer < layers; layer++) kinds[layer] = 1u << LAYER_DENSE;
    return kinds;
}

static Layers create_layers(Device *device, const ModelConfig *config, const DecoderSettings *s,
                            int64_t loss_chunk, const Weights *weights, MemoryPlan *memory) {
    LayerKinds *dense = s->layer_kinds ? NULL : all_dense(config->layers);
    const size_t bound = s->attention_workspace_bound;
    const LayersSettings settings = {
        .batch = s->batch,
        .seq_len = s->seq_len,
        .recompute = {s->recompute, s->dense_recompute},
        .deterministic = s->deterministic,
        .layer_kinds = s->layer_kinds ? s->layer_kinds : dense,
        .dense_steps = s->dense_steps,
        .dense_span = s->dense_span,
        .lighthouse = s->lighthouse,
        .scorer = s->scorer,
        .rope_pooling = s->rope_pooling,
        .scratch_elements = (size_t)(min_i64(loss_chunk, s->batch * s->seq_len) * config->vocab_size),
        .workspace_bound = bound > 0 ? bound : (size_t)4 << 30,
        .collectives = s->collectives};
    const Layers layers = layers_create(device, config, &settings, weights, memory);
    free(dense);
    return layers;
}

Decoder *decoder_create(Device *device, const ModelConfig *config, const DecoderSettings *s,
                        const Weights *weights, MemoryPlan *memory) {
    Decoder *d = host_allocate(1, sizeof(Decoder), "the decoder");
    d->micro_steps = s->micro_steps;
    d->loss_chunk = s->loss_chunk > 0 ? s->loss_chunk : default_loss_chunk(config, device->ops->storage);
    d->layers = create_layers(device, config, s, d->loss_chunk, weights, memory);
    const size_t rows = (size_t)rows_of(d);
    d->tokens = memory_plan_add(memory, rows * sizeof(int32_t), "tokens");
    d->targets = memory_plan_add(memory, rows * sizeof(int32_t), "targets");
    d->losses = memory_plan_add(memory, rows * storage_size(accumulator_of(d)), "losses");
    d->loss_sums = memory_plan_add(memory, (size_t)max_i64(s->micro_steps, 1) * sizeof(double), "loss sums");
    return d;
}

void decoder_free(Decoder *decoder) {
    layers_free(&decoder->layers);
    free(decoder);
}

void decoder_start(Decoder *decoder) {
    layers_start(&decoder->layers);
}

// --- forward --------------------------------------------------------------------------------------------

static void upload_rows(const Decoder *d, size_t offset, const int32_t *rows) {
    Device *device = d->layers.device;
    device->upload(device, buffer(d, offset), rows, (size_t)rows_of(d) * sizeof(int32_t));
}

// The stack up to the final norm; the host's int32[rows] tokens go in.
static void forward(Decoder *d, const StepAttention *attention, const int32_t *inputs) {
    const Layers *layers = &d->layers;
    const Ops *ops = layers->device->ops;
    Stream *stream = layers->device->stream;
    const ModelConfig *c = &layers->config;
    const Activations *a = layers->activations;
    // 1. The tokens' embeddings are the residual stream.
    upload_rows(d, d->tokens, inputs);
    ops->embedding.forward(activation_get(a, ACT_RESIDUAL, 0), weight(d, PARAM_EMBEDDING),
                           (const int32_t *)buffer(d, d->tokens), rows_of(d), c->dim, c->vocab_size, stream);
    // 2. The layers.
    for (int64_t layer = 0; layer < c->layers; layer++) layer_forward(layers, layer, attention);
    // 3. The final norm.
    ops->rmsnorm.forward(buffer(d, a->last_norm), buffer(d, a->last_rstd), buffer(d, a->last_residual),
                         weight(d, PARAM_FINAL_NORM), rows_of(d), c->dim, c->norm_eps, stream);
}

// 4. Head and loss of all rows, in chunks so that logits are never held whole. With a loss weight, also their
// backward: the head's gradient is added to, and the final norm's output gets its gradient in grad_branch.
static void head_and_loss(Decoder *d, const int32_t *targets, double loss_weight) {
    const Layers *layers = &d->layers;
    const Ops *ops = layers->device->ops;
    Stream *stream = layers->device->stream;
    const ModelConfig *c = &layers->config;
    const StorageType storage = storage_of(d);
    const void *head = weight(d, PARAM_HEAD);
    void *logits = buffer(d, layers->scratch);
    upload_rows(d, d->targets, targets);
    for (int64_t start = 0; start < rows_of(d); start += d->loss_chunk) {
        const int64_t chunk = min_i64(d->loss_chunk, rows_of(d) - start);
        const void *normed =
            storage_element(buffer(d, layers->activations->last_norm), storage, start * c->dim);
        ops->linear.forward(logits, normed, head, NULL, chunk, c->vocab_size, c->dim, stream);
        ops->loss.cross_entropy(storage_element(buffer(d, d->losses), accumulator_of(d), start), logits,
                                (const int32_t *)buffer(d, d->targets) + start, chunk, c->vocab_size,
                                loss_weight, stream);
        if (loss_weight == 0) continue;
        void *grad_normed =
            storage_element(buffer(d, layers->activations->grad_branch), storage, start * c->dim);
        ops->linear.backward_input(grad_normed, logits, head, chunk, c->vocab_size, c->dim, stream);
        ops->linear.backward_weight(gradient(d, PARAM_HEAD), logits, normed, chunk, c->vocab_size, c->dim,
                                    stream);
    }
}

static void sum_losses(Decoder *d, int64_t micro_step) {
    Device *device = d->layers.device;
    device->ops->reduce.sum((double *)buffer(d, d->loss_sums) + micro_step, buffer(d, d->losses), rows_of(d),
                            device->stream);
}

// --- backward -------------------------------------------------------------------------------------------

static void tell_ready(const Decoder *d, const GradientsReady *ready, ParameterKind kind, int64_t layer) {
    if (ready) ready->call(ready->context, parameter_find(&d->layers.weights->table, kind, layer)->bucket);
}

// Steps 3 to 1: from the gradient of the final norm's output, in grad_branch, down to the embedding.
static void backward(Decoder *d, const StepAttention *attention, const GradientsReady *ready) {
    const Layers *layers = &d->layers;
    const Ops *ops = layers->device->ops;
    Stream *stream = layers->device->stream;
    const ModelConfig *c = &layers->config;
    const Activations *a = layers->activations;
    ops->rmsnorm.backward(buffer(d, a->grad_residual), gradient(d, PARAM_FINAL_NORM), NULL,
                          buffer(d, a->grad_branch), buffer(d, a->last_residual), weight(d, PARAM_FINAL_NORM),
                          buffer(d, a->last_rstd), rows_of(d), c->dim, stream);
    for (int64_t layer = c->layers - 1; layer >= 0; layer--) {
        layer_backward(layers, layer, attention);
        tell_ready(d, ready, PARAM_QUERY, layer);
    }
    tell_ready(d, ready, PARAM_FINAL_NORM, 0);
    ops->embedding.backward(gradient(d, PARAM_EMBEDDING), buffer(d, a->grad_residual),
                            (const int32_t *)buffer(d, d->tokens), rows_of(d), c->dim, c->vocab_size, stream);
    tell_ready(d, ready, PARAM_EMBEDDING, 0);
}

// --- what others call -----------------------------------------------------------------------------------

void decoder_accumulate(Decoder *d, const StepAttention *attention, int64_t micro_step, const int32_t *inputs,
                        const int32_t *targets, double loss_weight, const GradientsReady *ready) {
    forward(d, attention, inputs);
    head_and_loss(d, targets, loss_weight);
    tell_ready(d, ready, PARAM_HEAD, 0);
    sum_losses(d, micro_step);
    backward(d, attention, ready);
}

double decoder_losses(const Decoder *d) {
    Device *device = d->layers.device;
    const size_t count = (size_t)d->micro_steps;
    double *sums = host_allocate(count, sizeof(double), "loss sums");
    device->download(device, sums, buffer(d, d->loss_sums), count * sizeof(double));
    double total = 0;
    for (size_t i = 0; i < count; i++) total += sums[i];
    free(sums);
    return total;
}

double decoder_evaluate(Decoder *d, const StepAttention *attention, const int32_t *inputs,
                        const int32_t *targets) {
    Device *device = d->layers.device;
    forward(d, attention, inputs);
    head_and_loss(d, targets, 0);
    sum_losses(d, 0);
    double total;
    device->download(device, &total, buffer(d, d->loss_sums), sizeof(total));
    return total;
}

void decoder_row_losses(Decoder *d, const StepAttention *attention, double *losses, const int32_t *inputs,
                        const int32_t *targets) {
    Device *device = d->layers.device;
    const size_t rows = (size_t)rows_of(d);
    void *stored = host_allocate(rows, storage_size(accumulator_of(d)), "losses");
    forward(d, attention, inputs);
    head_and_loss(d, targets, 0);
    device->download(device, stored, buffer(d, d->losses), rows * storage_size(accumulator_of(d)));
    storage_to_double(losses, stored, accumulator_of(d), rows);
    free(stored);
}

void decoder_logits(Decoder *d, void *logits, const int32_t *inputs, int64_t first_row, int64_t count) {
    const StepAttention dense = {0};
    const Layers *layers = &d->layers;
    const ModelConfig *c = &layers->config;
    Device *device = layers->device;
    forward(d, &dense, inputs);
    const void *normed =
        storage_element(buffer(d, layers->activations->last_norm), storage_of(d), first_row * c->dim);
    device->ops->linear.forward(buffer(d, layers->scratch), normed, weight(d, PARAM_HEAD), NULL, count,
                                c->vocab_size, c->dim, device->stream);
    device->download(device, logits, buffer(d, layers->scratch),
                     (size_t)(count * c->vocab_size) * storage_size(storage_of(d)));
}
