// Which layers of which steps are dense in a run with selection: a function of the options and the number of
// the step, counted from 0, alone. So a resumed run, and every rank, agree.
//
// A step is either dense in all layers (DENSE_STEP: the first ones, and every so many-th after them), or usual:
// then its dense layers are those of a list, or they rotate. Without selection all steps are usual, and dense.
#pragma once
#include "model/activations.h"
#include "run/options.h"

typedef struct {
    int64_t layers;
    LayerKind *listed; // [layers]: in usual steps, unless they rotate
    int64_t rotate;    // R: in step s the layers l with (l + s) mod R = 0 are dense; 0: those listed
    int64_t dense_first, dense_every; // step s is dense if s < first or (s + 1) mod every = 0 (0: never)
    int64_t dense_span; // in such a step no token attends beyond its span of so many; 0: whole sequences
} AttentionSchedule;

AttentionSchedule attention_schedule_create(const Options *options);
void attention_schedule_free(AttentionSchedule *schedule);

// The schedule of steps that are all alike: each layer is of its kind in layer_kinds[layers], which is copied;
// NULL: all dense.
AttentionSchedule attention_schedule_fixed(int64_t layers, const LayerKind *layer_kinds);

StepType attention_schedule_type(const AttentionSchedule *schedule, int64_t step);

// Sets kinds[layers] as in the step if it is usual, and as they would be then if it is not.
void attention_schedule_layers(const AttentionSchedule *schedule, int64_t step, LayerKind *kinds);

// The layers that are dense in a usual step, on average over a rotation.
double attention_schedule_dense_layers(const AttentionSchedule *schedule);

// The kinds that a layer is of in usual steps.
LayerKinds attention_schedule_kinds_of(const AttentionSchedule *schedule, int64_t layer);

// Whether any layer ever selects.
bool attention_schedule_selects(const AttentionSchedule *schedule);

// Whether there are steps of DENSE_STEP, in a run that is long enough.
bool attention_schedule_has_dense_steps(const AttentionSchedule *schedule);

// How many of the steps from `first` to before `end` are DENSE_STEP.
int64_t attention_schedule_dense_steps(const AttentionSchedule *schedule, int64_t first, int64_t end);
