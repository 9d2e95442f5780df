#include "model/layers.h"

static int64_t rows_of(const Layers *layers) {
    return layers->batch * layers->seq_len;
}
static StorageType storage_of(const Layers *layers) {
    return layers->device->ops->storage;
}
static StorageType accumulator_of(const Layers *layers) {
    return accumulator_type(storage_of(layers));
}
static int64_t query_dim(const ModelConfig *config) {
    return config->heads * head_dim(config);
}

// --- memory ---------------------------------------------------------------------------------------------

// How many of the layers are of that kind at some step.
static int64_t layers_of_kind(const LayersSettings *s, int64_t layers, LayerKind kind) {
    int64_t count = 0;
    for (int64_t layer = 0; layer < layers; layer++) count += (s->layer_kinds[layer] & 1u << kind) != 0;
    return count;
}

static Group context_group(const LayersSettings *s) {
    const Group alone = {0, 1};
    return s->collectives ? s->collectives->communicator->groups[GROUP_CONTEXT] : alone;
}

static void settle_lighthouse(Layers *l, const LayersSettings *s) {
    const ModelConfig *c = &l->config;
    const int ranks = context_group(s).size;
    const LighthouseShape whole = lighthouse_shape(&s->lighthouse, s->batch, s->seq_len * ranks,
                                                   (int)c->heads, (int)c->kv_heads, (int)head_dim(c));
    l->lighthouse = lighthouse_part(whole, ranks);
    if (l->scorer->keys_for_each_query_head) l->lighthouse.key_score_heads = l->lighthouse.heads;
    Reason reason;
    Device *device = l->device;
    if (!device->ops->selection.supported(&l->lighthouse, &reason, device->stream))
        fatal("%s (or train dense with --selection off)", reason.text);
    l->sub_attention = lighthouse_attention_plan(device, &l->lighthouse, s->deterministic, s->workspace_bound,
                                                 s->collectives);
}

// Elements of storage type: the wide gradients of one half of a layer, or what others need.
static size_t scratch_elements(const Layers *l, const LayersSettings *s, bool selects) {
    const int64_t feed_forward = rows_of(l) * 3 * l->config.ffn_dim;
    const int64_t lighthouse = selects ? lighthouse_backward_scratch(&l->lighthouse) : 0;
    const int64_t attention = rows_of(l) * qkv_dim(&l->config) + lighthouse;
    return (size_t)max_i64((int64_t)s->scratch_elements, max_i64(feed_forward, attention));
}

// What attention needs at most, in any layer and step.
static size_t workspace_bytes(const Layers *l, const LayersSettings *s, bool selects) {
    const bool dense = layers_of_kind(s, l->config.layers, LAYER_DENSE) > 0;
    const AttentionPlan *whole = &l->attention[USUAL_STEP], *in_dense_steps = &l->attention[DENSE_STEP];
    // Where no layer is trained dense, validation still runs the dense forward.
    size_t bytes = dense ? whole->workspace_bytes : whole->forward_bytes;
    if (s->dense_steps && in_dense_steps->workspace_bytes > bytes) bytes = in_dense_steps->workspace_bytes;
    if (selects && l->sub_attention.workspace_bytes > bytes) bytes = l->sub_attention.workspace_bytes;
    return bytes;
}

static void plan_working_memory(Layers *l, const LayersSettings *s, MemoryPlan *memory) {
    const size_t storage = storage_size(storage_of(l)), accumulator = storage_size(accumulator_of(l));
    const bool selects = layers_of_kind(s, l->config.layers, LAYER_LIGHTHOUSE) > 0;
    const int64_t rows_of_scores = selects ? l->batch * score_rows(&l->lighthouse) : 0;
    const size_t scores = (size_t)(rows_of_scores * l->lighthouse.pyramid);
    const size_t halo = selects && l->context ? (size_t)lighthouse_halo_elements(&l->lighthouse) : 0;
    l->memory = memory;
    l->scratch = memory_plan_add(memory, scratch_elements(l, s, selects) * storage,
                                 "a chunk of logits, or wide gradients");
    l->scores = memory_plan_add(memory, scores * accumulator, "selection scores");
    l->halo = memory_plan_add(memory, halo * storage, "the scatter's halo, to send");
    l->halo_received = memory_plan_add(memory, halo * storage, "the scatter's halo, received");
    l->grad_halo = memory_plan_add(memory, halo * accumulator, "the halo's gradient, to send");
    l->grad_halo_received = memory_plan_add(memory, halo * accumulator, "the halo's gradient, received");
    l->attention_workspace = memory_plan_add(memory, workspace_bytes(l, s, selects), "attention workspace");
    l->angles =
        memory_plan_add(memory, (size_t)(l->seq_len * head_dim(&l->config)) * accumulator, "RoPE angles");
}

