// The activations of a decoder on a device: a table of what each layer makes, what it costs to keep and when
// it is made again; and the buffers of a number of rows that the table plans.
#pragma once
#include "device/memory_plan.h"
#include "model/config.h"

// The attention of a layer.
typedef enum { LAYER_DENSE, LAYER_LIGHTHOUSE } LayerKind;

// The kinds that a layer is of at one step or another: a set of 1 << LayerKind.
typedef unsigned LayerKinds;

// The types of optimizer steps: those in which each layer is of a kind of its own, and those that are dense in
// all layers although some would select (--dense-every, --dense-first).
typedef enum { USUAL_STEP, DENSE_STEP, STEP_TYPES } StepType;

typedef enum {
    ACT_RESIDUAL,      // the layer's input
    ACT_ATTN_NORM,     // normalized input of attention
    ACT_ATTN_RSTD,     // its 1/rms
    ACT_QKV,           // queries, keys, values; after RoPE
    ACT_LOGSUMEXP,     // of the attention scores, in a dense layer
    ACT_POSITIONS,     // in a Lighthouse layer, as llmc/model/lighthouse.h has them: what was selected,
    ACT_GATHERED,      // the queries, keys and values of the subsequence,
    ACT_SUB_OUT,       // its attention output,
    ACT_SUB_LOGSUMEXP, // and the log-sum-exp of its scores
    ACT_ATTENTION,     // attention's output, before its projection
    ACT_FFN_RESIDUAL,  // the residual stream between attention and feed-forward
    ACT_FFN_NORM,      // normalized input of the feed-forward
    ACT_FFN_RSTD,      // its 1/rms
    ACT_GATE_UP,       // gate and up projections
    ACT_SWIGLU,        // their product, input of the down projection
    ACTIVATION_KINDS
} ActivationKind;

// What the backward makes again instead of keeping, each level more than the one before.
typedef enum {
    RECOMPUTE_AUTO, // as an option: the least that fits. No decoder has it
    RECOMPUTE_NONE,
    RECOMPUTE_CHEAP, // what takes one pass over memory: normalized inputs, the SwiGLU product, the scatter
    RECOMPUTE_FFN,   // and the gate and up projections
    RECOMPUTE_QKV,   // and all else but what attention gave: no attention is run twice
    RECOMPUTE_BLOCK, // everything but the layer's input
    RECOMPUTE_LEVELS
} RecomputeLevel;

// Their names, as --recompute takes them; ends with NULL.
extern const char *const recompute_names[];

// Whether a layer of that kind keeps the activation from its forward to its backward.
bool activation_kept(ActivationKind activation, LayerKind layer, RecomputeLevel level);

// What the activations are of.
typedef struct {
    int64_t batch, seq_len;            // sequences, and tokens of each that this rank holds
    RecomputeLevel recompute;          // in usual steps
    const LayerKinds *layer_kinds;     // [layers]: in usual steps
    bool dense_steps;                  // there are dense steps too
    RecomputeLevel dense_recompute;    // in those
    const LighthouseShape *lighthouse; // of Lighthouse layers; NULL: there are none
} ActivationSettings;

// Bytes of one layer's activation.
size_t activation_bytes(ActivationKind kind, const ModelConfig *config, const ActivationSettings *settings,
                        StorageType storage);

typedef struct {
    int64_t layers;
    const MemoryPlan *memory;
    // Offsets in the arena.
    size_t (*of_layer)[ACTIVATION_KINDS];       // [layers]
    size_t last_residual, last_norm, last_rstd; // S[rows, dim], the last layer's output; its final norm's
                                                // S[rows, dim] and A[rows]
    size_t grad_residual; // S[rows, dim]: the gradient that flows down the residual stream
    size_t grad_branch;   // S[rows, dim]: the gradient of a norm's output or of attention's
} Activations;

// Plans the memory of all activations. A layer has a buffer of its own for what it keeps in steps of one type or
// another; the rest lies in buffers that layers share.
Activations *activations_create(Device *device, const ModelConfig *config, const ActivationSettings *settings,
                                MemoryPlan *memory);
void activations_free(Activations *activations);

// The address of a layer's activation.
void *activation_get(const Activations *activations, ActivationKind kind, int64_t layer);
