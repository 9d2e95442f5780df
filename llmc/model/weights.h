// The weights of a model and their gradients on a device: one flat buffer each, laid out by the parameter
// table. Whoever needs a weight or a gradient asks here, so that they may one day be elsewhere.
#pragma once
#include "device/memory_plan.h"
#include "model/parameters.h"

typedef struct {
    Device *device;
    ParameterTable table;
    const MemoryPlan *memory;
    size_t values;    // S[table.elements], an offset in the arena
    size_t gradients; // A[table.elements], likewise
} Weights;

// Lays them out for `ranks` processes that divide gradients among them, and plans their memory. The values
// are for others to fill.
Weights *weights_create(Device *device, const ModelConfig *config, int ranks, MemoryPlan *memory);
void weights_free(Weights *weights);

// A tensor's values S, and its gradient A, in the shape of the parameter table.
void *weights_get(const Weights *weights, ParameterKind kind, int64_t layer);
void *weights_gradient(const Weights *weights, ParameterKind kind, int64_t layer);

// The flat buffers from this element on, for whoever treats all tensors alike: values S, gradients A.
void *weights_values_from(const Weights *weights, int64_t element);
void *weights_gradients_from(const Weights *weights, int64_t element);

// Sets all gradients to zero.
void weights_zero_gradients(Weights *weights);
