// The state that checkpoints save and load: a model's weights and its optimizer's state, on a device.
#pragma once
#include "parallel/communicator.h"
#include "device/device.h"
#include "model/parameters.h"

enum { MOST_STATE_BUFFERS = 8 };

// A flat buffer A[…] of the optimizer's state, with the name of its tensor in checkpoints.
typedef struct {
    const char *name;
    void *memory;
} StateBuffer;

typedef struct {
    StateBuffer list[MOST_STATE_BUFFERS];
    int count;
} StateBuffers;

// Every rank has all weights. Every rank also has all of the optimizer's buffers, A[table->elements] each,
// unless `sharded`: then a buffer is A[table->elements / table->ranks] and holds only this rank's parts of
// the buckets, one after the other.
typedef struct {
    Device *device;
    const ModelConfig *config;
    const ParameterTable *table; // made for as many ranks as the communicator has
    void *weights;               // S[table->elements]
    StateBuffers optimizer;
    const Communicator *communicator;
    bool sharded;
} TrainingState;

// The index in the optimizer's buffers at which this rank's part of the bucket begins.
int64_t training_state_part(const TrainingState *state, int bucket);

// The elements of a bucket that this rank's optimizer buffers hold: their range, numbered as in checkpoints,
// and the index in the buffers at which they begin.
typedef struct {
    ElementRange range;
    int64_t begin;
} HeldRange;

HeldRange training_state_held(const TrainingState *state, int bucket);

// Bytes of a checkpoint's tensors: in the files of all ranks, and in those that this rank writes (which a save
// beside training copies to host memory).
int64_t training_state_bytes(const TrainingState *state);
int64_t training_state_bytes_here(const TrainingState *state);

// Sets weights and optimizer buffers to zero, padding included.
void training_state_zero(const TrainingState *state);
