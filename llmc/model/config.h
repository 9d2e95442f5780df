// The shape of a decoder, and the named shapes one can start from.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int64_t vocab_size;
    int64_t dim; // width of the residual stream
    int64_t layers;
    int64_t heads;    // query heads; head_dim = dim / heads
    int64_t kv_heads; // key/value heads; divides heads
    int64_t ffn_dim;
    double rope_theta;
    double norm_eps;
} ModelConfig;

static inline int64_t head_dim(const ModelConfig *config) {
    return config->dim / config->heads;
}

// Columns of the packed projection [queries, keys, values].
static inline int64_t qkv_dim(const ModelConfig *config) {
    return (config->heads + 2 * config->kv_heads) * head_dim(config);
}

// The preset of that name, or NULL.
const ModelConfig *model_preset(const char *name);

// Their names, ending with NULL.
extern const char *const model_preset_names[];

// Refuses a shape that cannot be built, naming the option and the rule it breaks. `alignment` is the number
// of elements every row must be a multiple of (1 on the CPU, 8 on CUDA: 16-byte accesses).
void model_config_check(const ModelConfig *config, int64_t alignment);

#ifdef __cplusplus
}
#endif
