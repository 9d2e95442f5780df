#include "dev/test/parallel/setup.h"

#include "parallel/sequence_parts.h"

#include <stdlib.h>
#include <string.h>

Group data_group(const Setup *s) {
    return s->communicator.groups[GROUP_DATA];
}
Group context_group(const Setup *s) {
    return s->communicator.groups[GROUP_CONTEXT];
}

DecoderSettings settings_of(const Setup *s, bool whole, int64_t micro_steps) {
    DecoderSettings settings = {.batch = BATCH,
                                .seq_len = whole ? SEQ_LEN : SEQ_LEN / context_group(s).size,
                                .micro_steps = micro_steps,
                                .deterministic = true,
                                .lighthouse = {3, 2, 64, 4}};
    return settings;
}

const LayerKind *layer_kinds_of(const Setup *s) {
    return s->selection ? odd_layer_kinds : NULL;
}

double tolerance_of(const Setup *s) {
    const StorageType storage = s->device->ops->storage;
    return storage == STORAGE_FLOAT64 ? 1e-10 : storage == STORAGE_FLOAT32 ? 1e-5 : 2e-2;
}

// --- weights --------------------------------------------------------------------------------------------

double *relaid(const ParameterTable *table, const double *values, bool spread) {
    double *other =
        host_allocate((size_t)(spread ? table->elements : table->flat_elements), sizeof(double), "values");
    for (int i = 0; i < table->bucket_count; i++) {
        const ParameterBucket *b = &table->buckets[i];
        memcpy(other + (spread ? b->offset : b->flat_offset), values + (spread ? b->flat_offset : b->offset),
               (size_t)b->flat_count * sizeof(double));
    }
    return other;
}

double *shared_weights(void) {
    ParameterTable table = parameter_table_create(&odd_config, 1);
    double *weights = odd_weights(&table);
    parameter_table_free(&table);
    return weights;
}

// --- sequences ------------------------------------------------------------------------------------------

void random_tokens(int32_t *tokens, int64_t count) {
    for (int64_t i = 0; i < count; i++) tokens[i] = (int32_t)random_below((uint64_t)odd_config.vocab_size);
}

Sequences random_sequences(const Setup *s, int64_t micro_steps) {
    Sequences sequences = {.batches = (int)micro_steps * data_group(s).size};
    const size_t tokens = (size_t)sequences.batches * BATCH * SEQ_LEN;
    sequences.inputs = host_allocate(tokens, sizeof(int32_t), "tokens");
    sequences.targets = host_allocate(tokens, sizeof(int32_t), "tokens");
    random_tokens(sequences.inputs, (int64_t)tokens);
    random_tokens(sequences.targets, (int64_t)tokens);
    return sequences;
}

void free_sequences(Sequences *sequences) {
    free(sequences->inputs);
    free(sequences->targets);
}

void slice(int32_t *out, const int32_t *sequence, Group context, int64_t tokens) {
    const int64_t pieces = context_pieces(context), length = tokens / pieces;
    for (int64_t piece = 0; piece < pieces; piece++)
        memcpy(out + piece * length, sequence + context_position(context, tokens, piece * length),
               (size_t)length * sizeof(*out));
}

// --- trainings ------------------------------------------------------------------------------------------

Training *whole_training(const Setup *s, int64_t micro_steps, const double *weights) {
    const DecoderSettings settings = settings_of(s, true, micro_steps);
    Training *t = training_open(s->device, NULL, &odd_config, &settings, layer_kinds_of(s), &usual_optimizer);
    set_weights(t, weights);
    return t;
}

Training *parallel_training(const Setup *s, DecoderSettings settings, bool sharded, const double *weights) {
    OptimizerSettings optimizer = usual_optimizer;
    optimizer.sharded = sharded;
    Training *t =
        training_open(s->device, s->collectives, &odd_config, &settings, layer_kinds_of(s), &optimizer);
    double *spread = relaid(&t->weights->table, weights, true);
    set_weights(t, spread);
    free(spread);
    return t;
}
