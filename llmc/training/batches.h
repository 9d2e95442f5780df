// Batches of a dataset as a rank trains on them: its data-parallel share of the sequences, and of each
// sequence the pieces that it holds.
#pragma once
#include "run/dataset.h"
#include "training/step.h"

typedef struct {
    const Dataset *data;
    uint64_t seed;
    int64_t batch_size, tokens; // sequences, and tokens of each that this rank holds
    Group data_group, context_group;
    int64_t first; // of the training order: where the step begins
} Batches;

Batches batches_create(const Dataset *data, const Options *options, const Communicator *communicator);

// The batches of the step whose first sequence stands at `first` of the training order. The source keeps the
// address of `batches`.
BatchSource batches_of_step(Batches *batches, int64_t first);

// batch_size samples of the dataset in their own order, from `first` on (after the last comes the first).
void batches_read_in_order(const Batches *batches, int64_t first, int32_t *inputs, int32_t *targets);
