#include "checkpoint/training_state.h"

int64_t training_state_part(const TrainingState *state, int bucket) {
    return state->sharded ? state->table->buckets[bucket].offset / state->table->ranks
                          : bucket_part(state->table, bucket, state->communicator->rank).first;
}

HeldRange training_state_held(const TrainingState *state, int bucket) {
    const ParameterBucket *b = &state->table->buckets[bucket];
    if (!state->sharded) return (HeldRange){{b->flat_offset, b->flat_count}, b->offset};
    return (HeldRange){bucket_part_flat(state->table, bucket, state->communicator->rank),
                       training_state_part(state, bucket)};
}

static int64_t optimizer_bytes(const TrainingState *state, int64_t elements) {
    const StorageType type = accumulator_type(state->device->ops->storage);
    return elements * state->optimizer.count * (int64_t)storage_size(type);
}

static int64_t model_bytes(const TrainingState *state) {
    return state->table->model_size * (int64_t)storage_size(state->device->ops->storage);
}

int64_t training_state_bytes(const TrainingState *state) {
    return model_bytes(state) + optimizer_bytes(state, state->table->flat_elements);
}

int64_t training_state_bytes_here(const TrainingState *state) {
    const int rank = state->communicator->rank;
    int64_t elements = 0;
    for (int bucket = 0; bucket < state->table->bucket_count; bucket++)
        elements += bucket_part_flat(state->table, bucket, rank).count;
    return (rank == 0 ? model_bytes(state) : 0) + optimizer_bytes(state, elements);
}

void training_state_zero(const TrainingState *state) {
    Device *device = state->device;
    const ParameterTable *table = state->table;
    const StorageType storage = device->ops->storage;
    const int64_t held = state->sharded ? table->elements / table->ranks : table->elements;
    device->zero(device, state->weights, (size_t)table->elements * storage_size(storage));
    for (int i = 0; i < state->optimizer.count; i++)
        device->zero(device, state->optimizer.list[i].memory,
                     (size_t)held * storage_size(accumulator_type(storage)));
}
