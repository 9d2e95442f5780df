#include "step_fixture.h"

#include <stdlib.h>
#include <string.h>

SafetensorsFile fixture_open(const char *name) {
    SafetensorsFile file;
    Reason reason;
    if (!safetensors_open(&file, fixture(name), &reason)) fatal("%s", reason.text);
    return file;
}

double *fixture_values(const SafetensorsFile *file, const char *prefix, const char *name) {
    char *full = format_string("%s%s", prefix, name);
    const Tensor *tensor = safetensors_find(file, full);
    if (!tensor) fatal("%s has no %s", file->path, full);
    double *values = host_allocate((size_t)tensor->count, sizeof(double), full);
    if (!safetensors_read(file, tensor, 0, values, tensor->bytes)) fatal("cannot read %s", full);
    free(full);
    return values;
}

double fixture_number(const SafetensorsFile *file, const char *name) {
    double *values = fixture_values(file, "", name), number = values[0];
    free(values);
    return number;
}

int64_t fixture_size(const SafetensorsFile *file, const char *name) {
    char *full = format_string("config.%s", name);
    const int64_t size = (int64_t)fixture_number(file, full);
    free(full);
    return size;
}

ModelConfig fixture_config(const SafetensorsFile *file) {
    const ModelConfig config = {.vocab_size = fixture_size(file, "vocab_size"),
                                .dim = fixture_size(file, "dim"),
                                .layers = fixture_size(file, "layers"),
                                .heads = fixture_size(file, "heads"),
                                .kv_heads = fixture_size(file, "kv_heads"),
                                .ffn_dim = fixture_size(file, "ffn_dim"),
                                .rope_theta = fixture_number(file, "config.rope_theta"),
                                .norm_eps = fixture_number(file, "config.norm_eps")};
    return config;
}

int32_t *fixture_tokens(const SafetensorsFile *file, const char *name, int64_t *sequences, int64_t *seq_len) {
    const Tensor *tensor = safetensors_find(file, name);
    double *values = fixture_values(file, "", name);
    int32_t *tokens = host_allocate((size_t)tensor->count, sizeof(int32_t), name);
    for (int64_t i = 0; i < tensor->count; i++) tokens[i] = (int32_t)values[i];
    *sequences = tensor->shape[0];
    *seq_len = tensor->shape[1];
    free(values);
    return tokens;
}

double *fixture_parameters(const SafetensorsFile *file, const ParameterTable *table, const char *prefix) {
    double *flat = host_allocate((size_t)table->elements, sizeof(double), prefix);
    for (int i = 0; i < table->count; i++) {
        double *values = fixture_values(file, prefix, table->list[i].name);
        memcpy(flat + table->list[i].offset, values, (size_t)table->list[i].count * sizeof(double));
        free(values);
    }
    return flat;
}
