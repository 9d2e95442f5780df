// One step on one rank and the same on all, to be compared: its loss, its gradients, and what was selected in it.
#pragma once
#include "dev/test/parallel/setup.h"
#include "dev/test/selections.h"

typedef struct {
    double loss;
    double *gradients; // as one rank's table has them
    Selections selections;
} Outcome;

// All sequences as one rank's micro-steps.
Outcome step_of_one(const Setup *s, const double *weights, const Sequences *sequences);

// Of a parallel training, each rank on its parts. `replay`: of the selections that the layers hold.
Outcome step_of_all(const Setup *s, Training *t, const Sequences *sequences, bool replay);

void free_outcome(Outcome *outcome);

// A step's outcome, but for what it selected.
Outcome outcome_of(const Setup *s, Training *t);

// The step's gradients alone, with the reduction over ranks or with another `ready`.
void accumulate_parallel(const Setup *s, Training *t, const Sequences *sequences);
void accumulate_with(const Setup *s, Training *t, const Sequences *sequences, bool replay,
                     const GradientsReady *ready);
