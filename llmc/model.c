#include "model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t rows_of(const Model *model) {
    return model->settings.batch * model->settings.seq_len;
}
static StorageType storage_of(const Model *model) {
    return model->device->ops->storage;
}
static StorageType accumulator_of(const Model *model) {
    return accumulator_type(storage_of(model));
}

// --- layout ---------------------------------------------------------------------------------------------

static int64_t default_loss_chunk(const Model *model) {
    const size_t bound = (size_t)2 << 30;
    int64_t chunk = (int64_t)(bound / ((size_t)model->config.vocab_size * storage_size(storage_of(model))));
    // A power of two makes good matrix products and equal chunks of the usual lengths.
    int64_t rows = 128;
    while (2 * rows <= chunk) rows *= 2;
    return rows;
}

static void plan_activations(Model *model, MemoryPlan *plan) {
    const int64_t layers = model->config.layers;
    for (int i = 0; i < ACTIVATION_KINDS; i++) {
        const ActivationKind kind = (ActivationKind)i;
        const bool kept = activation_kept(kind, model->settings.recompute);
        const size_t bytes = activation_bytes(kind, &model->config, rows_of(model), storage_of(model));
        model->activations[i] =
            (void **)host_allocate((size_t)layers, sizeof(void *), "activation addresses");
        // One buffer holds all layers of a kept activation; model_start hands out the layers' parts.
        plan_add(plan, kept ? bytes * (size_t)layers : bytes, &model->activations[i][0], "activations: %s%s",
                 activation_name(kind), kept ? "" : " (recomputed)");
    }
}

static void plan_buffers(Model *model, MemoryPlan *plan) {
    const ModelConfig *config = &model->config;
    const size_t storage = storage_size(storage_of(model)), accumulator = storage_size(accumulator_of(model));
    const size_t rows = (size_t)rows_of(model), elements = (size_t)model->parameters.elements;
    const size_t residual = rows * (size_t)config->dim * storage;
    const size_t logits =
        (size_t)min_i64(model->settings.loss_chunk, rows_of(model)) * (size_t)config->vocab_size;
    const size_t wide = rows * (size_t)max_i64(3 * config->ffn_dim, qkv_dim(config));
    plan_add(plan, elements * storage, &model->weights, "weights");
    plan_add(plan, elements * accumulator, &model->gradients, "gradients");
    plan_activations(model, plan);
    plan_add(plan, residual, &model->last_residual, "activations: last layer's output");
    plan_add(plan, residual, &model->last_norm, "activations: final norm");
    plan_add(plan, rows * accumulator, &model->last_rstd, "activations: final norm 1/rms");
    plan_add(plan, residual, &model->grad_residual, "gradient of the residual stream");
    plan_add(plan, residual, &model->grad_branch, "gradient of a branch");
    plan_add(plan, (logits > wide ? logits : wide) * storage, &model->scratch,
             "a chunk of logits, or wide gradients");
    plan_add(plan, model->attention.workspace_bytes, &model->attention_workspace, "attention workspace");
    plan_add(plan, (size_t)(model->settings.seq_len * head_dim(config)) * accumulator, &model->angles,
             "RoPE angles");
    plan_add(plan, rows * sizeof(int32_t), &model->tokens, "tokens");
    plan_add(plan, rows * sizeof(int32_t), &model->targets, "targets");
    plan_add(plan, rows * accumulator, &model->losses, "losses");
    plan_add(plan, (size_t)max_i64(model->settings.micro_steps, 1) * sizeof(double), &model->loss_sums,
             "loss sums");
}

void model_create(Model *model, Device *device, const ModelConfig *config, const ModelSettings *settings,
                  MemoryPlan *plan) {
    memset(model, 0, sizeof(*model));
    model->device = device;
    model->config = *config;
    model->settings = *settings;
    model->parameters = parameter_table_create(config);
    if (model->settings.loss_chunk == 0) model->settings.loss_chunk = default_loss_chunk(model);
    if (model->settings.attention_workspace_bound == 0)
        model->settings.attention_workspace_bound = (size_t)4 << 30;
    model->attention = attention_plan(device, settings->batch, settings->seq_len, (int)config->heads,
                                      (int)config->kv_heads, (int)head_dim(config), settings->deterministic,
                                      model->settings.attention_workspace_bound);
    plan_buffers(model, plan);
}

