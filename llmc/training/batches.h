// Batches of a dataset for one rank: its data-parallel share of the sequences, and the pieces that it holds
// of each sequence.
#pragma once
#include "run/dataset.h"
#include "training/step.h"

typedef struct {
    const Dataset *data;
    uint64_t seed;
    int64_t batch_size, tokens; // sequences, and the number of tokens of each that this rank holds
    Group data_group, context_group;
    int64_t first; // the position in the training order at which the step begins
} Batches;

Batches batches_create(const Dataset *data, const Options *options, const Communicator *communicator);

// The source of the step whose first sequence is at position `first` of the training order. It keeps the
// address of `batches`.
BatchSource batches_of_step(Batches *batches, int64_t first);

// Reads batch_size samples in the dataset's own order, beginning with sample `first` (the last one is
// followed by the first), into inputs and targets int32[batch_size, tokens].
void batches_read_in_order(const Batches *batches, int64_t first, int32_t *inputs, int32_t *targets);