// Attention of a dense layer: of all tokens that a sequence has here, or of its spans, which are so many
// shorter sequences in the same buffers. A span is whole on its rank.
static AttentionPlan dense_plan(const Layers *l, const LayersSettings *s, int64_t span) {
    const ModelConfig *c = &l->config;
    const int64_t length = span > 0 ? span : s->seq_len;
    return attention_plan(l->device, s->batch * (s->seq_len / length), length, (int)c->heads,
                          (int)c->kv_heads, (int)head_dim(c), s->deterministic, s->workspace_bound,
                          span > 0 ? NULL : s->collectives);
}

Layers layers_create(Device *device, const ModelConfig *config, const LayersSettings *s,
                     const Weights *weights, MemoryPlan *memory) {
    const bool selects = layers_of_kind(s, config->layers, LAYER_LIGHTHOUSE) > 0;
    Layers l = {.device = device,
                .config = *config,
                .batch = s->batch,
                .seq_len = s->seq_len,
                .recompute = {s->recompute[USUAL_STEP], s->recompute[DENSE_STEP]},
                .weights = weights,
                .rope_pooling = s->rope_pooling,
                .scorer = s->scorer ? s->scorer : &scorers[0]};
    l.attention[USUAL_STEP] = dense_plan(&l, s, 0);
    l.attention[DENSE_STEP] = s->dense_span > 0 ? dense_plan(&l, s, s->dense_span) : l.attention[USUAL_STEP];
    l.context = l.attention[USUAL_STEP].context;
    if (selects) settle_lighthouse(&l, s);
    const ActivationSettings activations = {.batch = s->batch,
                                            .seq_len = s->seq_len,
                                            .recompute = s->recompute[USUAL_STEP],
                                            .layer_kinds = s->layer_kinds,
                                            .dense_steps = s->dense_steps,
                                            .dense_recompute = s->recompute[DENSE_STEP],
                                            .lighthouse = selects ? &l.lighthouse : NULL};
    l.activations = activations_create(device, config, &activations, memory);
    plan_working_memory(&l, s, memory);
    return l;
}

void layers_free(Layers *layers) {
    activations_free(layers->activations);
}

void layers_start(const Layers *l) {
    const Group alone = {0, 1};
    const Group context = l->context ? l->context->communicator->groups[GROUP_CONTEXT] : alone;
    rotary_upload(l->device, memory_at(l->memory, l->angles), l->seq_len, head_dim(&l->config),
                  l->config.rope_theta, context);
}

LayerKind layer_kind(int64_t layer, const StepAttention *attention) {
    return attention->layers ? attention->layers[layer] : LAYER_DENSE;
}

int64_t step_dense_layers(const StepAttention *attention, int64_t layers) {
    int64_t count = 0;
    for (int64_t layer = 0; layer < layers; layer++) count += layer_kind(layer, attention) == LAYER_DENSE;
    return count;
}

// --- a layer in one direction ---------------------------------------------------------------------------

typedef struct {
    const Layers *l;
    int64_t layer;
    LayerKind kind;
    bool forward, replay;
    RecomputeLevel recompute;
    const AttentionPlan *attention; // of a dense layer
} Pass;

static Pass pass_of(const Layers *layers, int64_t layer, const StepAttention *attention, bool forward) {
    const Pass pass = {.l = layers,
                       .layer = layer,
                       .kind = layer_kind(layer, attention),
                       .forward = forward,
                       .replay = attention->replay,
                       .recompute = layers->recompute[attention->type],
                       .attention = &layers->attention[attention->type]};
    return pass;
}

