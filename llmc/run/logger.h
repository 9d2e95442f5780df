// Reports steps: a printed line, and a line of metrics.jsonl in the output directory.
#pragma once
#include "base/common.h"

typedef struct {
    int64_t step, steps;    // optimizer steps done, this one included, and of the whole run
    int64_t samples;        // sequences consumed so far
    double loss, grad_norm; // loss: mean per token, before the update; grad_norm: before clipping
    double learning_rate;
    double validation_loss;  // with the attention that is trained with; NAN: the step had no validation
    double validation_dense; // with dense attention, if the step was trained with selection; else NAN
    bool skipped;            // the guard skipped the update
    bool selection;          // whether the step was trained with selection (stage 1 of the recipe)
    double seconds;          // duration of this step without validation and saving
    double tokens;           // tokens of this step, over all ranks
    double mfu;              // share of the device's peak FLOP/s; NAN where the peak is not known
    double memory;           // bytes in use on the device
} StepReport;

typedef struct {
    FILE *metrics;
    char *path;
    bool failing;         // the last line could not be written
    double usual_seconds; // running mean of a step's duration, to estimate the time left
} Logger;

// Opens out_dir/metrics.jsonl, and makes the directory if missing. Removes lines of steps after `step`, which
// will be done again. Ends the process with a message if the file cannot be written.
Logger logger_open(const char *out_dir, int64_t step);

// Writes the report to metrics.jsonl (if that fails, on a full disk say, it only warns), and prints it if
// `print`.
void logger_step(Logger *logger, const StepReport *report, bool print);

void logger_close(Logger *logger);
