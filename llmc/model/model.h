// The decoder: embedding → layers of {RMSNorm, attention, residual; RMSNorm, SwiGLU, residual} → RMSNorm →
// linear head → cross-entropy. Its buffers, its forward, and its backward, over a device's operations.
#pragma once
#include "model/activations.h"
#include "model/lighthouse.h"
#include "model/parameters.h"
#include "device/memory_plan.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int64_t batch, seq_len; // of each sequence as many tokens as are here: a micro-step has batch · seq_len
    int64_t micro_steps;    // of one optimizer step
    RecomputeLevel recompute;
    bool deterministic;               // attention's backward too
    bool selection;                   // Lighthouse attention, in the layers that are not dense
    LighthouseSettings lighthouse;    // of whole sequences
    const bool *dense_layers;         // [layers]; NULL: none
    int64_t loss_chunk;               // tokens whose logits are held at once; 0: as many as fit in 2 GiB
    size_t attention_workspace_bound; // bytes, for deterministic attention; 0: 4 GiB
    Collectives *collectives;         // with the other ranks; NULL: there are none
} ModelSettings;

typedef struct {
    Device *device;
    ModelConfig config;
    ModelSettings settings; // without dense_layers: layer_kinds has them
    ParameterTable parameters;
    LayerKind *layer_kinds;      // [layers], in training
    bool selection_given;        // layers take the selection that they hold instead of selecting: for tests
    int64_t lighthouse_layers;   // how many are LAYER_LIGHTHOUSE
    AttentionPlan attention;     // of dense layers
    LighthouseShape lighthouse;  // of Lighthouse layers
    AttentionPlan sub_attention; // their inner attention
    LighthouseHalo halo;         // and what crosses between ranks that share sequences
    // Device buffers.
    void *weights;                            // S[parameters.elements]
    void *gradients;                          // A[parameters.elements]
    void *kept_activations[ACTIVATION_KINDS]; // of the layers that keep it, one after the other
    void *shared_activation[ACTIVATION_KINDS];
    void **activations[ACTIVATION_KINDS]; // [layers]: a part of the former, or the latter
    void *last_residual;                  // S[rows, dim]: the last layer's output
    void *last_norm, *last_rstd;          // S[rows, dim], A[rows]
    void *grad_residual;                  // S[rows, dim]: the gradient that flows down the residual stream
    void *grad_branch;                    // S[rows, dim]: the gradient of a norm's output or of attention's
    void *scratch;                        // one chunk of logits, or one layer's wide gradients
    void *scores;                         // A[batch, heads + kv_heads, pyramid], of Lighthouse layers
    void *attention_workspace;
    void *angles;           // A[seq_len, head_dim/2, 2]
    void *tokens, *targets; // int32[rows]
    void *losses;           // A[rows]
    void *loss_sums;        // double[micro_steps]
} Model;

// Lays out a model and adds its buffers to the plan; nothing is allocated. The weights are for others to
// fill. The plan keeps addresses inside *model: it must stay where it is.
void model_create(Model *model, Device *device, const ModelConfig *config, const ModelSettings *settings,
                  MemoryPlan *plan);

// To be called once when the plan is allocated: fills the table of rotary angles.
void model_start(Model *model);

void model_free(Model *model);

// Gradients of all parameters to zero.
void model_zero_gradients(Model *model);

// Called in a backward as soon as the gradients of a bucket of the parameter table are complete on the
// device's stream; each bucket once.
typedef struct {
    void (*call)(void *context, int bucket);
    void *context;
} GradientsReady;

// Forward and backward of batch sequences: inputs and targets int32[batch, seq_len] on the host. Adds
// loss_weight · (gradient of the sum of the tokens' losses) to the gradients, and leaves that sum for
// model_losses at index micro_step. `ready` may be NULL.
void model_accumulate(Model *model, int64_t micro_step, const int32_t *inputs, const int32_t *targets,
                      double loss_weight, const GradientsReady *ready);

// Waits, and returns the sum of all micro-steps' losses (natural log, not averaged), in their order.
double model_losses(Model *model);

// Forward only: the sum of the tokens' losses, as trained (selection as in the settings) or all dense.
double model_evaluate(Model *model, const int32_t *inputs, const int32_t *targets, bool selection);

// Forward only, all layers dense: logits S[count, vocab_size] of `count` consecutive rows from first_row on,
// to host memory. count may be at most the loss chunk.
void model_logits(Model *model, void *logits, const int32_t *inputs, int64_t first_row, int64_t count);

// A layer's Lighthouse buffers.
LighthouseLayer model_lighthouse_layer(const Model *model, int64_t layer);

// A parameter's place in a flat buffer of storage or accumulator type.
void *model_weight(const Model *model, ParameterKind kind, int64_t layer);
void *model_gradient(const Model *model, ParameterKind kind, int64_t layer);

#ifdef __cplusplus
}
#endif