// Angles position · theta^(-2j/head_dim), formed in double: in float they would be off by 0.06 at a million.
static void upload_angles(Model *model) {
    const int64_t half = head_dim(&model->config) / 2, seq_len = model->settings.seq_len;
    const size_t count = (size_t)(seq_len * half * 2);
    double *angles = (double *)host_allocate(count, sizeof(double), "RoPE angles");
#pragma omp parallel for
    for (int64_t position = 0; position < seq_len; position++)
        for (int64_t j = 0; j < half; j++) {
            const double frequency = pow(model->config.rope_theta, -2.0 * (double)j / (double)(2 * half));
            const double angle = (double)position * frequency;
            angles[(position * half + j) * 2] = cos(angle);
            angles[(position * half + j) * 2 + 1] = sin(angle);
        }
    const size_t bytes = count * storage_size(accumulator_of(model));
    void *stored = host_allocate(bytes, 1, "RoPE angles");
    storage_from_double(stored, accumulator_of(model), angles, count);
    model->device->upload(model->device, model->angles, stored, bytes);
    free(stored);
    free(angles);
}

void model_start(Model *model) {
    for (int kind = 0; kind < ACTIVATION_KINDS; kind++) {
        const bool kept = activation_kept((ActivationKind)kind, model->settings.recompute);
        const size_t bytes =
            activation_bytes((ActivationKind)kind, &model->config, rows_of(model), storage_of(model));
        for (int64_t layer = 1; layer < model->config.layers; layer++)
            model->activations[kind][layer] =
                (char *)model->activations[kind][0] + (kept ? bytes * (size_t)layer : 0);
    }
    upload_angles(model);
}

void model_free(Model *model) {
    for (int kind = 0; kind < ACTIVATION_KINDS; kind++) free(model->activations[kind]);
    parameter_table_free(&model->parameters);
    memset(model, 0, sizeof(*model));
}

static void *element(const void *array, int64_t index, StorageType type) {
    return (char *)array + index * (int64_t)storage_size(type);
}

void *model_weight(const Model *model, ParameterKind kind, int64_t layer) {
    return element(model->weights, parameter_find(&model->parameters, kind, layer)->offset,
                   storage_of(model));
}

void *model_gradient(const Model *model, ParameterKind kind, int64_t layer) {
    return element(model->gradients, parameter_find(&model->parameters, kind, layer)->offset,
                   accumulator_of(model));
}

// --- forward --------------------------------------------------------------------------------------------

static void *activation(const Model *model, ActivationKind kind, int64_t layer) {
    return model->activations[kind][layer];
}

