// Decides which updates a run skips: if loss or gradient norm is not finite, and, with skip_outliers, if
// either is far above its mean over the last steps (as OLMo-core's SkipStepOptimizer does). The values
// are the same on all ranks, so all ranks decide alike.
#pragma once
#include "base/common.h"

struct cJSON;

typedef struct {
    int64_t max_nonfinite;  // the run stops after more steps in a row than this without finite loss and norm
    double skip_outliers;   // an outlier is this many standard deviations above the mean; 0: there are none
    int64_t outlier_window; // window of mean and deviation, in steps; no outliers before half of it
} GuardSettings;

typedef struct {
    GuardSettings settings;
    int64_t nonfinite;           // non-finite steps in a row so far
    double *losses, *grad_norms; // ring buffers [outlier_window] of the last finite steps
    int64_t count, next;
} Guard;

typedef enum {
    GUARD_UPDATE,
    GUARD_NONFINITE, // skip the update: loss or norm is not finite
    GUARD_OUTLIER,   // skip the update: loss or norm is an outlier
    GUARD_STOP,      // stop the run: too many non-finite steps in a row
} GuardVerdict;

Guard guard_create(const GuardSettings *settings);
void guard_destroy(Guard *guard);

// The verdict on one step, from its loss (mean per token) and gradient norm before clipping. Records both for
// later steps, unless one is not finite.
GuardVerdict guard_judge(Guard *guard, double loss, double grad_norm);

// The guard's state for a checkpoint, which the caller deletes; and a new guard set to it, which then judges
// as the old one would have. If the record has more steps than the window the last ones are kept; NULL
// changes nothing.
struct cJSON *guard_record(const Guard *guard);
void guard_restore(Guard *guard, const struct cJSON *record);
