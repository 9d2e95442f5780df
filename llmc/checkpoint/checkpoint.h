// Checkpoints: a directory that is a Hugging Face Llama model, and holds what training needs to go on.
//
//   config.json                            the model's shape (huggingface.h)
//   model.safetensors                      its weights (model_file.h)
//   optimizer-RRRRR-of-WWWWW.safetensors   the optimizer's state, a file for each rank (optimizer_file.h)
//   trainer.json                           how far training has come, and every option (trainer_file.h)
//   manifest.json                          size and hash of each file; written last (manifest.h)
//
// Here they are opened, verified and read, by any number of ranks; saver.h writes them.
#pragma once
#include "checkpoint/trainer_file.h"
#include "checkpoint/training_state.h"

// A verified checkpoint.
typedef struct {
    char *path;
    int optimizer_files;
    Progress progress;
    struct cJSON *options; // as recorded
    struct cJSON *guard;   // likewise
} Checkpoint;

// Whether a checkpoint is good through and through: its files are as they were written, the model has the
// tensors that config.json implies, the optimizer files have every element of the buffers of these names
// (their memory is not looked at), trainer.json says where training is. One line about it, for the caller to
// free; ends the process with one line about what is wrong. Needs no device.
char *checkpoint_verify(const char *directory, const StateBuffers *optimizer);

// For one process on its own, which has no run to go on with: opens the checkpoint in this directory and
// verifies every file against the manifest; false if it is not good.
bool checkpoint_read(const char *directory, Checkpoint *checkpoint, Reason *reason);

// Likewise: reads the weights alone into the state's, which needs neither an optimizer nor a communicator.
// False if any name, shape or type differs from the state's own.
bool checkpoint_load_weights(const Checkpoint *checkpoint, const TrainingState *state, Reason *reason);

// All ranks call what follows together; an error ends the process with one line, mostly rank 0's.

// Opens the checkpoint directory `resume`, or with "latest" the newest under out_dir, and verifies every file
// against the manifest. A damaged one is named; with "latest" the newest good one before it is then taken,
// else (or if there is none) this fails.
Checkpoint checkpoint_open(const Communicator *communicator, const char *resume, const char *out_dir);

// Reads weights and optimizer state into the state's buffers, whatever number of ranks wrote them; fails if
// any name, shape or type differs from the state's own, or if elements are missing. A model of another
// storage type is refused.
void checkpoint_load(const Checkpoint *checkpoint, const TrainingState *state);

void checkpoint_close(Checkpoint *checkpoint);