// Which of the activations a pass makes: all of them in the forward; in the backward those not kept.
static bool makes(const Pass *p, ActivationKind kind) {
    return p->forward || !activation_kept(kind, p->kind, p->recompute);
}
static void *activation(const Pass *p, ActivationKind kind) {
    return activation_get(p->l->activations, kind, p->layer);
}
static const void *weight(const Pass *p, ParameterKind kind) {
    return weights_get(p->l->weights, kind, p->layer);
}
static void *gradient(const Pass *p, ParameterKind kind) {
    return weights_gradient(p->l->weights, kind, p->layer);
}
static void *buffer(const Pass *p, size_t offset) {
    return memory_at(p->l->memory, offset);
}

// Whether Lighthouse layers turn queries and keys before they pool them, else after.
static bool turns_tokens(const Layers *layers) {
    return layers->rope_pooling == ROPE_BEFORE_POOLING;
}

LighthouseLayer layer_lighthouse(const Layers *layers, int64_t layer) {
    const Activations *a = layers->activations;
    LighthouseLayer buffers = {(int32_t *)activation_get(a, ACT_POSITIONS, layer),
                               activation_get(a, ACT_GATHERED, layer), activation_get(a, ACT_SUB_OUT, layer),
                               activation_get(a, ACT_SUB_LOGSUMEXP, layer),
                               turns_tokens(layers) ? NULL : memory_at(layers->memory, layers->angles)};
    return buffers;
}

static LighthouseHalo halo_of(const Pass *p) {
    const Layers *l = p->l;
    const LighthouseHalo halo = {l->context, buffer(p, l->halo), buffer(p, l->halo_received),
                                 buffer(p, l->grad_halo), buffer(p, l->grad_halo_received)};
    return halo;
}

// Turns the queries and keys of qkv S[batch, seq_len, heads + 2*kv_heads, head_dim] by their positions.
static void turn(const Pass *p, void *qkv, void *norms, bool inverse) {
    const ModelConfig *c = &p->l->config;
    p->l->device->ops->rope.rotate(qkv, norms, p->l->lighthouse.pyramid, buffer(p, p->l->angles), p->l->batch,
                                   p->l->seq_len, (int)(c->heads + 2 * c->kv_heads),
                                   (int)(c->heads + c->kv_heads), (int)head_dim(c), inverse,
                                   p->l->device->stream);
}

// --- forward --------------------------------------------------------------------------------------------
// The steps that a pass makes, in order. What a step reads has been kept or is made by a step before it.

// 2. Queries, keys and values, not turned yet.
static void project_qkv(const Pass *p) {
    const ModelConfig *c = &p->l->config;
    p->l->device->ops->linear.forward(activation(p, ACT_QKV), activation(p, ACT_ATTN_NORM),
                                      weight(p, PARAM_QUERY), NULL, rows_of(p->l), qkv_dim(c), c->dim,
                                      p->l->device->stream);
}

static void dense_attention(const Pass *p) {
    if (makes(p, ACT_QKV)) {
        project_qkv(p);
        turn(p, activation(p, ACT_QKV), NULL, false);
    }
    // 3. Attention of all tokens, or within their spans.
    if (makes(p, ACT_ATTENTION))
        attention_forward(p->l->device, p->attention, activation(p, ACT_ATTENTION),
                          activation(p, ACT_LOGSUMEXP), activation(p, ACT_QKV),
                          buffer(p, p->l->attention_workspace));
}

static void lighthouse_attention(const Pass *p) {
    const Layers *l = p->l;
    const LighthouseShape *shape = &l->lighthouse;
    const LighthouseLayer buffers = layer_lighthouse(l, p->layer);
    const bool selects = makes(p, ACT_POSITIONS), scores_by_rope = turns_tokens(l) && l->scorer->by_rope;
    void *qkv = activation(p, ACT_QKV), *scores = buffer(p, l->scores);
    if (makes(p, ACT_GATHERED)) {
        project_qkv(p);
        if (turns_tokens(l)) turn(p, qkv, selects && scores_by_rope ? scores : NULL, false);
    }
    // 3. Score the tokens, select entries of the pyramid, gather them, attend to them, scatter the outputs.
    if (selects && !p->replay) {
        if (!scores_by_rope) l->scorer->score(l->device, shape, scores, qkv);
        lighthouse_select(l->device, shape, &buffers, scores);
    }
    if (makes(p, ACT_GATHERED)) lighthouse_gather(l->device, shape, &buffers, qkv);
    if (makes(p, ACT_SUB_OUT))
        lighthouse_attend(l->device, &l->sub_attention, &buffers, buffer(p, l->attention_workspace));
    const LighthouseHalo halo = halo_of(p);
    if (makes(p, ACT_ATTENTION))
        lighthouse_scatter(l->device, shape, &buffers, &halo, activation(p, ACT_ATTENTION));
}

