// Saves of a run: applies the options (where to save, how many checkpoints to keep, what a failure means) to
// the saver, and lets all ranks agree after each step on its progress and on requests to stop.
#pragma once
#include "checkpoint/saver.h"
#include "training/trainer.h"

typedef struct {
    Saver *saver;
    const Communicator *communicator;
    const Options *options;
} Saves;

// The communicator and the options must outlive it.
Saves saves_create(const Communicator *communicator, const Options *options);
void saves_destroy(Saves *saves);

// All ranks call the following functions together.

// Begins to save the trainer's state in --out; waits first for a save under way. Prints how long training
// waited.
void saves_begin(Saves *saves, const Trainer *trainer);

// Waits for the end of a save under way, if there is one. If it failed, ends the process if --on-save-error
// is `stop` or if no later save can make up for it (`last`); else warns.
void saves_finish(Saves *saves, bool last);

// After each step: advances the save under way, and returns the request to stop of the lowest rank that has
// one (preemption_requested; 0: none), the same on all ranks.
int saves_agree(Saves *saves);
