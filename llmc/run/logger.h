// What a run shows: a printed line a step, and the same as a line of metrics.jsonl in the output directory.
#pragma once
#include "model/activations.h"

// Steps of a type that are left to do.
typedef struct {
    int64_t steps;
    double flops; // of one
} StepsLeft;

typedef struct {
    int64_t step, steps;    // optimizer steps done, this one included, and of the whole run
    int64_t samples;        // sequences consumed so far
    double loss, grad_norm; // mean per token, before the update; before clipping
    double learning_rate;
    double validation_loss;  // as trained; NAN where there was no validation
    double validation_dense; // with dense attention, where it was trained with selection; NAN likewise
    bool skipped;            // no update was made
    StepType type;
    int64_t dense_layers; // of this step
    bool selection;       // whether it was trained with selection (stage 1 of the recipe) in the other layers
    double seconds;       // of this step, validation and saving not included
    double tokens, flops; // of this step
    StepsLeft left[STEP_TYPES];
    double mfu;    // share of the device's peak FLOP/s; NAN where the peak is not known
    double memory; // bytes in use on the device
} StepReport;

typedef struct {
    FILE *metrics;
    char *path;
    bool failing; // the last line could not be written
    // Of a step of each type: a running mean, for the time left; 0: there was none yet.
    double usual_seconds[STEP_TYPES];
} Logger;

// Opens out_dir/metrics.jsonl (the directory is made if missing) to go on after `step`: lines of later steps,
// which will be done again, are dropped. Fails with a message if it cannot be written.
Logger logger_open(const char *out_dir, int64_t step);

// Writes the report to metrics.jsonl (where that fails, on a full disk say, a warning is all), and prints it
// if `print` says so.
void logger_step(Logger *logger, const StepReport *report, bool print);

// How long the steps that are left will take, by those that were logged. A type of step that was not yet takes as
// much longer than the other as its work is more.
double logger_seconds_left(const Logger *logger, const StepReport *report);

void logger_close(Logger *logger);