static void layer_steps(const Pass *p) {
    const Ops *ops = p->l->device->ops;
    Stream *stream = p->l->device->stream;
    const ModelConfig *c = &p->l->config;
    const int64_t rows = rows_of(p->l);
    // 1. Norm of the layer's input.
    if (makes(p, ACT_ATTN_NORM))
        ops->rmsnorm.forward(activation(p, ACT_ATTN_NORM), activation(p, ACT_ATTN_RSTD),
                             activation(p, ACT_RESIDUAL), weight(p, PARAM_ATTENTION_NORM), rows, c->dim,
                             c->norm_eps, stream);
    if (p->kind == LAYER_DENSE)
        dense_attention(p);
    else
        lighthouse_attention(p);
    // 4. Attention's projection, added to the residual stream.
    if (makes(p, ACT_FFN_RESIDUAL))
        ops->linear.forward(activation(p, ACT_FFN_RESIDUAL), activation(p, ACT_ATTENTION),
                            weight(p, PARAM_ATTENTION_OUT), activation(p, ACT_RESIDUAL), rows, c->dim,
                            query_dim(c), stream);
    // 5. Norm of the residual stream.
    if (makes(p, ACT_FFN_NORM))
        ops->rmsnorm.forward(activation(p, ACT_FFN_NORM), activation(p, ACT_FFN_RSTD),
                             activation(p, ACT_FFN_RESIDUAL), weight(p, PARAM_FFN_NORM), rows, c->dim,
                             c->norm_eps, stream);
    // 6. Gate and up.
    if (makes(p, ACT_GATE_UP))
        ops->linear.forward(activation(p, ACT_GATE_UP), activation(p, ACT_FFN_NORM), weight(p, PARAM_GATE),
                            NULL, rows, 2 * c->ffn_dim, c->dim, stream);
    // 7. Their SwiGLU product.
    if (makes(p, ACT_SWIGLU))
        ops->swiglu.forward(activation(p, ACT_SWIGLU), activation(p, ACT_GATE_UP), rows, c->ffn_dim, stream);
}

void layer_forward(const Layers *l, int64_t layer, const StepAttention *attention) {
    const Pass p = pass_of(l, layer, attention, true);
    const ModelConfig *c = &l->config;
    void *output = layer + 1 < c->layers ? activation_get(l->activations, ACT_RESIDUAL, layer + 1)
                                         : memory_at(l->memory, l->activations->last_residual);
    layer_steps(&p);
    // 8. The down projection, added to the residual stream.
    l->device->ops->linear.forward(output, activation(&p, ACT_SWIGLU), weight(&p, PARAM_DOWN),
                                   activation(&p, ACT_FFN_RESIDUAL), rows_of(l), c->dim, c->ffn_dim,
                                   l->device->stream);
}

// --- backward -------------------------------------------------------------------------------------------

