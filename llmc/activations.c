#include "activations.h"

#include <string.h>

typedef enum { DIM, ONE, QKV_DIM, QUERY_DIM, HEADS, FFN, TWICE_FFN } Width;

static const struct {
    const char *name;
    Width width; // elements per token
    bool accumulator;
    RecomputeLevel recomputed_from; // the first level that does not keep it; RECOMPUTE_LEVELS: always kept
} activations[ACTIVATION_KINDS] = {
    [ACT_RESIDUAL] = {"layer inputs", DIM, false, RECOMPUTE_LEVELS},
    [ACT_ATTN_NORM] = {"attention norm", DIM, false, RECOMPUTE_CHEAP},
    [ACT_ATTN_RSTD] = {"attention norm 1/rms", ONE, true, RECOMPUTE_CHEAP},
    [ACT_QKV] = {"queries, keys, values", QKV_DIM, false, RECOMPUTE_QKV},
    [ACT_ATTENTION] = {"attention output", QUERY_DIM, false, RECOMPUTE_BLOCK},
    [ACT_LOGSUMEXP] = {"attention log-sum-exp", HEADS, true, RECOMPUTE_BLOCK},
    [ACT_FFN_RESIDUAL] = {"feed-forward inputs", DIM, false, RECOMPUTE_QKV},
    [ACT_FFN_NORM] = {"feed-forward norm", DIM, false, RECOMPUTE_CHEAP},
    [ACT_FFN_RSTD] = {"feed-forward norm 1/rms", ONE, true, RECOMPUTE_CHEAP},
    [ACT_GATE_UP] = {"gate and up", TWICE_FFN, false, RECOMPUTE_FFN},
    [ACT_SWIGLU] = {"SwiGLU product", FFN, false, RECOMPUTE_CHEAP},
};

static const char *const level_names[RECOMPUTE_LEVELS] = {"none", "cheap", "ffn", "qkv", "block"};

const char *recompute_name(RecomputeLevel level) {
    return level_names[level];
}

RecomputeLevel recompute_level(const char *name) {
    int level = 0;
    while (level < RECOMPUTE_LEVELS && strcmp(name, level_names[level]) != 0) level++;
    return (RecomputeLevel)level;
}

const char *activation_name(ActivationKind kind) {
    return activations[kind].name;
}

bool activation_kept(ActivationKind kind, RecomputeLevel level) {
    return level < activations[kind].recomputed_from;
}

size_t activation_bytes(ActivationKind kind, const ModelConfig *config, int64_t rows, StorageType storage) {
    int64_t width = 0;
    switch (activations[kind].width) {
        case ONE: width = 1; break;
        case DIM: width = config->dim; break;
        case QKV_DIM: width = qkv_dim(config); break;
        case QUERY_DIM: width = config->heads * head_dim(config); break;
        case HEADS: width = config->heads; break;
        case FFN: width = config->ffn_dim; break;
        case TWICE_FFN: width = 2 * config->ffn_dim; break;
    }
    StorageType type = activations[kind].accumulator ? accumulator_type(storage) : storage;
    const size_t alignment = 256; // layers follow one another in one buffer
    return ((size_t)(rows * width) * storage_size(type) + alignment - 1) / alignment * alignment;
}
