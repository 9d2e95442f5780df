// Checkpoints: a directory that is a Hugging Face Llama model, and holds what training needs to go on.
//
//   config.json model.safetensors          the model, in the storage type, under Hugging Face's tensor names
//   optimizer-RRRRR-of-WWWWW.safetensors   "master", "m", "v": what rank R of W has of the flat buffers; its
//                                          metadata says which elements
//   trainer.json                           step, samples consumed, every recorded option, program version
//   manifest.json                          size and XXH3-128 hash of each file; written last
//
// Elements are counted as if there were one rank (flat_offset in llmc/model/parameters.h), so that any number
// of ranks reads what any other number wrote. Here they are opened and read; llmc/checkpoint/saver.h writes
// them.
#pragma once
#include "parallel/communicator.h"
#include "device/device.h"
#include "model/parameters.h"

struct cJSON;

// What a checkpoint is written from and read into: device buffers. The weights are whole, and the same on all
// ranks. So are master weights and moments, in flat buffers of table->elements, unless they are `sharded`:
// then they hold this rank's parts of the buckets alone, one after the other, table->elements / table->ranks
// in all.
typedef struct {
    Device *device;
    const ModelConfig *config;
    const ParameterTable *table; // divided by the communicator's ranks
    void *weights;               // S
    void *master, *m, *v;        // A
    const Communicator *communicator;
    bool sharded;
} TrainingState;

enum { FLAT_BUFFERS = 3 };
extern const char *const flat_buffer_names[FLAT_BUFFERS]; // of master, m and v in an optimizer file

// The element of master, m and v at which this rank's part of the bucket begins.
int64_t training_state_part(const TrainingState *state, int bucket);

// How far training has come.
typedef struct {
    int64_t step;    // optimizer steps done
    int64_t samples; // positions of the training order consumed
    int64_t skipped; // of the steps: those without an update (llmc/run/guard.h)
} Progress;

// A verified checkpoint.
typedef struct {
    char *path;
    int optimizer_files;
    Progress progress;
    struct cJSON *options; // as recorded
    struct cJSON *guard;   // likewise
} Checkpoint;

// Whether a checkpoint is good through and through: its files are as they were written, the model has the
// tensors that config.json implies, the optimizer files have every element, trainer.json says where training
// is. One line about it, for the caller to free; fails with one line about what is wrong. Needs no device.
char *checkpoint_verify(const char *directory);

// All ranks call what follows together; an error is one line, mostly rank 0's.

// Opens the checkpoint directory `resume`, or with "latest" the newest under out_dir, and verifies every file
// against the manifest. A damaged one is named; with "latest" the newest good one before it is then taken,
// else (or if there is none) this fails.
Checkpoint checkpoint_open(const Communicator *communicator, const char *resume, const char *out_dir);

// Reads weights, master weights and moments into the state's buffers, whatever number of ranks wrote them;
// fails if any name, shape or type differs from the state's own table, or if elements are missing. A model of
// another storage type is refused.
void checkpoint_load(const Checkpoint *checkpoint, const TrainingState *state);

void checkpoint_close(Checkpoint *checkpoint);
