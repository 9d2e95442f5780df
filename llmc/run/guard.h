// Which updates a run leaves out: those whose loss or gradient norm is not finite, and, if asked, those where
// either stands out from the last ones (OLMo-core's SkipStepOptimizer does the same). Judged from values that
// all ranks have, so all judge alike.
#pragma once
#include "base/common.h"

struct cJSON;

typedef struct {
    int64_t max_nonfinite;  // steps in a row without a finite loss and norm; with more the run stops
    double skip_outliers;   // standard deviations above the mean; 0: outliers are not looked for
    int64_t outlier_window; // steps that these are taken over; none stands out before half of them
} GuardSettings;

typedef struct {
    GuardSettings settings;
    int64_t nonfinite;           // steps in a row
    double *losses, *grad_norms; // [outlier_window]: of the last finite steps, the oldest at `next` if full
    int64_t count, next;
} Guard;

typedef enum {
    GUARD_UPDATE,
    GUARD_NONFINITE, // leave the update out
    GUARD_OUTLIER,   // likewise
    GUARD_STOP,      // too many in a row without finite values
} GuardVerdict;

Guard guard_create(const GuardSettings *settings);
void guard_destroy(Guard *guard);

// Of one step; remembers its values.
GuardVerdict guard_judge(Guard *guard, double loss, double grad_norm);

// What it remembers, for a checkpoint; the caller deletes it. Restored, it judges as if it had gone on; from
// a record of another window (or NULL) it takes what fits.
struct cJSON *guard_record(const Guard *guard);
void guard_restore(Guard *guard, const struct cJSON *record);
