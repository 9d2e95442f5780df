// AdamW over the model's flat buffers, with master weights and moments in the accumulator type. Over several
// ranks the gradients are summed bucket by bucket, while the backward goes on; each rank keeps the state of
// all weights, or (sharded: ZeRO stage 1, arXiv 1910.02054) of its part of every bucket.
#pragma once
#include "model/decoder.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    double beta1, beta2, epsilon, weight_decay;
    bool decay_all;   // norms too, not only matrices
    double grad_clip; // the gradient's norm is scaled down to this; 0: never
    bool sharded;
} OptimizerSettings;

typedef struct {
    OptimizerSettings settings;
    Device *device;
    Weights *weights;
    Collectives *collectives; // NULL: there is one rank
    int rank, ranks;
    // Offsets in the arena.
    const MemoryPlan *memory;
    // A[parameters.elements]; sharded, A[parameters.elements / ranks]: the part of a bucket begins at
    // bucket.offset / ranks.
    size_t master, m, v;
    size_t norm_squares; // double[2 * buckets]: of this rank's gradients, and of its part of their sum
} Optimizer;

// Plans the optimizer's memory. The weights, laid out for as many ranks as `collectives` (NULL: one) has,
// must outlive it.
Optimizer *optimizer_create(Device *device, const OptimizerSettings *settings, Weights *weights,
                            Collectives *collectives, MemoryPlan *memory);
void optimizer_free(Optimizer *optimizer);

// Initial master weights from the seed, rounded weights from them, moments zero.
void optimizer_initialize(Optimizer *optimizer, uint64_t seed);

// For the last decoder_accumulate of a step: sums each bucket's gradients over the ranks. They are not to be
// used before optimizer_grad_norm.
GradientsReady optimizer_reduction(Optimizer *optimizer);

// Waits, and returns the norm of the whole gradient, summed over all ranks. *norm_here, if not NULL, is that
// of this rank's own before the sum.
double optimizer_grad_norm(Optimizer *optimizer, double *norm_here);

// Updates all weights from the gradients, whose norm is grad_norm. `step` counts from 1.
void optimizer_update(Optimizer *optimizer, int64_t step, double learning_rate, double grad_norm);

#ifdef __cplusplus
}
#endif
