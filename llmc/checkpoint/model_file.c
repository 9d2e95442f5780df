#include "checkpoint/model_file.h"

#include "checkpoint/tensor_file.h"

#include <stdlib.h>
#include <string.h>

static void *weight(const TrainingState *state, const Parameter *parameter) {
    return (char *)state->weights + (size_t)parameter->offset * storage_size(state->device->ops->storage);
}

void model_file_add(RankFiles *files, const TrainingState *state) {
    const ParameterTable *table = state->table;
    Tensor *tensors = host_allocate((size_t)table->count, sizeof(Tensor), "the tensors of a checkpoint");
    for (int i = 0; i < table->count; i++) {
        const Parameter *parameter = &table->list[i];
        tensors[i] = (Tensor){.type = state->device->ops->storage,
                              .dims = parameter->dims,
                              .shape = {parameter->shape[0], parameter->shape[1]},
                              .count = parameter->count};
        snprintf(tensors[i].name, sizeof(tensors[i].name), "%s", parameter->name);
    }
    size_t size;
    char *header =
        safetensors_header(tensors, table->count, (const char *const[]){PYTORCH_METADATA, NULL}, &size);
    rank_files_add(files, MODEL_FILE, header, size);
    for (int i = 0; i < table->count; i++)
        rank_files_append(files, weight(state, &table->list[i]), tensors[i].bytes);
    free(tensors);
}

static bool check_no_others(const SafetensorsFile *file, const ParameterTable *table, Reason *reason) {
    for (int i = 0; i < file->count; i++) {
        int row = 0;
        while (row < table->count && strcmp(table->list[row].name, file->tensors[i].name)) row++;
        if (row == table->count)
            return fail(reason, "%s holds %s, which this model does not have", file->path,
                        file->tensors[i].name);
    }
    return true;
}

static bool check_tensors(const SafetensorsFile *file, const ParameterTable *table, StorageType storage,
                          Reason *reason) {
    for (int i = 0; i < table->count; i++) {
        const Parameter *parameter = &table->list[i];
        if (!tensor_file_check(file, parameter->name, storage, parameter->dims, parameter->shape, reason))
            return false;
    }
    return check_no_others(file, table, reason);
}

bool model_file_open(SafetensorsFile *file, const char *directory, const ParameterTable *table,
                     StorageType storage, Reason *reason) {
    if (!tensor_file_open(file, directory, MODEL_FILE, reason)) return false;
    if (check_tensors(file, table, storage, reason)) return true;
    safetensors_close(file);
    return false;
}

bool model_file_load(const SafetensorsFile *file, const TrainingState *state, Reason *reason) {
    for (int i = 0; i < state->table->count; i++) {
        const Parameter *parameter = &state->table->list[i];
        const size_t bytes = safetensors_find(file, parameter->name)->bytes;
        if (!tensor_file_load(file, parameter->name, 0, bytes, state->device, weight(state, parameter),
                              reason))
            return false;
    }
    return true;
}
