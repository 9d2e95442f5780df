#include "model/activations.h"

#include <stdlib.h>

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
} activation_table[ACTIVATION_KINDS] = {
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

const char *const recompute_names[] = {"auto", "none", "cheap", "ffn", "qkv", "block", NULL};

static int first_not_kept(ActivationKind kind, LayerKind layer) {
    return layer == LAYER_DENSE ? activation_table[kind].dense : activation_table[kind].lighthouse;
}

bool activation_kept(ActivationKind activation, LayerKind layer, RecomputeLevel level) {
    return (int)level < first_not_kept(activation, layer);
}

// Whether such a layer has the activation without keeping it.
static bool is_shared(ActivationKind kind, LayerKind layer, RecomputeLevel level) {
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

size_t activation_bytes(ActivationKind kind, const ModelConfig *config, const ActivationSettings *s,
                        StorageType storage) {
    const ElementType type = activation_table[kind].type;
    const size_t size = type == INT32         ? sizeof(int32_t)
                        : type == ACCUMULATOR ? storage_size(accumulator_type(storage))
                                              : storage_size(storage);
    return (size_t)elements(activation_table[kind].size, config, s->batch, s->seq_len, s->lighthouse) * size;
}

// --- buffers --------------------------------------------------------------------------------------------

// Whether the layer, as it is in some step, has the property.
static bool in_any_step(const ActivationSettings *s, int64_t layer, ActivationKind activation,
                        bool (*has)(ActivationKind, LayerKind, RecomputeLevel)) {
    for (int kind = LAYER_DENSE; kind <= LAYER_LIGHTHOUSE; kind++)
        if ((s->layer_kinds[layer] & 1u << kind) && has(activation, (LayerKind)kind, s->recompute))
            return true;
    return s->dense_steps && has(activation, LAYER_DENSE, s->dense_recompute);
}

static void plan_activation(Activations *a, ActivationKind kind, size_t bytes, const ActivationSettings *s,
                            MemoryPlan *memory) {
    const size_t stride = aligned(bytes); // the layers' follow one another in one buffer
    int64_t kept = 0;
    bool shared = false;
    for (int64_t layer = 0; layer < a->layers; layer++) {
        const bool is_kept = in_any_step(s, layer, kind, activation_kept);
        kept += is_kept;
        shared |= !is_kept && in_any_step(s, layer, kind, is_shared);
    }
    size_t next = memory_plan_add(memory, (size_t)kept * stride, "activations: %s, %ld layers",
                                  activation_table[kind].name, (long)kept);
    const size_t common = memory_plan_add(memory, shared ? stride : 0, "activations: %s, not kept",
                                          activation_table[kind].name);
    for (int64_t layer = 0; layer < a->layers; layer++) {
        const bool is_kept = in_any_step(s, layer, kind, activation_kept);
        a->of_layer[layer][kind] = is_kept ? next : common;
        next += is_kept ? stride : 0;
    }
}

Activations *activations_create(Device *device, const ModelConfig *config, const ActivationSettings *settings,
                                MemoryPlan *memory) {
    const StorageType storage = device->ops->storage;
    const size_t rows = (size_t)(settings->batch * settings->seq_len);
    const size_t residual = rows * (size_t)config->dim * storage_size(storage);
    Activations *a = host_allocate(1, sizeof(Activations), "the activations");
    a->layers = config->layers;
    a->memory = memory;
    a->of_layer = host_allocate((size_t)config->layers, sizeof(*a->of_layer), "activation offsets");
    for (int kind = 0; kind < ACTIVATION_KINDS; kind++)
        plan_activation(a, (ActivationKind)kind,
                        activation_bytes((ActivationKind)kind, config, settings, storage), settings, memory);
    a->last_residual = memory_plan_add(memory, residual, "activations: last layer's output");
    a->last_norm = memory_plan_add(memory, residual, "activations: final norm");
    a->last_rstd = memory_plan_add(memory, rows * storage_size(accumulator_type(storage)),
                                   "activations: final norm 1/rms");
    a->grad_residual = memory_plan_add(memory, residual, "gradient of the residual stream");
    a->grad_branch = memory_plan_add(memory, residual, "gradient of a branch");
    return a;
}

void activations_free(Activations *activations) {
    free(activations->of_layer);
    free(activations);
}

void *activation_get(const Activations *activations, ActivationKind kind, int64_t layer) {
    return memory_at(activations->memory, activations->of_layer[layer][kind]);
}