// Runs the steps of a layer, in order, whose results are wanted: all in the forward; in the backward those
// that were not kept. What a step reads has been kept or is made by a step before it.
static void layer_steps(Model *model, int64_t layer, bool only_missing) {
    const Ops *ops = model->device->ops;
    Stream *stream = model->device->stream;
    const ModelConfig *c = &model->config;
    const int64_t rows = rows_of(model), query_dim = c->heads * head_dim(c);
    const RecomputeLevel level = only_missing ? model->settings.recompute : RECOMPUTE_LEVELS;
    void *residual = activation(model, ACT_RESIDUAL, layer);
    void *attn_norm = activation(model, ACT_ATTN_NORM, layer);
    void *qkv = activation(model, ACT_QKV, layer);
    void *attention = activation(model, ACT_ATTENTION, layer);
    void *ffn_residual = activation(model, ACT_FFN_RESIDUAL, layer);
    void *ffn_norm = activation(model, ACT_FFN_NORM, layer);
    void *gate_up = activation(model, ACT_GATE_UP, layer);

    if (!activation_kept(ACT_ATTN_NORM, level))
        ops->rmsnorm_forward(attn_norm, activation(model, ACT_ATTN_RSTD, layer), residual,
                             model_weight(model, PARAM_ATTENTION_NORM, layer), rows, c->dim, c->norm_eps,
                             stream);
    if (!activation_kept(ACT_QKV, level)) {
        ops->linear_forward(qkv, attn_norm, model_weight(model, PARAM_QUERY, layer), NULL, rows, qkv_dim(c),
                            c->dim, stream);
        ops->rope(qkv, model->angles, model->settings.batch, model->settings.seq_len,
                  (int)(c->heads + 2 * c->kv_heads), (int)(c->heads + c->kv_heads), (int)head_dim(c), false,
                  stream);
    }
    if (!activation_kept(ACT_ATTENTION, level))
        attention_forward(model->device, &model->attention, attention,
                          activation(model, ACT_LOGSUMEXP, layer), qkv, model->attention_workspace);
    if (!activation_kept(ACT_FFN_RESIDUAL, level))
        ops->linear_forward(ffn_residual, attention, model_weight(model, PARAM_ATTENTION_OUT, layer),
                            residual, rows, c->dim, query_dim, stream);
    if (!activation_kept(ACT_FFN_NORM, level))
        ops->rmsnorm_forward(ffn_norm, activation(model, ACT_FFN_RSTD, layer), ffn_residual,
                             model_weight(model, PARAM_FFN_NORM, layer), rows, c->dim, c->norm_eps, stream);
    if (!activation_kept(ACT_GATE_UP, level))
        ops->linear_forward(gate_up, ffn_norm, model_weight(model, PARAM_GATE, layer), NULL, rows,
                            2 * c->ffn_dim, c->dim, stream);
    if (!activation_kept(ACT_SWIGLU, level))
        ops->swiglu_forward(activation(model, ACT_SWIGLU, layer), gate_up, rows, c->ffn_dim, stream);
}

// The stack up to the final norm; the host's int32[rows] tokens go in.
static void forward(Model *model, const int32_t *inputs) {
    const Ops *ops = model->device->ops;
    Stream *stream = model->device->stream;
    const ModelConfig *c = &model->config;
    const int64_t rows = rows_of(model);
    model->device->upload(model->device, model->tokens, inputs, (size_t)rows * sizeof(int32_t));
    ops->embedding_forward(activation(model, ACT_RESIDUAL, 0), model_weight(model, PARAM_EMBEDDING, 0),
                           (const int32_t *)model->tokens, rows, c->dim, c->vocab_size, stream);
    for (int64_t layer = 0; layer < c->layers; layer++) {
        layer_steps(model, layer, false);
        void *output =
            layer + 1 < c->layers ? activation(model, ACT_RESIDUAL, layer + 1) : model->last_residual;
        ops->linear_forward(output, activation(model, ACT_SWIGLU, layer),
                            model_weight(model, PARAM_DOWN, layer),
                            activation(model, ACT_FFN_RESIDUAL, layer), rows, c->dim, c->ffn_dim, stream);
    }
    ops->rmsnorm_forward(model->last_norm, model->last_rstd, model->last_residual,
                         model_weight(model, PARAM_FINAL_NORM, 0), rows, c->dim, c->norm_eps, stream);
}

