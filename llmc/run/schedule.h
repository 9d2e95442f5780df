// The learning rate as a function of the step.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// WSD: warmup, stable, decay (arXiv 2404.06395).
typedef enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_WSD } ScheduleKind;
extern const char *const schedule_names[]; // of those, as --lr-schedule takes them; ends with NULL

typedef struct {
    ScheduleKind kind;
    double peak;       // learning rate after warmup
    double final_frac; // of the peak, at the last step (not for constant)
    double decay_frac; // wsd: the share of all steps, at the end, in which it falls linearly
    int64_t warmup_steps;
    int64_t steps; // of the whole run
} Schedule;

// The learning rate of step `step`, counted from 0: peak·(step+1)/warmup_steps during warmup, then from the
// peak at the last warmup step to final_frac·peak at the last step of all.
double schedule_learning_rate(const Schedule *schedule, int64_t step);

#ifdef __cplusplus
}
#endif
