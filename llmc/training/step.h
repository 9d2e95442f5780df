// The training step: gradients of a global batch over micro-steps and ranks, and their norm.
#pragma once
#include "training/training.h"

// Where a step's tokens come from: fills inputs and targets int32[batch, seq_len] with what this rank holds of
// the sequences of its micro-step.
typedef struct {
    void (*read)(void *context, int64_t micro_step, int32_t *inputs, int32_t *targets);
    void *context;
} BatchSource;

// Sets the gradients to those of the mean loss over all tokens of the global batch, of this rank's share of
// them; in the last micro-step `ready` (may be NULL) is called as soon as a bucket's are complete.
void step_accumulate(Training *training, const StepAttention *attention, const BatchSource *source,
                     const GradientsReady *ready);

typedef struct {
    double loss;           // mean over the tokens of the global batch
    double grad_norm;      // of its gradient
    double loss_here;      // summed over this rank's tokens
    double grad_norm_here; // of this rank's own gradient, before the sum over ranks
} StepResult;

// Both over all ranks: the gradients end summed, each bucket's sum starting as soon as they are complete.
StepResult step_gradients(Training *training, const StepAttention *attention, const BatchSource *source);
