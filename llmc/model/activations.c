#include "model/activations.h"

#include <string.h>

typedef enum {
    DIM,
    ONE,
    QKV_DIM,
    QUERY_DIM,
    HEADS,
    FFN,
    TWICE_FFN,
    PYRAMID,
    SUB_QKV,
    SUB_QUERY,
    SUB_HEADS
} Size;
typedef enum { STORAGE_TYPE, ACCUMULATOR, INT32 } ElementType;

static const struct {
    const char *name;
    Size size; // elements
    ElementType type;
    int dense, lighthouse; // the first recompute level at which such a layer does not keep it
} activations[ACTIVATION_KINDS] = {
#define ALWAYS RECOMPUTE_LEVELS // kept at every level
#define NEVER  RECOMPUTE_NONE   // kept at none
#define ABSENT -1               // such a layer has none
    [ACT_RESIDUAL] = {"layer inputs", DIM, STORAGE_TYPE, ALWAYS, ALWAYS},
    [ACT_ATTN_NORM] = {"attention norm", DIM, STORAGE_TYPE, RECOMPUTE_CHEAP, RECOMPUTE_CHEAP},
    [ACT_ATTN_RSTD] = {"attention norm 1/rms", ONE, ACCUMULATOR, RECOMPUTE_CHEAP, RECOMPUTE_CHEAP},
    [ACT_QKV] = {"queries, keys, values", QKV_DIM, STORAGE_TYPE, RECOMPUTE_QKV, NEVER},
    [ACT_LOGSUMEXP] = {"attention log-sum-exp", HEADS, ACCUMULATOR, RECOMPUTE_BLOCK, NEVER},
    [ACT_POSITIONS] = {"selection", PYRAMID, INT32, ABSENT, ALWAYS},
    [ACT_GATHERED] = {"selected queries, keys, values", SUB_QKV, STORAGE_TYPE, ABSENT, RECOMPUTE_QKV},
    [ACT_SUB_OUT] = {"selected attention output", SUB_QUERY, STORAGE_TYPE, ABSENT, RECOMPUTE_BLOCK},
    [ACT_SUB_LOGSUMEXP] = {"selected log-sum-exp", SUB_HEADS, ACCUMULATOR, ABSENT, RECOMPUTE_BLOCK},
    [ACT_ATTENTION] = {"attention output", QUERY_DIM, STORAGE_TYPE, RECOMPUTE_BLOCK, RECOMPUTE_CHEAP},
    [ACT_FFN_RESIDUAL] = {"feed-forward inputs", DIM, STORAGE_TYPE, RECOMPUTE_QKV, RECOMPUTE_QKV},
    [ACT_FFN_NORM] = {"feed-forward norm", DIM, STORAGE_TYPE, RECOMPUTE_CHEAP, RECOMPUTE_CHEAP},
    [ACT_FFN_RSTD] = {"feed-forward norm 1/rms", ONE, ACCUMULATOR, RECOMPUTE_CHEAP, RECOMPUTE_CHEAP},
    [ACT_GATE_UP] = {"gate and up", TWICE_FFN, STORAGE_TYPE, RECOMPUTE_FFN, RECOMPUTE_FFN},
    [ACT_SWIGLU] = {"SwiGLU product", FFN, STORAGE_TYPE, RECOMPUTE_CHEAP, RECOMPUTE_CHEAP},
#undef ALWAYS
#undef NEVER
#undef ABSENT
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

static int first_not_kept(ActivationKind kind, LayerKind layer) {
    return layer == LAYER_DENSE ? activations[kind].dense : activations[kind].lighthouse;
}

bool activation_kept(ActivationKind kind, LayerKind layer, RecomputeLevel level) {
    return (int)level < first_not_kept(kind, layer);
}

bool activation_shared(ActivationKind kind, LayerKind layer, RecomputeLevel level) {
    return !activation_kept(kind, layer, level) && first_not_kept(kind, layer) >= RECOMPUTE_NONE;
}

static int64_t elements(Size size, const ModelConfig *config, int64_t batch, int64_t seq_len,
                        const LighthouseShape *lighthouse) {
    const int64_t rows = batch * seq_len, query_dim = config->heads * head_dim(config);
    const int64_t sub_rows = lighthouse ? batch * lighthouse->entries : 0;
    switch (size) {
        case ONE: return rows;
        case DIM: return rows * config->dim;
        case QKV_DIM: return rows * qkv_dim(config);
        case QUERY_DIM: return rows * query_dim;
        case HEADS: return rows * config->heads;
        case FFN: return rows * config->ffn_dim;
        case TWICE_FFN: return rows * 2 * config->ffn_dim;
        case PYRAMID: return lighthouse ? batch * config->heads * lighthouse->pyramid : 0;
        case SUB_QKV: return sub_rows * 3 * query_dim;
        case SUB_QUERY: return sub_rows * query_dim;
        case SUB_HEADS: return sub_rows * config->heads;
    }
    return 0;
}

size_t activation_bytes(ActivationKind kind, const ModelConfig *config, int64_t batch, int64_t seq_len,
                        const LighthouseShape *lighthouse, StorageType storage) {
    const size_t alignment = 256; // layers follow one another in one buffer
    const ElementType type = activations[kind].type;
    const size_t size = type == INT32         ? sizeof(int32_t)
                        : type == ACCUMULATOR ? storage_size(accumulator_type(storage))
                                              : storage_size(storage);
    const size_t bytes = (size_t)elements(activations[kind].size, config, batch, seq_len, lighthouse) * size;
    return (bytes + alignment - 1) / alignment * alignment;
}
