// What a run shows before its first step.
#pragma once
#include "run/dataset.h"
#include "training/training.h"

// Prints the options (beside those that the checkpoint recorded), devices, model, work, attention, data and
// memory plan. A checkpoint without a path: a new run; data without shards: only the plan is asked for.
void summary_print(const Training *training, const Options *options, const Dataset *data,
                   const Checkpoint *checkpoint);
