// optimizer-RRRRR-of-WWWWW.safetensors: what rank R of W has of the optimizer's flat buffers, a tensor each,
// and as metadata which elements these are. Elements are counted as if there were one rank (flat_offset in
// llmc/model/parameters.h), and a reader takes any number of files, so any number of ranks reads what any
// other number wrote.
#pragma once
#include "checkpoint/manifest.h"
#include "checkpoint/rank_files.h"
#include "checkpoint/training_state.h"

// Adds this rank's file to those that are written. A rank without elements, of a model smaller than its ranks
// can divide, writes a file without tensors.
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

// Whether the manifest lists the files of all ranks of one number of ranks, which is stored in *ranks.
bool optimizer_files_listed(const Manifest *manifest, int *ranks, Reason *reason);

// Reads which elements each of a directory's files holds. Together they have to hold each of `elements` once,
// of the buffers of these names (their memory is not looked at), in that type.
bool optimizer_files_open(OptimizerFiles *files, const char *directory, int count,
                          const StateBuffers *buffers, StorageType type, int64_t elements, Reason *reason);

// Reads what the state's buffers hold.
bool optimizer_files_load(const OptimizerFiles *files, const TrainingState *state, Reason *reason);

void optimizer_files_close(OptimizerFiles *files);
