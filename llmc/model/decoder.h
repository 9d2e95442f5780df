// The decoder: embedding → layers → RMSNorm → linear head → cross-entropy, forward and backward, over a
// device's operations. Weights stand apart (weights.h), and so do the layers (layers.h).
#pragma once
#include "model/layers.h"

typedef struct {
    int64_t batch, seq_len;         // of a micro-step: sequences, and tokens of each that this rank holds
    int64_t micro_steps;            // of one optimizer step
    RecomputeLevel recompute;       // in usual steps
    RecomputeLevel dense_recompute; // in dense steps
    bool deterministic;             // attention's backward too
    const LayerKinds *layer_kinds;  // [layers]: in usual steps; NULL: all dense
    bool dense_steps;               // there are dense steps too
    int64_t dense_span;             // in them no token attends beyond its span of so many; 0: whole sequences
    LighthouseSettings lighthouse;  // of whole sequences
    const Scorer *scorer;           // NULL: norm
    RopePooling rope_pooling;       // of Lighthouse layers
    int64_t loss_chunk;             // tokens whose logits are held at once; 0: as many as fit in 2 GiB
    size_t attention_workspace_bound; // bytes, for deterministic attention; 0: 4 GiB
    Collectives *collectives;         // with the other ranks; NULL: there are none
} DecoderSettings;

typedef struct {
    Layers layers;
    int64_t micro_steps, loss_chunk;
    // Offsets in the arena.
    size_t tokens, targets; // int32[rows]
    size_t losses;          // A[rows]
    size_t loss_sums;       // double[micro_steps]
} Decoder;

// Plans activations and working memory; nothing is allocated. The weights must outlive the decoder.
Decoder *decoder_create(Device *device, const ModelConfig *config, const DecoderSettings *settings,
                        const Weights *weights, MemoryPlan *memory);
void decoder_free(Decoder *decoder);

// To be called once when the plan is allocated.
void decoder_start(Decoder *decoder);

// Called in a backward as soon as the gradients of a bucket of the parameter table are complete on the
// device's stream; each bucket once.
typedef struct {
    void (*call)(void *context, int bucket);
    void *context;
} GradientsReady;

// Forward and backward of batch sequences: inputs and targets int32[batch, seq_len] on the host. Adds
// loss_weight · (gradient of the sum of the tokens' losses) to the gradients, and leaves that sum for
// decoder_losses at index micro_step. `ready` may be NULL.
void decoder_accumulate(Decoder *decoder, const StepAttention *attention, int64_t micro_step,
                        const int32_t *inputs, const int32_t *targets, double loss_weight,
                        const GradientsReady *ready);

// Waits, and returns the sum of all micro-steps' losses (natural log, not averaged), in their order.
double decoder_losses(const Decoder *decoder);

// Forward only: the sum of the tokens' losses.
double decoder_evaluate(Decoder *decoder, const StepAttention *attention, const int32_t *inputs,
                        const int32_t *targets);

// Forward only: each token's loss, double[batch, seq_len] on the host, in the order of the targets.
void decoder_row_losses(Decoder *decoder, const StepAttention *attention, double *losses,
                        const int32_t *inputs, const int32_t *targets);

// Forward only, all layers dense: logits S[count, vocab_size] of `count` consecutive rows from first_row on,
// to host memory. count may be at most the loss chunk.
void decoder_logits(Decoder *decoder, void *logits, const int32_t *inputs, int64_t first_row, int64_t count);
