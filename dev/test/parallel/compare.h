// The outcome of all ranks' step against one rank's: the selections of every micro-step, the loss, the gradients.
#pragma once
#include "dev/test/parallel/outcome.h"

// Random sequences without near-ties in any selection of one rank's. (In bfloat16 there always are some.)
Sequences clear_sequences(const Setup *s, const double *weights, int64_t micro_steps);

// Every micro-step's selection, and the scores it was made from, against one rank's. Where ranks differ,
// those that do first say how: what comes after that is another function.
void check_selections(const Setup *s, const Outcome *part, const Outcome *whole);

// How many places of the selections differ from the whole sequences', of how many.
int64_t different_picks(const Setup *s, const Outcome *part, const Outcome *whole, int64_t *of);

// Leaves one rank's selection where a step of one micro-step that replays finds it.
void give_positions(const Setup *s, Training *t, const Outcome *whole);

// The loss and every parameter's gradient.
void check_outcome(const Setup *s, const Outcome *part, const Outcome *whole);
