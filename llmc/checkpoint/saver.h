// Saving checkpoints, beside training or at once. All ranks save together:
//
//   begin     every rank copies what it has to write from its device to host memory; then training may go on
//   prepare   rank 0 makes step_NNNNNNNN.tmp
//   write     every rank writes and syncs its files: rank 0 the model, each its part of the optimizer's state
//   commit    rank 0 writes the manifest, gives the directory its name, and deletes older ones
//   abandon   if writing or committing failed: rank 0 removes step_NNNNNNNN.tmp
//
// A phase begins when all ranks have ended the one before, which they tell one another in a small value once
// a step. Its work is done in a thread that calls neither MPI nor the device, so no step waits for a disk.
// What goes wrong there, on whichever rank, ends the save and not the run, and earlier checkpoints are as
// they were.
#pragma once
#include "checkpoint/directory.h"
#include "checkpoint/trainer_file.h"
#include "checkpoint/training_state.h"

struct cJSON;

typedef struct Saver Saver;

// What to save where.
typedef struct {
    const char *out_dir; // made if missing
    Progress progress;
    const struct cJSON *options;      // recorded in trainer.json
    const struct cJSON *guard;        // likewise: guard_record
    int64_t seq_len, separator_token; // for config.json; separator_token < 0: none
    Retention retention;
} SaveRequest;

typedef enum {
    SAVE_NONE,      // nothing to report: no save, or one that is under way
    SAVE_COMMITTED, // saver_message is empty, or says what else went wrong: older checkpoints that stay
    SAVE_FAILED,    // saver_message says why
} SaveOutcome;

// asynchronous: saver_begin returns when what is to be saved is copied; else when the checkpoint is on the disk
// or has failed. The communicator is kept by address.
Saver *saver_create(const Communicator *communicator, bool asynchronous);
void saver_destroy(Saver *saver);

// All ranks call what follows together.

// Begins to save the state; with one that is under way, saver_finish has to come first. After it the state
// may change. Without memory for the copy it warns and saves at once.
void saver_begin(Saver *saver, const TrainingState *state, const SaveRequest *request);

// This rank's state in the phase under way (working, done, failed), which the caller gives to all ranks; and
// what comes of the states of all ranks, in their order: where all have ended the phase, the next begins. Each
// save is reported once, when it has come to its end.
int saver_local_state(Saver *saver);
SaveOutcome saver_advance(Saver *saver, const int *states);

// Both, and the exchange between them.
SaveOutcome saver_poll(Saver *saver);

// Waits for the end of the save that is under way.
SaveOutcome saver_finish(Saver *saver);

// One line about the save that was reported last, the same on all ranks.
const char *saver_message(const Saver *saver);
