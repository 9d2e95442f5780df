// Model and optimizer on a device, as the options describe them: what a run trains, and benchmarks measure.
#pragma once
#include "checkpoint/checkpoint.h"
#include "model/flops.h"
#include "training/optimizer.h"
#include "run/options.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    Device *device;
    Collectives *collectives; // with the other ranks of the run
    MemoryPlan plan;
    Model model;
    Optimizer optimizer;
} Training;

// Opens the device that the options ask for (of several GPUs, the one of this process among those of its
// host), and settles their dtype. Fails with a message if it cannot be had or cannot hold a model of this
// shape.
Device *training_open_device(Options *options, const Communicator *communicator);

// Lays out all buffers, at the recompute level asked for or (auto) the least that fits every rank's device.
// Nothing is allocated yet. The plan keeps addresses inside *training: it must stay where it is.
void training_plan(Training *training, Collectives *collectives, const Options *options);

// Prints what each recompute level would need on the device, and which fit.
void training_print_levels(Collectives *collectives, const Options *options);

// Allocates what was planned. Weights and moments are for others to fill.
void training_allocate(Training *training);

// Weights and optimizer state, as checkpoints write and read them.
TrainingState training_state(const Training *training);

// Work per token of the attention that is actually run.
FlopsPerToken training_flops(const Training *training);

void training_free(Training *training);

#ifdef __cplusplus
}
#endif
