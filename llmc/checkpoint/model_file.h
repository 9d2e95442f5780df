// model.safetensors: the weights, in the storage type, under Hugging Face's names.
#pragma once
#include "checkpoint/rank_files.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/training_state.h"

#define MODEL_FILE "model.safetensors"

// Adds model.safetensors, with the state's weights, to the files that this rank writes.
void model_file_add(RankFiles *files, const TrainingState *state);

// Opens a directory's model file. Fails softly unless its tensors are exactly the table's, in that storage
// type.
bool model_file_open(SafetensorsFile *file, const char *directory, const ParameterTable *table,
                     StorageType storage, Reason *reason);

// Reads the weights from a file opened by model_file_open into the state's weights. Fails softly.
bool model_file_load(const SafetensorsFile *file, const TrainingState *state, Reason *reason);