// Steps 8 to 5. grad_residual comes in as the gradient of the layer's output and leaves as that of step 4's.
static void feed_forward_backward(const Pass *p) {
    const Ops *ops = p->l->device->ops;
    Stream *stream = p->l->device->stream;
    const ModelConfig *c = &p->l->config;
    const int64_t rows = rows_of(p->l);
    void *grad_residual = buffer(p, p->l->activations->grad_residual);
    void *grad_branch = buffer(p, p->l->activations->grad_branch);
    void *grad_gate_up = buffer(p, p->l->scratch);
    void *grad_swiglu = storage_element(grad_gate_up, storage_of(p->l), rows * 2 * c->ffn_dim);
    ops->linear.backward_weight(gradient(p, PARAM_DOWN), grad_residual, activation(p, ACT_SWIGLU), rows,
                                c->dim, c->ffn_dim, stream);
    ops->linear.backward_input(grad_swiglu, grad_residual, weight(p, PARAM_DOWN), rows, c->dim, c->ffn_dim,
                               stream);
    ops->swiglu.backward(grad_gate_up, grad_swiglu, activation(p, ACT_GATE_UP), rows, c->ffn_dim, stream);
    ops->linear.backward_weight(gradient(p, PARAM_GATE), grad_gate_up, activation(p, ACT_FFN_NORM), rows,
                                2 * c->ffn_dim, c->dim, stream);
    ops->linear.backward_input(grad_branch, grad_gate_up, weight(p, PARAM_GATE), rows, 2 * c->ffn_dim, c->dim,
                               stream);
    ops->rmsnorm.backward(grad_residual, gradient(p, PARAM_FFN_NORM), grad_residual, grad_branch,
                          activation(p, ACT_FFN_RESIDUAL), weight(p, PARAM_FFN_NORM),
                          activation(p, ACT_FFN_RSTD), rows, c->dim, stream);
}

// Steps 3 and 2, but for the projection.
static void attention_core_backward(const Pass *p, void *grad_qkv, const void *grad_attention) {
    const Layers *l = p->l;
    void *workspace = buffer(p, l->attention_workspace);
    if (p->kind == LAYER_DENSE) {
        attention_backward(l->device, p->attention, grad_qkv, grad_attention, activation(p, ACT_QKV),
                           activation(p, ACT_ATTENTION), activation(p, ACT_LOGSUMEXP), workspace);
        turn(p, grad_qkv, NULL, true);
        return;
    }
    const LighthouseLayer buffers = layer_lighthouse(l, p->layer);
    const LighthouseHalo halo = halo_of(p);
    const void *token_angles = turns_tokens(l) ? buffer(p, l->angles) : NULL;
    void *scratch = storage_element(grad_qkv, storage_of(l), rows_of(l) * qkv_dim(&l->config));
    lighthouse_backward(l->device, &l->lighthouse, &l->sub_attention, &buffers, &halo, grad_qkv,
                        grad_attention, token_angles, scratch, workspace);
}

// Steps 4 to 1. grad_residual comes in as the gradient of step 4's output and leaves as that of the input.
static void attention_block_backward(const Pass *p) {
    const Ops *ops = p->l->device->ops;
    Stream *stream = p->l->device->stream;
    const ModelConfig *c = &p->l->config;
    const int64_t rows = rows_of(p->l);
    void *grad_residual = buffer(p, p->l->activations->grad_residual);
    void *grad_branch =
        buffer(p, p->l->activations->grad_branch); // of attention's output, then of the norm's
    void *grad_qkv = buffer(p, p->l->scratch);
    ops->linear.backward_weight(gradient(p, PARAM_ATTENTION_OUT), grad_residual, activation(p, ACT_ATTENTION),
                                rows, c->dim, query_dim(c), stream);
    ops->linear.backward_input(grad_branch, grad_residual, weight(p, PARAM_ATTENTION_OUT), rows, c->dim,
                               query_dim(c), stream);
    attention_core_backward(p, grad_qkv, grad_branch);
    ops->linear.backward_weight(gradient(p, PARAM_QUERY), grad_qkv, activation(p, ACT_ATTN_NORM), rows,
                                qkv_dim(c), c->dim, stream);
    ops->linear.backward_input(grad_branch, grad_qkv, weight(p, PARAM_QUERY), rows, qkv_dim(c), c->dim,
                               stream);
    ops->rmsnorm.backward(grad_residual, gradient(p, PARAM_ATTENTION_NORM), grad_residual, grad_branch,
                          activation(p, ACT_RESIDUAL), weight(p, PARAM_ATTENTION_NORM),
                          activation(p, ACT_ATTN_RSTD), rows, c->dim, stream);
}

void layer_backward(const Layers *layers, int64_t layer, const StepAttention *attention) {
    const Pass p = pass_of(layers, layer, attention, false);
    layer_steps(&p); // what the forward did not keep
    feed_forward_backward(&p);
    attention_block_backward(&p);
}