// Head and loss of all rows, in chunks so that logits are never held whole. With a loss weight, also their
// backward: the head's gradient is added to, and the final norm's output gets its gradient in grad_branch.
static void head_and_loss(Model *model, const int32_t *targets, double loss_weight) {
    const Ops *ops = model->device->ops;
    Stream *stream = model->device->stream;
    const ModelConfig *c = &model->config;
    const StorageType storage = storage_of(model);
    const int64_t rows = rows_of(model);
    const void *head = model_weight(model, PARAM_HEAD, 0);
    model->device->upload(model->device, model->targets, targets, (size_t)rows * sizeof(int32_t));
    for (int64_t start = 0; start < rows; start += model->settings.loss_chunk) {
        const int64_t chunk = min_i64(model->settings.loss_chunk, rows - start);
        const void *normed = element(model->last_norm, start * c->dim, storage);
        ops->linear_forward(model->scratch, normed, head, NULL, chunk, c->vocab_size, c->dim, stream);
        ops->cross_entropy(element(model->losses, start, accumulator_of(model)), model->scratch,
                           (const int32_t *)model->targets + start, chunk, c->vocab_size, loss_weight,
                           stream);
        if (loss_weight == 0) continue;
        ops->linear_backward_input(element(model->grad_branch, start * c->dim, storage), model->scratch, head,
                                   chunk, c->vocab_size, c->dim, stream);
        ops->linear_backward_weight(model_gradient(model, PARAM_HEAD, 0), model->scratch, normed, chunk,
                                    c->vocab_size, c->dim, stream);
    }
}

// --- backward -------------------------------------------------------------------------------------------

// grad_residual comes in as the gradient of the layer's output and leaves as that of ffn_residual.
static void feed_forward_backward(Model *model, int64_t layer) {
    const Ops *ops = model->device->ops;
    Stream *stream = model->device->stream;
    const ModelConfig *c = &model->config;
    const int64_t rows = rows_of(model);
    void *grad_gate_up = model->scratch;
    void *grad_swiglu = element(model->scratch, rows * 2 * c->ffn_dim, storage_of(model));
    ops->linear_backward_weight(model_gradient(model, PARAM_DOWN, layer), model->grad_residual,
                                activation(model, ACT_SWIGLU, layer), rows, c->dim, c->ffn_dim, stream);
    ops->linear_backward_input(grad_swiglu, model->grad_residual, model_weight(model, PARAM_DOWN, layer),
                               rows, c->dim, c->ffn_dim, stream);
    ops->swiglu_backward(grad_gate_up, grad_swiglu, activation(model, ACT_GATE_UP, layer), rows, c->ffn_dim,
                         stream);
    ops->linear_backward_weight(model_gradient(model, PARAM_GATE, layer), grad_gate_up,
                                activation(model, ACT_FFN_NORM, layer), rows, 2 * c->ffn_dim, c->dim, stream);
    ops->linear_backward_input(model->grad_branch, grad_gate_up, model_weight(model, PARAM_GATE, layer), rows,
                               2 * c->ffn_dim, c->dim, stream);
    ops->rmsnorm_backward(model->grad_residual, model_gradient(model, PARAM_FFN_NORM, layer),
                          model->grad_residual, model->grad_branch,
                          activation(model, ACT_FFN_RESIDUAL, layer),
                          model_weight(model, PARAM_FFN_NORM, layer), activation(model, ACT_FFN_RSTD, layer),
                          rows, c->dim, stream);
}

// grad_residual comes in as the gradient of ffn_residual and leaves as that of the layer's input.
static void attention_block_backward(Model *model, int64_t layer) {
    const Ops *ops = model->device->ops;
    Stream *stream = model->device->stream;
    const ModelConfig *c = &model->config;
    const int64_t rows = rows_of(model), query_dim = c->heads * head_dim(c);
    void *grad_attention = model->grad_branch;
    void *grad_qkv = model->scratch;
    ops->linear_backward_weight(model_gradient(model, PARAM_ATTENTION_OUT, layer), model->grad_residual,
                                activation(model, ACT_ATTENTION, layer), rows, c->dim, query_dim, stream);
    ops->linear_backward_input(grad_attention, model->grad_residual,
                               model_weight(model, PARAM_ATTENTION_OUT, layer), rows, c->dim, query_dim,
                               stream);
    attention_backward(model->device, &model->attention, grad_qkv, grad_attention,
                       activation(model, ACT_QKV, layer), activation(model, ACT_ATTENTION, layer),
                       activation(model, ACT_LOGSUMEXP, layer), model->attention_workspace);
    ops->rope(grad_qkv, model->angles, model->settings.batch, model->settings.seq_len,
              (int)(c->heads + 2 * c->kv_heads), (int)(c->heads + c->kv_heads), (int)head_dim(c), true,
              stream);
    ops->linear_backward_weight(model_gradient(model, PARAM_QUERY, layer), grad_qkv,
                                activation(model, ACT_ATTN_NORM, layer), rows, qkv_dim(c), c->dim, stream);
    ops->linear_backward_input(model->grad_branch, grad_qkv, model_weight(model, PARAM_QUERY, layer), rows,
                               qkv_dim(c), c->dim, stream);
    ops->rmsnorm_backward(model->grad_residual, model_gradient(model, PARAM_ATTENTION_NORM, layer),
                          model->grad_residual, model->grad_branch, activation(model, ACT_RESIDUAL, layer),
                          model_weight(model, PARAM_ATTENTION_NORM, layer),
                          activation(model, ACT_ATTN_RSTD, layer), rows, c->dim, stream);
}

