// optimizer-RRRRR-of-WWWWW.safetensors: rank R's part, of W ranks, of the optimizer's flat buffers. Each
// buffer is a tensor; the metadata says which elements it has. Elements are numbered as if there were one
// rank (flat_offset in llmc/model/parameters.h) and any number of files can be read, so a run may continue
// with another number of ranks.
#pragma once
#include "checkpoint/manifest.h"
#include "checkpoint/rank_files.h"
#include "checkpoint/training_state.h"

// Adds this rank's optimizer file to the files that it writes. A rank that has no elements (the model is too
// small for so many ranks) writes a file without tensors.
void optimizer_file_add(RankFiles *files, const TrainingState *state);

// --- reading: all fails softly --------------------------------------------------------------------------

// The elements that one file holds, in the order of its tensors.
typedef struct {
    ElementRange *ranges;
    int count;
    int64_t elements;
} OptimizerPart;

// The optimizer files of a checkpoint.
typedef struct {
    const char *directory; // kept by address
    OptimizerPart *parts;
    int count;
} OptimizerFiles;

// Whether the manifest lists a complete set of optimizer files, those of ranks 0 to W - 1 of W; *ranks
// becomes W. Fails softly.
bool optimizer_files_listed(const Manifest *manifest, int *ranks, Reason *reason);

// Reads the headers of a directory's `count` optimizer files. Fails softly unless the files together have
// each of the elements 0 to `elements` - 1 once, in tensors of this type named as `buffers` (their memory is
// not used).
bool optimizer_files_open(OptimizerFiles *files, const char *directory, int count,
                          const StateBuffers *buffers, StorageType type, int64_t elements, Reason *reason);

// Reads the elements that this rank's buffers hold from the files into the state's buffers. Fails softly.
bool optimizer_files_load(const OptimizerFiles *files, const TrainingState *state, Reason *reason);

void optimizer_files_close(OptimizerFiles *files);
