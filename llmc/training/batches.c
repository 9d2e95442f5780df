#include "training/batches.h"

#include "parallel/sequence_parts.h"

Batches batches_create(const Dataset *data, const Options *options, const Communicator *communicator) {
    const Batches batches = {.data = data,
                             .seed = (uint64_t)options->seed,
                             .batch_size = options->batch_size,
                             .tokens = options->seq_len / options->cp,
                             .data_group = communicator->groups[GROUP_DATA],
                             .context_group = communicator->groups[GROUP_CONTEXT]};
    return batches;
}

// Reads the pieces of a sample that this rank holds into row `row` of the batch.
static void read_row(const Batches *b, int64_t sample, int64_t row, int32_t *inputs, int32_t *targets) {
    const int64_t pieces = context_pieces(b->context_group), length = b->tokens / pieces;
    for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t here = row * b->tokens + piece * length;
        dataset_read(b->data, sample, context_position(b->context_group, b->tokens, piece * length), length,
                     inputs + here, targets + here);
    }
}

static void read_micro_step(void *context, int64_t micro_step, int32_t *inputs, int32_t *targets) {
    const Batches *b = (const Batches *)context;
    const int64_t batch = micro_step * b->data_group.size + b->data_group.rank;
    for (int64_t row = 0; row < b->batch_size; row++) {
        const int64_t position = b->first + batch * b->batch_size + row;
        read_row(b, dataset_order(b->data, b->seed, position), row, inputs, targets);
    }
}

BatchSource batches_of_step(Batches *batches, int64_t first) {
    batches->first = first;
    const BatchSource source = {read_micro_step, batches};
    return source;
}

void batches_read_in_order(const Batches *b, int64_t first, int32_t *inputs, int32_t *targets) {
    for (int64_t row = 0; row < b->batch_size; row++)
        read_row(b, (first + row) % b->data->samples, row, inputs, targets);
}
