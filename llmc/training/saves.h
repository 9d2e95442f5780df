// When a run saves, and what becomes of it: the saver under the options' policy, and what the ranks agree on
// after each step.
#pragma once
#include "checkpoint/saver.h"
#include "training/trainer.h"

typedef struct {
    Saver *saver;
    const Communicator *communicator;
    const Options *options;
} Saves;

// The options must outlive it.
Saves saves_create(const Communicator *communicator, const Options *options);
void saves_destroy(Saves *saves);

// All ranks call what follows together.

// Saves the trainer's state in --out, after the end of a save under way; says how long training waited.
void saves_begin(Saves *saves, const Trainer *trainer);

// Waits for the end of a save under way. A failure ends the run if --on-save-error says so, or if no further
// save will follow (`last`).
void saves_finish(Saves *saves, bool last);

// After a step: what becomes of the save under way, and the request to stop, from whichever rank (0: none).
int saves_agree(Saves *saves);
