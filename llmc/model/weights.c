#include "model/weights.h"

#include <stdlib.h>

static StorageType accumulator_of(const Weights *weights) {
    return accumulator_type(weights->device->ops->storage);
}

Weights *weights_create(Device *device, const ModelConfig *config, int ranks, MemoryPlan *memory) {
    Weights *weights = (Weights *)host_allocate(1, sizeof(Weights), "the weights");
    weights->device = device;
    weights->table = parameter_table_create(config, ranks);
    weights->memory = memory;
    const size_t elements = (size_t)weights->table.elements;
    weights->values = memory_plan_add(memory, elements * storage_size(device->ops->storage), "weights");
    weights->gradients =
        memory_plan_add(memory, elements * storage_size(accumulator_of(weights)), "gradients");
    return weights;
}

void weights_free(Weights *weights) {
    parameter_table_free(&weights->table);
    free(weights);
}

void *weights_values_from(const Weights *weights, int64_t element) {
    return storage_element(memory_at(weights->memory, weights->values), weights->device->ops->storage,
                           element);
}

void *weights_gradients_from(const Weights *weights, int64_t element) {
    return storage_element(memory_at(weights->memory, weights->gradients), accumulator_of(weights), element);
}

void *weights_get(const Weights *weights, ParameterKind kind, int64_t layer) {
    return weights_values_from(weights, parameter_find(&weights->table, kind, layer)->offset);
}

void *weights_gradient(const Weights *weights, ParameterKind kind, int64_t layer) {
    return weights_gradients_from(weights, parameter_find(&weights->table, kind, layer)->offset);
}

void weights_zero_gradients(Weights *weights) {
    weights->device->zero(weights->device, weights_gradients_from(weights, 0),
                          (size_t)weights->table.elements * storage_size(accumulator_of(weights)));
}
