// Saves of a run: applies the options (where to save, how many checkpoints to keep, what a failure means) to
// the saver, and lets all ranks agree after each step on its progress and on requests to stop.
#pragma once
#include "checkpoint/saver.h"
#include "training/trainer.h"

typedef struct {
    Saver *saver;
    const Communicator *communicator;
    const Options *options;
    bool any;      // a checkpoint has been written
    int64_t step;  // of the last one begun, and:
    int64_t bytes; // its size, without the few KiB of texts
    double waited; // seconds for which training waited for it
} Saves;

// The communicator and the options must outlive it.
Saves saves_create(const Communicator *communicator, const Options *options);
void saves_destroy(Saves *saves);

// How many checkpoints a run at this step will add at most to the `existing` ones, before older ones are deleted.
int64_t saves_ahead(const Options *options, int64_t step, int64_t existing);

// All ranks call the following functions together.

// Begins to save the trainer's state in --out; waits first for a save under way. When the checkpoint is complete on
// the disk, one of the functions below prints a line.
void saves_begin(Saves *saves, const Trainer *trainer);

// Waits for the end of a save under way, if there is one. If it failed, ends the process if --on-save-error
// says so or if no later save can make up for it (`last`); else warns.
void saves_finish(Saves *saves, bool last);

// After each step: advances the save under way, and returns the request to stop of the lowest rank that has
// one (preemption_requested; 0: none), the same on all ranks.
int saves_agree(Saves *saves);
