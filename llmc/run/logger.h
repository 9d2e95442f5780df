// Reports steps: a printed line, and a line of metrics.jsonl in the output directory.
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
    double loss, grad_norm; // loss: mean per token, before the update; grad_norm: before clipping
    double learning_rate;
    bool validated, validated_dense;          // which validation losses the step has:
    double validation_loss, validation_dense; // with the attention that is trained with; with dense attention
    bool skipped;                             // the guard skipped the update
    StepType type;
    int64_t dense_layers; // of this step
    bool selection;       // whether its other layers were trained with selection (stage 1 of the recipe)
    double seconds;       // duration of this step without validation and saving
    double tokens, flops; // of this step, over all ranks
    StepsLeft left[STEP_TYPES];
    double mfu;    // share of the device's peak FLOP/s; NAN where the peak is not known
    double memory; // bytes of the device's memory that this process uses
} StepReport;

typedef struct {
    char *path;
    int metrics;  // the descriptor of metrics.jsonl
    int64_t end;  // bytes of its whole lines; beyond them there can be part of one that failed
    bool failing; // the last line could not be written
    // Running mean of a step's duration, by type, to estimate the time left; 0: no such step yet.
    double usual_seconds[STEP_TYPES];
} Logger;

// Opens out_dir/metrics.jsonl, and makes the directory if missing. Removes lines of steps after `step`, which
// will be done again, and whatever is no whole line; where there are none the file stays as it is. Ends the
// process with a message if the file cannot be read or written.
Logger logger_open(const char *out_dir, int64_t step);

// Writes the report to metrics.jsonl as a whole line or not at all (if that fails, on a full disk say, it only
// warns), and prints it if `print` or if there are validation losses.
void logger_step(Logger *logger, const StepReport *report, bool print);

// How long the steps that are left will take, by those that were logged. A type of step that was not yet takes as
// much longer than the other as its work is more.
double logger_seconds_left(const Logger *logger, const StepReport *report);

void logger_close(Logger *logger);
