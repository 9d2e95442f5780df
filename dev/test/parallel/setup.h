// What the tests of several ranks share: how the ranks are divided, the sequences that they train on, and trainings
// of the whole sequences on one rank and of parts of them on all.
#pragma once
#include "dev/test/small_model.h"

// 16 chunks of 5 coarsest entries: up to 8 ranks can share a sequence. BATCH: sequences of a micro-step.
enum { SEQ_LEN = 320, HEADS = 6, KV_HEADS = 2, SELECTING_LAYERS = 2, BATCH = 2 };

typedef struct {
    Device *device;
    Communicator communicator; // divided for this setup
    Collectives *collectives;
    bool selection;
} Setup;

Group data_group(const Setup *s);
Group context_group(const Setup *s);

// Of whole sequences or of a rank's parts.
DecoderSettings settings_of(const Setup *s, bool whole, int64_t micro_steps);
const LayerKind *layer_kinds_of(const Setup *s);

// How far results of several ranks may be from one's.
double tolerance_of(const Setup *s);

// From the layout of a table for several ranks to that for one (spread: the other way). The caller frees it.
double *relaid(const ParameterTable *table, const double *values, bool spread);

// Random weights in the layout for one rank, the same on all. The caller frees them.
double *shared_weights(void);

// `micro_steps` micro-steps for each data-parallel group.
typedef struct {
    int batches;
    int32_t *inputs, *targets; // [batches, BATCH, SEQ_LEN]
} Sequences;

void random_tokens(int32_t *tokens, int64_t count);
Sequences random_sequences(const Setup *s, int64_t micro_steps);
void free_sequences(Sequences *sequences);

// int32[tokens]: what a rank holds of a whole sequence.
void slice(int32_t *out, const int32_t *sequence, Group context, int64_t tokens);

// On this rank alone, with these weights.
Training *whole_training(const Setup *s, int64_t micro_steps, const double *weights);

// On all ranks; `weights` are in the layout for one.
Training *parallel_training(const Setup *s, DecoderSettings settings, bool sharded, const double *weights);
