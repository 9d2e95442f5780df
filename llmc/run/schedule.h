// The learning rate as a function of the step.
#pragma once
#include "base/common.h"

// WSD: warmup, stable, decay (arXiv 2404.06395).
typedef enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_WSD } ScheduleKind;
extern const char *const schedule_names[]; // their names for --lr-schedule; ends with NULL

typedef struct {
    ScheduleKind kind;
    double peak;       // learning rate after warmup
    double final_frac; // the last step's learning rate, as a fraction of the peak (not for constant)
    double decay_frac; // wsd: the fraction of all steps, at the end, in which it falls linearly
    int64_t warmup_steps;
    int64_t steps; // the run's number of steps
} Schedule;

// The learning rate of step `step`, counted from 0. During warmup: peak·(step+1)/warmup_steps. Then, by
// `kind`, it stays at the peak, or falls to final_frac·peak at the run's last step.
double schedule_learning_rate(const Schedule *schedule, int64_t step);
