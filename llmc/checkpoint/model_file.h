// model.safetensors: the weights, in the storage type, under Hugging Face's names.
#pragma once
#include "checkpoint/rank_files.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/training_state.h"

#define MODEL_FILE "model.safetensors"

// Adds the file, with the state's weights, to those that are written.
void model_file_add(RankFiles *files, const TrainingState *state);

// Opens a directory's model file. Fails softly unless it has the table's tensors, in that storage type, and
// no others.
bool model_file_open(SafetensorsFile *file, const char *directory, const ParameterTable *table,
                     StorageType storage, Reason *reason);

// Reads the weights of a file that model_file_open opened into the state's.
bool model_file_load(const SafetensorsFile *file, const TrainingState *state, Reason *reason);
