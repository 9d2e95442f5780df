// Checkpoints: a directory that is a Hugging Face Llama model, and holds what training needs to go on.
//
//   config.json model.safetensors          the model, in the storage type, under Hugging Face's tensor names
//   optimizer-RRRRR-of-WWWWW.safetensors   "master", "m", "v": one flat range each of the parameter table's
//   buffers trainer.json                           step, samples consumed, every recorded option, program
//   version manifest.json                          size and XXH3-128 hash of each file; written last
//
// It is written to step_NNNNNNNN.tmp, synced, renamed to step_NNNNNNNN and named in the file `latest`; only
// then are older ones deleted.
#pragma once
#include "device.h"
#include "parameters.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cJSON;

// What a checkpoint is written from and read into: flat device buffers of table->elements each.
typedef struct {
    Device *device;
    const ModelConfig *config;
    const ParameterTable *table;
    void *weights;        // S
    void *master, *m, *v; // A
} TrainingState;

// How far training has come.
typedef struct {
    int64_t step;    // optimizer steps done
    int64_t samples; // positions of the training order consumed
} Progress;

typedef struct {
    int64_t keep;       // newest checkpoints to keep, at least 1
    int64_t keep_every; // checkpoints of steps divisible by this are never deleted; 0: none
} Retention;

// Writes the checkpoint of `progress->step` under out_dir (made if missing), replacing one of the same step,
// and prunes. `options` are recorded in trainer.json. seq_len and separator_token (< 0: none) go into
// config.json. Fails with a message on any I/O error, leaving earlier checkpoints as they were.
void checkpoint_save(const char *out_dir, const TrainingState *state, const Progress *progress,
                     const struct cJSON *options, int64_t seq_len, int64_t separator_token,
                     const Retention *retention);

// A verified checkpoint.
typedef struct {
    char *path;
    Progress progress;
    struct cJSON *options; // as recorded
} Checkpoint;

// Opens the checkpoint directory `resume`, or with "latest" the newest under out_dir, and verifies every file
// against the manifest. A damaged one is named; with "latest" the newest good one before it is then taken,
// else (or if there is none) this fails.
Checkpoint checkpoint_open(const char *resume, const char *out_dir);

// Reads weights, master weights and moments into the state's buffers; fails if any name, shape or type
// differs from the state's own table. A model of another storage type is refused.
void checkpoint_load(const Checkpoint *checkpoint, const TrainingState *state);

void checkpoint_close(Checkpoint *checkpoint);

#ifdef __cplusplus
}
#endif
