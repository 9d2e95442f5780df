#include "model/model.h"

#include "parallel/sequence_parts.h"

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

// The ranks that share this one's sequences.
static Group context_of(const Model *model) {
    const Collectives *collectives = model->settings.collectives;
    const Group alone = {0, 1};
    return collectives ? collectives->communicator->groups[GROUP_CONTEXT] : alone;
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

static const LighthouseShape *lighthouse_of(const Model *model) {
    return model->lighthouse_layers > 0 ? &model->lighthouse : NULL;
}

static size_t bytes_of(const Model *model, ActivationKind kind) {
    return activation_bytes(kind, &model->config, model->settings.batch, model->settings.seq_len,
                            lighthouse_of(model), storage_of(model));
}

static bool is_kept(const Model *model, ActivationKind kind, int64_t layer) {
    return activation_kept(kind, model->layer_kinds[layer], model->settings.recompute);
}

static void plan_activations(Model *model, MemoryPlan *plan) {
    const int64_t layers = model->config.layers;
    for (int i = 0; i < ACTIVATION_KINDS; i++) {
        const ActivationKind kind = (ActivationKind)i;
        int64_t kept = 0;
        bool shared = false;
        for (int64_t layer = 0; layer < layers; layer++) {
            kept += is_kept(model, kind, layer);
            shared |= activation_shared(kind, model->layer_kinds[layer], model->settings.recompute);
        }
        const size_t bytes = bytes_of(model, kind);
        model->activations[i] =
            (void **)host_allocate((size_t)layers, sizeof(void *), "activation addresses");
        plan_add(plan, (size_t)kept * bytes, &model->kept_activations[i], "activations: %s, %ld layers",
                 activation_name(kind), (long)kept);
        plan_add(plan, shared ? bytes : 0, &model->shared_activation[i], "activations: %s, not kept",
                 activation_name(kind));
    }
}

// What all layers' attention needs at most: that of dense layers' backward only if there are any.
static size_t attention_workspace_bytes(const Model *model) {
    const bool all_lighthouse = model->lighthouse_layers == model->config.layers;
    const size_t dense = all_lighthouse ? model->attention.forward_bytes : model->attention.workspace_bytes;
    const size_t sub = model->lighthouse_layers > 0 ? model->sub_attention.workspace_bytes : 0;
    return dense > sub ? dense : sub;
}

// Elements of storage type: a chunk of logits, or the wide gradients of one half of a layer.
static size_t scratch_elements(const Model *model) {
    const ModelConfig *c = &model->config;
    const int64_t rows = rows_of(model);
    const int64_t logits = min_i64(model->settings.loss_chunk, rows) * c->vocab_size;
    const int64_t feed_forward = rows * 3 * c->ffn_dim;
    const int64_t lighthouse =
        model->lighthouse_layers > 0 ? lighthouse_backward_scratch(&model->lighthouse) : 0;
    const int64_t attention = rows * qkv_dim(c) + lighthouse;
    return (size_t)max_i64(logits, max_i64(feed_forward, attention));
}

static void plan_halo(Model *model, MemoryPlan *plan) {
    LighthouseHalo *halo = &model->halo;
    const size_t elements = halo->context ? (size_t)lighthouse_halo_elements(&model->lighthouse) : 0;
    const size_t storage = storage_size(storage_of(model)), accumulator = storage_size(accumulator_of(model));
    plan_add(plan, elements * storage, &halo->sent, "the scatter's halo, to send");
    plan_add(plan, elements * storage, &halo->received, "the scatter's halo, received");
    plan_add(plan, elements * accumulator, &halo->grad_sent, "the halo's gradient, to send");
    plan_add(plan, elements * accumulator, &halo->grad_received, "the halo's gradient, received");
}

static void plan_buffers(Model *model, MemoryPlan *plan) {
    const size_t storage = storage_size(storage_of(model)), accumulator = storage_size(accumulator_of(model));
    const size_t rows = (size_t)rows_of(model), elements = (size_t)model->parameters.elements;
    const size_t residual = rows * (size_t)model->config.dim * storage;
    const size_t angles = (size_t)(model->settings.seq_len * head_dim(&model->config)) * accumulator;
    const size_t heads = (size_t)(model->config.heads + model->config.kv_heads);
    const size_t scores = model->lighthouse_layers > 0
                              ? (size_t)(model->settings.batch * model->lighthouse.pyramid) * heads
                              : 0;
    plan_add(plan, elements * storage, &model->weights, "weights");
    plan_add(plan, elements * accumulator, &model->gradients, "gradients");
    plan_activations(model, plan);
    plan_add(plan, residual, &model->last_residual, "activations: last layer's output");
    plan_add(plan, residual, &model->last_norm, "activations: final norm");
    plan_add(plan, rows * accumulator, &model->last_rstd, "activations: final norm 1/rms");
    plan_add(plan, residual, &model->grad_residual, "gradient of the residual stream");
    plan_add(plan, residual, &model->grad_branch, "gradient of a branch");
    plan_add(plan, scratch_elements(model) * storage, &model->scratch,
             "a chunk of logits, or wide gradients");
    plan_add(plan, scores * accumulator, &model->scores, "selection scores");
    plan_halo(model, plan);
    plan_add(plan, attention_workspace_bytes(model), &model->attention_workspace, "attention workspace");
    plan_add(plan, angles, &model->angles, "RoPE angles");
    plan_add(plan, rows * sizeof(int32_t), &model->tokens, "tokens");
    plan_add(plan, rows * sizeof(int32_t), &model->targets, "targets");
    plan_add(plan, rows * accumulator, &model->losses, "losses");
    plan_add(plan, (size_t)max_i64(model->settings.micro_steps, 1) * sizeof(double), &model->loss_sums,
             "loss sums");
}

static void settle_layers(Model *model) {
    const ModelSettings *s = &model->settings;
    const int64_t layers = model->config.layers;
    model->layer_kinds = (LayerKind *)host_allocate((size_t)layers, sizeof(LayerKind), "layer kinds");
    for (int64_t layer = 0; layer < layers; layer++)
        if (s->selection && !(s->dense_layers && s->dense_layers[layer])) {
            model->layer_kinds[layer] = LAYER_LIGHTHOUSE;
            model->lighthouse_layers++;
        }
    model->settings.dense_layers = NULL; // the caller's memory
}

static void settle_lighthouse(Model *model) {
    const ModelSettings *s = &model->settings;
    const ModelConfig *c = &model->config;
    const int ranks = context_of(model).size;
    model->lighthouse = lighthouse_part(lighthouse_shape(&s->lighthouse, s->batch, s->seq_len * ranks,
                                                         (int)c->heads, (int)c->kv_heads, (int)head_dim(c)),
                                        ranks);
    char reason[512];
    Device *device = model->device;
    if (!device->ops->selection.supported(&model->lighthouse, reason, sizeof(reason), device->stream))
        fatal("%s (or train dense with --selection off)", reason);
    model->sub_attention = lighthouse_attention_plan(device, &model->lighthouse, s->deterministic,
                                                     s->attention_workspace_bound, s->collectives);
    model->halo.context = model->sub_attention.context;
}

void model_create(Model *model, Device *device, const ModelConfig *config, const ModelSettings *settings,
                  MemoryPlan *plan) {
    memset(model, 0, sizeof(*model));
    model->device = device;
    model->config = *config;
    model->settings = *settings;
    Collectives *collectives = settings->collectives;
    model->parameters = parameter_table_create(config, collectives ? collectives->communicator->size : 1);
    ModelSettings *s = &model->settings;
    const int heads = (int)config->heads, kv_heads = (int)config->kv_heads, dim = (int)head_dim(config);
    if (s->loss_chunk == 0) s->loss_chunk = default_loss_chunk(model);
    if (s->attention_workspace_bound == 0) s->attention_workspace_bound = (size_t)4 << 30;
    settle_layers(model);
    model->attention = attention_plan(device, s->batch, s->seq_len, heads, kv_heads, dim, s->deterministic,
                                      s->attention_workspace_bound, collectives);
    if (model->lighthouse_layers > 0) settle_lighthouse(model);
    plan_buffers(model, plan);
}

// Angles position · theta^(-2j/head_dim), formed in double: in float they would be off by 0.06 at a million.
// Of the positions that are here.
static void upload_angles(Model *model) {
    const Group context = context_of(model);
    const int64_t half = head_dim(&model->config) / 2, seq_len = model->settings.seq_len;
    const size_t count = (size_t)(seq_len * half * 2);
    double *angles = (double *)host_allocate(count, sizeof(double), "RoPE angles");
#pragma omp parallel for
    for (int64_t i = 0; i < seq_len; i++) {
        const double position = (double)context_position(context, seq_len, i);
        for (int64_t j = 0; j < half; j++) {
            const double frequency = pow(model->config.rope_theta, -2.0 * (double)j / (double)(2 * half));
            angles[(i * half + j) * 2] = cos(position * frequency);
            angles[(i * half + j) * 2 + 1] = sin(position * frequency);
        }
    }
    const size_t bytes = count * storage_size(accumulator_of(model));
    void *stored = host_allocate(bytes, 1, "RoPE angles");
    storage_from_double(stored, accumulator_of(model), angles, count);
    model->device->upload(model->device, model->angles, stored, bytes);
    free(stored);
    free(angles);
}

void model_start(Model *model) {
    for (int i = 0; i < ACTIVATION_KINDS; i++) {
        const size_t bytes = bytes_of(model, (ActivationKind)i);
        char *next = (char *)model->kept_activations[i];
        for (int64_t layer = 0; layer < model->config.layers; layer++) {
            const bool kept = is_kept(model, (ActivationKind)i, layer);
            model->activations[i][layer] = kept ? next : model->shared_activation[i];
            next += kept ? bytes : 0;
        }
    }
    upload_angles(model);
}

void model_free(Model *model) {
    for (int kind = 0; kind < ACTIVATION_KINDS; kind++) free(model->activations[kind]);
    free(model->layer_kinds);
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

LighthouseLayer model_lighthouse_layer(const Model *model, int64_t layer) {
    LighthouseLayer buffers = {(int32_t *)activation(model, ACT_POSITIONS, layer),
                               activation(model, ACT_GATHERED, layer), activation(model, ACT_SUB_OUT, layer),
                               activation(model, ACT_SUB_LOGSUMEXP, layer)};
    return buffers;
}

// Which of a layer's activations a pass makes: all of them in the forward; in the backward those not kept.
typedef struct {
    LayerKind kind;
    bool forward;
    RecomputeLevel level;
} Pass;

static bool makes(Pass pass, ActivationKind kind) {
    return pass.forward || !activation_kept(kind, pass.kind, pass.level);
}

// Queries, keys and values, turned by their positions; with `norms` also level 0 of the selection's scores.
static void project_qkv(Model *model, int64_t layer, bool norms) {
    const ModelConfig *c = &model->config;
    const Ops *ops = model->device->ops;
    void *qkv = activation(model, ACT_QKV, layer);
    ops->linear.forward(qkv, activation(model, ACT_ATTN_NORM, layer), model_weight(model, PARAM_QUERY, layer),
                        NULL, rows_of(model), qkv_dim(c), c->dim, model->device->stream);
    ops->rope.rotate(qkv, norms ? model->scores : NULL, model->lighthouse.pyramid, model->angles,
                     model->settings.batch, model->settings.seq_len, (int)(c->heads + 2 * c->kv_heads),
                     (int)(c->heads + c->kv_heads), (int)head_dim(c), false, model->device->stream);
}

static void attention_steps(Model *model, int64_t layer, Pass pass) {
    void *qkv = activation(model, ACT_QKV, layer), *out = activation(model, ACT_ATTENTION, layer);
    if (pass.kind == LAYER_DENSE) {
        if (makes(pass, ACT_QKV)) project_qkv(model, layer, false);
        if (makes(pass, ACT_ATTENTION))
            attention_forward(model->device, &model->attention, out, activation(model, ACT_LOGSUMEXP, layer),
                              qkv, model->attention_workspace);
        return;
    }
    const LighthouseShape *shape = &model->lighthouse;
    const LighthouseLayer buffers = model_lighthouse_layer(model, layer);
    if (makes(pass, ACT_GATHERED)) project_qkv(model, layer, makes(pass, ACT_POSITIONS));
    if (makes(pass, ACT_POSITIONS) && !model->selection_given)
        lighthouse_select(model->device, shape, &buffers, model->scores);
    if (makes(pass, ACT_GATHERED)) lighthouse_gather(model->device, shape, &buffers, qkv);
    if (makes(pass, ACT_SUB_OUT))
        lighthouse_attend(model->device, &model->sub_attention, &buffers, model->attention_workspace);
    if (makes(pass, ACT_ATTENTION)) lighthouse_scatter(model->device, shape, &buffers, &model->halo, out);
}

// Runs the steps of a layer, in order, whose results the pass makes. What a step reads has been kept or is
// made by a step before it.
static void layer_steps(Model *model, int64_t layer, Pass pass) {
    const Ops *ops = model->device->ops;
    Stream *stream = model->device->stream;
    const ModelConfig *c = &model->config;
    const int64_t rows = rows_of(model), query_dim = c->heads * head_dim(c);
    void *residual = activation(model, ACT_RESIDUAL, layer);
    void *ffn_residual = activation(model, ACT_FFN_RESIDUAL, layer);
    void *ffn_norm = activation(model, ACT_FFN_NORM, layer);
    void *gate_up = activation(model, ACT_GATE_UP, layer);

    if (makes(pass, ACT_ATTN_NORM))
        ops->rmsnorm.forward(activation(model, ACT_ATTN_NORM, layer), activation(model, ACT_ATTN_RSTD, layer),
                             residual, model_weight(model, PARAM_ATTENTION_NORM, layer), rows, c->dim,
                             c->norm_eps, stream);
    attention_steps(model, layer, pass);
    if (makes(pass, ACT_FFN_RESIDUAL))
        ops->linear.forward(ffn_residual, activation(model, ACT_ATTENTION, layer),
                            model_weight(model, PARAM_ATTENTION_OUT, layer), residual, rows, c->dim,
                            query_dim, stream);
    if (makes(pass, ACT_FFN_NORM))
        ops->rmsnorm.forward(ffn_norm, activation(model, ACT_FFN_RSTD, layer), ffn_residual,
                             model_weight(model, PARAM_FFN_NORM, layer), rows, c->dim, c->norm_eps, stream);
    if (makes(pass, ACT_GATE_UP))
        ops->linear.forward(gate_up, ffn_norm, model_weight(model, PARAM_GATE, layer), NULL, rows,
                            2 * c->ffn_dim, c->dim, stream);
    if (makes(pass, ACT_SWIGLU))
        ops->swiglu.forward(activation(model, ACT_SWIGLU, layer), gate_up, rows, c->ffn_dim, stream);
}

// The stack up to the final norm; the host's int32[rows] tokens go in. Without selection all layers are
// dense.
static void forward(Model *model, const int32_t *inputs, bool selection) {
    const Ops *ops = model->device->ops;
    Stream *stream = model->device->stream;
    const ModelConfig *c = &model->config;
    const int64_t rows = rows_of(model);
    model->device->upload(model->device, model->tokens, inputs, (size_t)rows * sizeof(int32_t));
    ops->embedding.forward(activation(model, ACT_RESIDUAL, 0), model_weight(model, PARAM_EMBEDDING, 0),
                           (const int32_t *)model->tokens, rows, c->dim, c->vocab_size, stream);
    for (int64_t layer = 0; layer < c->layers; layer++) {
        const Pass pass = {selection ? model->layer_kinds[layer] : LAYER_DENSE, true,
                           model->settings.recompute};
        layer_steps(model, layer, pass);
        void *output =
            layer + 1 < c->layers ? activation(model, ACT_RESIDUAL, layer + 1) : model->last_residual;
        ops->linear.forward(output, activation(model, ACT_SWIGLU, layer),
                            model_weight(model, PARAM_DOWN, layer),
                            activation(model, ACT_FFN_RESIDUAL, layer), rows, c->dim, c->ffn_dim, stream);
    }
    ops->rmsnorm.forward(model->last_norm, model->last_rstd, model->last_residual,
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
        ops->linear.forward(model->scratch, normed, head, NULL, chunk, c->vocab_size, c->dim, stream);
        ops->loss.cross_entropy(element(model->losses, start, accumulator_of(model)), model->scratch,
                                (const int32_t *)model->targets + start, chunk, c->vocab_size, loss_weight,
                                stream);
        if (loss_weight == 0) continue;
        ops->linear.backward_input(element(model->grad_branch, start * c->dim, storage), model->scratch, head,
                                   chunk, c->vocab_size, c->dim, stream);
        ops->linear.backward_weight(model_gradient(model, PARAM_HEAD, 0), model->scratch, normed, chunk,
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
    ops->linear.backward_weight(model_gradient(model, PARAM_DOWN, layer), model->grad_residual,
                                activation(model, ACT_SWIGLU, layer), rows, c->dim, c->ffn_dim, stream);
    ops->linear.backward_input(grad_swiglu, model->grad_residual, model_weight(model, PARAM_DOWN, layer),
                               rows, c->dim, c->ffn_dim, stream);
    ops->swiglu.backward(grad_gate_up, grad_swiglu, activation(model, ACT_GATE_UP, layer), rows, c->ffn_dim,
                         stream);
    ops->linear.backward_weight(model_gradient(model, PARAM_GATE, layer), grad_gate_up,
                                activation(model, ACT_FFN_NORM, layer), rows, 2 * c->ffn_dim, c->dim, stream);
    ops->linear.backward_input(model->grad_branch, grad_gate_up, model_weight(model, PARAM_GATE, layer), rows,
                               2 * c->ffn_dim, c->dim, stream);
    ops->rmsnorm.backward(model->grad_residual, model_gradient(model, PARAM_FFN_NORM, layer),
                          model->grad_residual, model->grad_branch,
                          activation(model, ACT_FFN_RESIDUAL, layer),
                          model_weight(model, PARAM_FFN_NORM, layer), activation(model, ACT_FFN_RSTD, layer),
                          rows, c->dim, stream);
}

static void dense_layer_backward(Model *model, int64_t layer, void *grad_qkv, const void *grad_attention) {
    const ModelConfig *c = &model->config;
    attention_backward(model->device, &model->attention, grad_qkv, grad_attention,
                       activation(model, ACT_QKV, layer), activation(model, ACT_ATTENTION, layer),
                       activation(model, ACT_LOGSUMEXP, layer), model->attention_workspace);
    model->device->ops->rope.rotate(grad_qkv, NULL, 0, model->angles, model->settings.batch,
                                    model->settings.seq_len, (int)(c->heads + 2 * c->kv_heads),
                                    (int)(c->heads + c->kv_heads), (int)head_dim(c), true,
                                    model->device->stream);
}

static void lighthouse_layer_backward(Model *model, int64_t layer, void *grad_qkv,
                                      const void *grad_attention) {
    const LighthouseLayer buffers = model_lighthouse_layer(model, layer);
    void *scratch = element(grad_qkv, rows_of(model) * qkv_dim(&model->config), storage_of(model));
    lighthouse_backward(model->device, &model->lighthouse, &model->sub_attention, &buffers, &model->halo,
                        grad_qkv, grad_attention, model->angles, scratch, model->attention_workspace);
}

// grad_residual comes in as the gradient of ffn_residual and leaves as that of the layer's input.
static void attention_block_backward(Model *model, int64_t layer) {
    const Ops *ops = model->device->ops;
    Stream *stream = model->device->stream;
    const ModelConfig *c = &model->config;
    const int64_t rows = rows_of(model), query_dim = c->heads * head_dim(c);
    void *grad_attention = model->grad_branch;
    void *grad_qkv = model->scratch;
    ops->linear.backward_weight(model_gradient(model, PARAM_ATTENTION_OUT, layer), model->grad_residual,
                                activation(model, ACT_ATTENTION, layer), rows, c->dim, query_dim, stream);
    ops->linear.backward_input(grad_attention, model->grad_residual,
                               model_weight(model, PARAM_ATTENTION_OUT, layer), rows, c->dim, query_dim,
                               stream);
    if (model->layer_kinds[layer] == LAYER_LIGHTHOUSE)
        lighthouse_layer_backward(model, layer, grad_qkv, grad_attention);
    else
        dense_layer_backward(model, layer, grad_qkv, grad_attention);
    ops->linear.backward_weight(model_gradient(model, PARAM_QUERY, layer), grad_qkv,
                                activation(model, ACT_ATTN_NORM, layer), rows, qkv_dim(c), c->dim, stream);
    ops->linear.backward_input(model->grad_branch, grad_qkv, model_weight(model, PARAM_QUERY, layer), rows,
                               qkv_dim(c), c->dim, stream);
    ops->rmsnorm.backward(model->grad_residual, model_gradient(model, PARAM_ATTENTION_NORM, layer),
                          model->grad_residual, model->grad_branch, activation(model, ACT_RESIDUAL, layer),
                          model_weight(model, PARAM_ATTENTION_NORM, layer),
                          activation(model, ACT_ATTN_RSTD, layer), rows, c->dim, stream);
}

static void tell_ready(const Model *model, const GradientsReady *ready, ParameterKind kind, int64_t layer) {
    if (ready) ready->call(ready->context, parameter_find(&model->parameters, kind, layer)->bucket);
}

// From the gradient of the final norm's output, in grad_branch, down to the embedding.
static void backward(Model *model, const GradientsReady *ready) {
    const Ops *ops = model->device->ops;
    Stream *stream = model->device->stream;
    const ModelConfig *c = &model->config;
    const int64_t rows = rows_of(model);
    ops->rmsnorm.backward(model->grad_residual, model_gradient(model, PARAM_FINAL_NORM, 0), NULL,
                          model->grad_branch, model->last_residual, model_weight(model, PARAM_FINAL_NORM, 0),
                          model->last_rstd, rows, c->dim, stream);
    for (int64_t layer = c->layers - 1; layer >= 0; layer--) {
        const Pass pass = {model->layer_kinds[layer], false, model->settings.recompute};
        layer_steps(model, layer, pass);
        feed_forward_backward(model, layer);
        attention_block_backward(model, layer);
        tell_ready(model, ready, PARAM_QUERY, layer);
    }
    tell_ready(model, ready, PARAM_FINAL_NORM, 0);
    ops->embedding.backward(model_gradient(model, PARAM_EMBEDDING, 0), model->grad_residual,
                            (const int32_t *)model->tokens, rows, c->dim, c->vocab_size, stream);
    tell_ready(model, ready, PARAM_EMBEDDING, 0);
}

// --- what others call -----------------------------------------------------------------------------------

void model_zero_gradients(Model *model) {
    const size_t bytes = (size_t)model->parameters.elements * storage_size(accumulator_of(model));
    model->device->zero(model->device, model->gradients, bytes);
}

void model_accumulate(Model *model, int64_t micro_step, const int32_t *inputs, const int32_t *targets,
                      double loss_weight, const GradientsReady *ready) {
    forward(model, inputs, true);
    head_and_loss(model, targets, loss_weight);
    tell_ready(model, ready, PARAM_HEAD, 0);
    model->device->ops->reduce.sum((double *)model->loss_sums + micro_step, model->losses, rows_of(model),
                                   model->device->stream);
    backward(model, ready);
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

double model_evaluate(Model *model, const int32_t *inputs, const int32_t *targets, bool selection) {
    forward(model, inputs, selection);
    head_and_loss(model, targets, 0);
    model->device->ops->reduce.sum((double *)model->loss_sums, model->losses, rows_of(model),
                                   model->device->stream);
    double total;
    model->device->download(model->device, &total, model->loss_sums, sizeof(total));
    return total;
}

void model_logits(Model *model, void *logits, const int32_t *inputs, int64_t first_row, int64_t count) {
    const ModelConfig *c = &model->config;
    const StorageType storage = storage_of(model);
    forward(model, inputs, false);
    model->device->ops->linear.forward(model->scratch, element(model->last_norm, first_row * c->dim, storage),
                                       model_weight(model, PARAM_HEAD, 0), NULL, count, c->vocab_size, c->dim,
                                       model->device->stream);
    model->device->download(model->device, logits, model->scratch,
                            (size_t)(count * c->vocab_size) * storage_size(storage));
}
