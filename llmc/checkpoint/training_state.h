// What a checkpoint is written from and read into: a model's weights and its optimizer's state, on a device.
#pragma once
#include "parallel/communicator.h"
#include "device/device.h"
#include "model/parameters.h"

enum { MOST_STATE_BUFFERS = 8 };

// A flat buffer of the optimizer's state, A[…], under the name that checkpoints give it.
typedef struct {
    const char *name;
    void *memory;
} StateBuffer;

typedef struct {
    StateBuffer list[MOST_STATE_BUFFERS];
    int count;
} StateBuffers;

// The weights are whole, and the same on all ranks. So are the optimizer's buffers, of table->elements each,
// unless they are `sharded`: then each holds this rank's parts of the buckets alone, one after the other,
// table->elements / table->ranks in all.
typedef struct {
    Device *device;
    const ModelConfig *config;
    const ParameterTable *table; // divided by the communicator's ranks
    void *weights;               // S[table->elements]
    StateBuffers optimizer;
    const Communicator *communicator;
    bool sharded;
} TrainingState;

// The element of the optimizer's buffers at which this rank's part of the bucket begins.
int64_t training_state_part(const TrainingState *state, int bucket);

// What this rank's buffers hold of a bucket: elements as checkpoints count them, and the element of the
// buffers at which they begin.
typedef struct {
    ElementRange range;
    int64_t begin;
} HeldRange;

HeldRange training_state_held(const TrainingState *state, int bucket);

// Sets all of it to zero, padding included.
void training_state_zero(const TrainingState *state);
