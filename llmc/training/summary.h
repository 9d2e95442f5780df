// The lines that a run prints before its first step.
#pragma once
#include "run/dataset.h"
#include "training/training.h"

// Prints the options (and how they differ from the checkpoint's), device, model, work per token, attention,
// data and memory plan. In a new run the checkpoint has no path; with --plan alone the data has no shards.
void summary_print(const Training *training, const Options *options, const Dataset *data,
                   const Checkpoint *checkpoint);
