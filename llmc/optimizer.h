// AdamW over the model's flat buffers, with master weights and moments in the accumulator type.
#pragma once
#include "model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    double beta1, beta2, epsilon, weight_decay;
    bool decay_all;   // norms too, not only matrices
    double grad_clip; // the gradient's norm is scaled down to this; 0: never
} OptimizerSettings;

typedef struct {
    OptimizerSettings settings;
    void *master, *m, *v; // A[parameters.elements]
    void *norm_square;    // double[1]
} Optimizer;

// Lays out the optimizer and adds its buffers to the plan, which keeps addresses inside *optimizer.
void optimizer_create(Optimizer *optimizer, const OptimizerSettings *settings, const Model *model,
                      MemoryPlan *plan);

// Initial master weights from the seed, rounded weights from them, moments zero.
void optimizer_initialize(Optimizer *optimizer, Model *model, uint64_t seed);

// Waits, and returns the norm of the whole gradient.
double optimizer_grad_norm(Optimizer *optimizer, Model *model);

// Updates all weights from the gradients, whose norm is grad_norm. `step` counts from 1.
void optimizer_update(Optimizer *optimizer, Model *model, int64_t step, double learning_rate,
                      double grad_norm);

#ifdef __cplusplus
}
#endif
