// What is trained, on a device: weights, decoder and optimizer, as the options describe them. A run trains it,
// benchmarks measure it, tools load checkpoints into it.
#pragma once
#include "checkpoint/checkpoint.h"
#include "model/flops.h"
#include "run/options.h"
#include "training/optimizer.h"

typedef struct {
    Device *device;
    Collectives *collectives; // with the other ranks of the run
    MemoryPlan *memory;
    Weights *weights;
    Decoder *decoder;
    Optimizer *optimizer;
    LayerKind *layer_kinds;    // [layers]: as trained
    int64_t lighthouse_layers; // how many of them select
    int32_t *inputs, *targets; // [rows]: a micro-step's tokens, on the host
} Training;

// Opens the device that the options ask for (of several GPUs, the one of this process among those of its
// host), and settles their dtype. Fails with a message if it cannot be had or cannot hold a model of this
// shape.
Device *training_open_device(Options *options, const Communicator *communicator);

// Plans all memory, at the recompute level asked for or (auto) the least that fits every rank's device.
// Nothing is allocated on the device yet.
Training training_plan(Collectives *collectives, const Options *options);

// The same from settings of one's own. The layers that `layer_kinds` names (NULL: none) are Lighthouse layers.
Training training_create(Device *device, Collectives *collectives, const ModelConfig *config,
                         const DecoderSettings *decoder, const LayerKind *layer_kinds,
                         const OptimizerSettings *optimizer);

// Prints what each recompute level would need on the device, and which fit.
void training_print_levels(Collectives *collectives, const Options *options);

// Allocates what was planned. Weights and moments are for others to fill.
void training_allocate(Training *training);

void training_free(Training *training);

// The attention of the model's steps: as trained, with selection where there is any; or all dense.
StepAttention training_attention(const Training *training, bool selection);

// The state, as checkpoints write and read it.
TrainingState training_state(const Training *training);

// Work per token of the attention that is actually run.
FlopsPerToken training_flops(const Training *training);
