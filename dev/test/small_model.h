// A small model of odd sizes that tests of the whole step run on, on any device.
#pragma once
#include "test.h"

#include "training/step.h"

extern const OptimizerSettings usual_optimizer;

// A model and its optimizer, allocated and with initial weights of seed 1. NULL for collectives: one rank, and
// for layer_kinds: all dense.
Training *training_open(Device *device, Collectives *collectives, const ModelConfig *config,
                        const DecoderSettings *settings, const LayerKind *layer_kinds,
                        const OptimizerSettings *optimizer);

// Likewise, with a schedule, which is the training's from here on.
Training *training_open_scheduled(Device *device, Collectives *collectives, const ModelConfig *config,
                                  const DecoderSettings *settings, const AttentionSchedule *schedule,
                                  const OptimizerSettings *optimizer);
void training_close(Training *t);

StorageType accumulator_of(const Training *t);

// Sets all weights, and the master weights of an optimizer that is not sharded, from
// values[parameters.elements].
void set_weights(Training *t, const double *values);

// The caller frees them.
double *get_gradients(const Training *t);

// All weights as the device stores them; the caller frees them.
double *get_weights(const Training *t);

// How far results in the device's storage type may be from those of another way to compute them.
double step_tolerance(const Device *device);

// Checks that two models hold the same gradients, bit for bit.
void equal_gradient_bytes(const char *what, const Training *a, const Training *b);

// The gradients' bytes, for comparisons to the bit. The caller frees them.
void *gradient_bytes(const Training *t, size_t *size);

// Compares every parameter's values on their own: a small tensor must not hide behind a large one.
void check_parameters(const ParameterTable *table, const double *a, const double *b, double tolerance);

// The odd model: grouped queries, three layers. With selection the first is dense all the same: before any
// attention equal tokens have equal norms, and rounding would choose.
extern const ModelConfig odd_config;
extern const LayerKind odd_layer_kinds[];

enum { ODD_BATCH = 2, ODD_SEQ_LEN = 204, ODD_ROWS = ODD_BATCH * ODD_SEQ_LEN };

typedef struct {
    int32_t inputs[ODD_ROWS], targets[ODD_ROWS];
} OddBatch;

OddBatch odd_batch(void);
DecoderSettings odd_settings(void);
Training *odd_training(Device *device, DecoderSettings settings, bool selection);

// Random weights that bfloat16 holds exactly, so that every device computes the same function. The caller
// frees them.
double *odd_weights(const ParameterTable *table);

// The attention of the model's steps: as its first is trained, or all dense.
StepAttention training_attention(const Training *t, bool selection);

// The mean loss of a batch, whose gradients the model then holds, as trained.
double accumulate(Training *t, const OddBatch *batch);

// The mean loss of a batch without a backward.
double evaluate(Training *t, const OddBatch *batch, bool selection);
