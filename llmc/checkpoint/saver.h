// Saving checkpoints, beside training or at once. All ranks save together:
//
//   begin     every rank copies the state that it writes to host memory; then training may go on
//   prepare   rank 0 makes step_NNNNNNNN.tmp
//   write     every rank writes and syncs its files: rank 0 the model, each its part of the optimizer's state
//   commit    rank 0 writes the manifest, gives the directory its name, and deletes older ones
//   abandon   if writing or committing failed: rank 0 removes step_NNNNNNNN.tmp
//
// A phase begins when all ranks have ended the one before; once a step they exchange a small state to find
// out. The work of a phase is done in a thread that calls neither MPI nor the device, so no step waits for a
// disk. A failure on any rank ends the save, but neither the run nor any earlier checkpoint.
#pragma once
#include "checkpoint/directory.h"
#include "checkpoint/trainer_file.h"
#include "checkpoint/training_state.h"

struct cJSON;

typedef struct Saver Saver;

// A request to save: where, and everything but the TrainingState that the checkpoint contains.
typedef struct {
    const char *out_dir; // where step_NNNNNNNN is made; created if missing
    Progress progress;
    const struct cJSON *options;      // recorded in trainer.json
    const struct cJSON *guard;        // recorded in trainer.json: guard_record
    int64_t seq_len, separator_token; // for config.json; separator_token < 0: none
    Retention retention;
} SaveRequest;

typedef enum {
    SAVE_NONE,      // nothing to report: there is no save, or it is still under way
    SAVE_COMMITTED, // saver_message is empty, or says why older checkpoints could not be deleted
    SAVE_FAILED,    // saver_message says why
} SaveOutcome;

// asynchronous: saver_begin returns when the state is copied; else when the checkpoint is on the disk or has
// failed. The communicator is kept by address.
Saver *saver_create(const Communicator *communicator, bool asynchronous);
void saver_destroy(Saver *saver);

// All ranks call what follows together.

// Begins to save the state, which may change afterwards. If a save is under way, call saver_finish first. If
// there is no memory for the copy, warns and saves before it returns.
void saver_begin(Saver *saver, const TrainingState *state, const SaveRequest *request);

// To advance a save, the caller exchanges saver_local_state, this rank's state in the current phase (working,
// done or failed), among all ranks, and gives the states of all, in rank order, to saver_advance. If all have
// ended the phase the next one begins. The outcome of a save is returned once, when it has ended; else
// SAVE_NONE.
int saver_local_state(Saver *saver);
SaveOutcome saver_advance(Saver *saver, const int *states);

// Exchanges the ranks' states and advances the save.
SaveOutcome saver_poll(Saver *saver);

// Waits for the end of the save under way and returns its outcome; SAVE_NONE if there is none to report.
SaveOutcome saver_finish(Saver *saver);

// One line about the save whose outcome was returned last, the same on all ranks; "" if there is nothing to
// say.
const char *saver_message(const Saver *saver);