// From the gradient of the final norm's output, in grad_branch, down to the embedding.
static void backward(Model *model) {
    const Ops *ops = model->device->ops;
    Stream *stream = model->device->stream;
    const ModelConfig *c = &model->config;
    const int64_t rows = rows_of(model);
    ops->rmsnorm_backward(model->grad_residual, model_gradient(model, PARAM_FINAL_NORM, 0), NULL,
                          model->grad_branch, model->last_residual, model_weight(model, PARAM_FINAL_NORM, 0),
                          model->last_rstd, rows, c->dim, stream);
    for (int64_t layer = c->layers - 1; layer >= 0; layer--) {
        layer_steps(model, layer, true);
        feed_forward_backward(model, layer);
        attention_block_backward(model, layer);
    }
    ops->embedding_backward(model_gradient(model, PARAM_EMBEDDING, 0), model->grad_residual,
                            (const int32_t *)model->tokens, rows, c->dim, c->vocab_size, stream);
}

// --- what others call -----------------------------------------------------------------------------------

void model_zero_gradients(Model *model) {
    const size_t bytes = (size_t)model->parameters.elements * storage_size(accumulator_of(model));
    model->device->zero(model->device, model->gradients, bytes);
}

void model_accumulate(Model *model, int64_t micro_step, const int32_t *inputs, const int32_t *targets,
                      double loss_weight) {
    forward(model, inputs);
    head_and_loss(model, targets, loss_weight);
    model->device->ops->sum((double *)model->loss_sums + micro_step, model->losses, rows_of(model),
                            model->device->stream);
    backward(model);
}

double model_losses(Model *model) {
    const size_t count = (size_t)model->settings.micro_steps;
    double *sums = (double *)host_allocate(count, sizeof(double), "loss sums");
    model->device->download(model->device, sums, model->loss_sums, count * sizeof(double));
    double total = 0;
    for (size_t i = 0; i < count; i++) total += sums[i];
    free(sums);
    return total;
}

double model_evaluate(Model *model, const int32_t *inputs, const int32_t *targets) {
    forward(model, inputs);
    head_and_loss(model, targets, 0);
    model->device->ops->sum((double *)model->loss_sums, model->losses, rows_of(model), model->device->stream);
    double total;
    model->device->download(model->device, &total, model->loss_sums, sizeof(total));
    return total;
}

void model_logits(Model *model, void *logits, const int32_t *inputs, int64_t first_row, int64_t count) {
    const ModelConfig *c = &model->config;
    const StorageType storage = storage_of(model);
    forward(model, inputs);
    model->device->ops->linear_forward(model->scratch, element(model->last_norm, first_row * c->dim, storage),
                                       model_weight(model, PARAM_HEAD, 0), NULL, count, c->vocab_size, c->dim,
                                       model->device->stream);
    model->device->download(model->device, logits, model->scratch,
                            (size_t)(count * c->vocab_size) * storage_size(storage));
}
