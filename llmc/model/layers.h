// The layers of a decoder, each {RMSNorm, attention, residual; RMSNorm, SwiGLU, residual}: forward and
// backward of one of them, over weights, activations and working memory that are planned together.
#pragma once
#include "model/activations.h"
#include "model/lighthouse.h"
#include "model/rotary.h"
#include "model/scorer.h"
#include "model/weights.h"

// The attention of one step (a forward with its backward, or a forward alone).
typedef struct {
    const LayerKind *layers; // [layers]; NULL: all dense
    // Lighthouse layers keep the selection that they hold, to compare computations on equal picks.
    bool replay;
    // DENSE_STEP: all dense, within spans where there are any, and recomputed as such steps are.
    StepType type;
} StepAttention;

typedef struct {
    int64_t batch, seq_len; // sequences, and tokens of each that this rank holds
    RecomputeLevel recompute[STEP_TYPES];
    bool deterministic;            // attention's backward too
    const LayerKinds *layer_kinds; // [layers]: in usual steps
    bool dense_steps;              // there are steps of DENSE_STEP
    int64_t dense_span;            // in them no token attends beyond its span of so many; 0: whole sequences
    LighthouseSettings lighthouse; // of whole sequences
    const Scorer *scorer;          // NULL: norm
    RopePooling rope_pooling;      // of Lighthouse layers
    size_t scratch_elements;       // the least that scratch must hold, for others that share it
    size_t workspace_bound;        // bytes, for deterministic attention
    Collectives *collectives;      // with the other ranks; NULL: there are none
} LayersSettings;

typedef struct {
    Device *device;
    ModelConfig config;
    int64_t batch, seq_len;
    RecomputeLevel recompute[STEP_TYPES];
    const Weights *weights;
    Activations *activations;
    AttentionPlan attention[STEP_TYPES]; // of dense layers
    LighthouseShape lighthouse;          // of Lighthouse layers
    AttentionPlan sub_attention;         // their inner attention
    const Scorer *scorer;                // their choice of entries
    RopePooling rope_pooling;            // what they turn
    Collectives *context; // the context-parallel group; NULL if this rank holds whole sequences
    // Working memory, as offsets in the arena.
    const MemoryPlan *memory;
    size_t scratch;                       // S: wide gradients of half a layer, and what others share it for
    size_t scores;                        // A[batch, heads + key_score_heads, pyramid]
    size_t halo, halo_received;           // S, as lighthouse.h has a halo
    size_t grad_halo, grad_halo_received; // A
    size_t attention_workspace;
    size_t angles; // A[seq_len, head_dim/2, 2]
} Layers;

// Plans activations and working memory. Fails with a message if the device cannot do the shape.
Layers layers_create(Device *device, const ModelConfig *config, const LayersSettings *settings,
                     const Weights *weights, MemoryPlan *memory);

// To be called once when the plan is allocated: fills the table of rotary angles.
void layers_start(const Layers *layers);

void layers_free(Layers *layers);

// From the layer's input, ACT_RESIDUAL, to the next layer's, or to last_residual.
void layer_forward(const Layers *layers, int64_t layer, const StepAttention *attention);

// grad_residual comes in as the gradient of the layer's output and leaves as that of its input; the
// gradients of the layer's weights are added to. `attention` as in the forward before it.
void layer_backward(const Layers *layers, int64_t layer, const StepAttention *attention);

// The kind of a layer in a step.
LayerKind layer_kind(int64_t layer, const StepAttention *attention);

// How many of so many layers are dense in a step.
int64_t step_dense_layers(const StepAttention *attention, int64_t layers);

// The buffers of a layer's Lighthouse attention.
LighthouseLayer layer_lighthouse(const Layers *layers, int64_t layer);
