// What is trained, on a device: weights, decoder and optimizer, as the options describe them. A run trains it,
// benchmarks measure it, tools load checkpoints into it.
#pragma once
#include "checkpoint/checkpoint.h"
#include "model/flops.h"
#include "training/attention_schedule.h"
#include "training/optimizer.h"

typedef struct {
    Device *device;
    Collectives *collectives; // with the other ranks of the run
    MemoryPlan *memory;
    Weights *weights;
    Decoder *decoder;
    Optimizer *optimizer;
    AttentionSchedule schedule;
    LayerKind *layer_kinds;    // [layers]: of the step whose attention was last asked for; at first, step 0
    int32_t *inputs, *targets; // [rows]: a micro-step's tokens, on the host
} Training;

// Opens the device that the options ask for (of several GPUs, the one of this process among those of its
// host), and settles their dtype. Fails with a message if it cannot be had or cannot hold a model of this
// shape.
Device *training_open_device(Options *options, const Communicator *communicator);

// Plans all memory, at the recompute level asked for or (auto) the least that fits every rank's device: the
// least for usual steps, and with it the least for dense ones. Nothing is allocated on the device yet.
Training training_plan(Collectives *collectives, const Options *options);

// The same from settings of one's own, but for what the schedule says of layers and dense steps. The schedule is
// the training's from here on.
Training training_create(Device *device, Collectives *collectives, const ModelConfig *config,
                         const DecoderSettings *decoder, const AttentionSchedule *schedule,
                         const OptimizerSettings *optimizer);

// Prints what each recompute level would need on the device, and which fit.
void training_print_levels(Collectives *collectives, const Options *options);

// Allocates what was planned. Weights and moments are for others to fill.
void training_allocate(Training *training);

// Bytes of the device's memory that this process uses: on the CPU all that it has; on a GPU what was planned (what
// libraries take there is not counted).
size_t training_memory(const Training *training);

void training_free(Training *training);

// The attention of a step, counted from 0: as it is trained, or (as_usual) as it would be if it were not a dense
// step. Until the next such question.
StepAttention training_step_attention(const Training *training, int64_t step, bool as_usual);

// Weights and optimizer state, as checkpoints write and read them.
TrainingState training_state(const Training *training);

// Work per token of the attention that a step actually runs; of all usual or all dense steps, on average; and of
// a run of so many steps.
FlopsPerToken training_step_flops(const Training *training, const StepAttention *attention);
FlopsPerToken training_type_flops(const Training *training, StepType type);
FlopsPerToken training_mean_flops(const Training *training, int64_t steps);
