// AdamW (arXiv 1711.05101) over the model's flat buffers, with master weights and moments in the accumulator
// type. Over several ranks each bucket's gradients are summed while the backward goes on. Each rank keeps the
// state of all weights or, if sharded (ZeRO stage 1, arXiv 1910.02054), only of its part of every bucket.
#pragma once
#include "checkpoint/training_state.h"
#include "model/decoder.h"

typedef struct {
    double beta1, beta2, epsilon, weight_decay;
    bool decay_all;   // weight decay applies to norms too, not only to matrices
    double grad_clip; // a gradient with a larger norm is scaled down to this norm; 0: never
    bool sharded;
} OptimizerSettings;

typedef struct {
    OptimizerSettings settings;
    Device *device;
    Weights *weights;
    Collectives *collectives; // NULL: there is one rank
    int rank, ranks;
    const MemoryPlan *memory; // the offsets below are in its arena
    // master weights and moments A[table.elements]; if sharded A[table.elements / ranks], where this rank's
    // part of a bucket begins at bucket.offset / ranks
    size_t master, m, v;
    // double[2, buckets]: squared norms, of this rank's own gradients and of its part of their sum over ranks
    size_t norm_squares;
} Optimizer;

// Creates the optimizer and plans its memory. The weights must be laid out for as many ranks as `collectives`
// has (NULL: one), and must outlive the optimizer.
Optimizer *optimizer_create(Device *device, const OptimizerSettings *settings, Weights *weights,
                            Collectives *collectives, MemoryPlan *memory);
void optimizer_free(Optimizer *optimizer);

// Sets the master weights to initial values from the seed, the weights to these rounded, and the moments to
// zero.
void optimizer_initialize(Optimizer *optimizer, uint64_t seed);

// The optimizer's state buffers, with their names in checkpoints. For a NULL optimizer: the names, without
// memory.
StateBuffers optimizer_buffers(const Optimizer *optimizer);

// A callback for the last decoder_accumulate of a step. It starts the sum over the ranks of a bucket's
// gradients, which must not be used before optimizer_grad_norm has returned.
GradientsReady optimizer_reduction(Optimizer *optimizer);

// Waits for the sums, and returns the norm of the gradient summed over all ranks. *norm_here, if not NULL,
// becomes the norm of this rank's own gradient, before the sum.
double optimizer_grad_norm(Optimizer *optimizer, double *norm_here);

// Updates all weights from the gradients, clipped by their norm, which is grad_norm. `step` counts from 1.
void optimizer_update(Optimizer *optimizer, int64_t step, double learning_rate, double grad_norm);
