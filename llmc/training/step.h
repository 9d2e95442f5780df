// The training step: gradients of a global batch over micro-steps and ranks, and their norm.
#pragma once
#include "training/training.h"

// The source of a step's tokens. `read` fills inputs and targets int32[batch, seq_len], where seq_len counts
// the tokens of each sequence that this rank holds, for one of this rank's micro-steps.
typedef struct {
    void (*read)(void *context, int64_t micro_step, int32_t *inputs, int32_t *targets);
    void *context;
} BatchSource;

// Sets the gradients to this rank's share of the gradient of the mean loss over the global batch: the sum
// over the ranks is the whole. In the last micro-step `ready` (may be NULL) is called for each bucket when
// its gradients are complete.
void step_accumulate(Training *training, const StepAttention *attention, const BatchSource *source,
                     const GradientsReady *ready);

typedef struct {
    double loss;           // mean over the tokens of the global batch
    double grad_norm;      // norm of that loss's gradient, before clipping
    double loss_here;      // sum over this rank's tokens
    double grad_norm_here; // norm of this rank's share of the gradient, before the sum over ranks
} StepResult;

// step_accumulate, then the sums over all ranks of loss and gradients. Each bucket's sum starts as soon as
// its gradients are complete.
StepResult step_gradients(Training *training, const StepAttention *attention, const BatchSource *source);
