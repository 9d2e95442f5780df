// Checkpoints. Each is a directory, which is a Hugging Face Llama model and also holds the state of training:
//
//   config.json                            the model's shape (huggingface.h)
//   model.safetensors                      its weights (model_file.h)
//   optimizer-RRRRR-of-WWWWW.safetensors   the optimizer's state, a file for each rank (optimizer_file.h)
//   trainer.json                           progress of training, and every option (trainer_file.h)
//   manifest.json                          size and hash of each file; written last (manifest.h)
//
// These functions open, verify and read checkpoints, with any number of ranks; saver.h writes them.
#pragma once
#include "checkpoint/trainer_file.h"
#include "checkpoint/training_state.h"

// A verified checkpoint.
typedef struct {
    char *path;
    int optimizer_files;
    Progress progress;
    struct cJSON *options; // the run's options, as trainer.json records them
    struct cJSON *guard;   // the guard's record, as trainer.json has it
} Checkpoint;

// Verifies a whole checkpoint: its files have the sizes and hashes with which they were written, the model
// has the tensors that config.json implies, the optimizer files have every element of the buffers named in
// `optimizer` (their memory is not used), and trainer.json is readable. Returns one line about the
// checkpoint, which the caller frees; if anything is wrong, ends the process with one line. Needs no device.
char *checkpoint_verify(const char *directory, const StateBuffers *optimizer);

// For one process on its own, which has no run to go on with: opens the checkpoint in this directory and
// verifies every file against the manifest; false if it is not good.
bool checkpoint_read(const char *directory, Checkpoint *checkpoint, Reason *reason);

// Likewise: reads the weights alone into the state's, which needs neither an optimizer nor a communicator.
// False if any name, shape or type differs from the state's own.
bool checkpoint_load_weights(const Checkpoint *checkpoint, const TrainingState *state, Reason *reason);

// All ranks call checkpoint_open and checkpoint_load together. An error ends the process with one line, in
// most cases printed by rank 0 alone.

// Opens the checkpoint directory `resume`, or with "latest" the newest checkpoint under out_dir, and verifies
// every file against the manifest. With "latest" a damaged checkpoint is skipped with a warning and the next
// older one is tried; newer ones than the file `latest` names come last. Fails if no good checkpoint is
// found.
Checkpoint checkpoint_open(const Communicator *communicator, const char *resume, const char *out_dir);

// Reads weights and optimizer state into the state's buffers, whatever number of ranks wrote them. Fails if a
// name, shape or type (the storage type too) differs from the state's, or if elements are missing.
void checkpoint_load(const Checkpoint *checkpoint, const TrainingState *state);

void checkpoint_close(Checkpoint *checkpoint);
