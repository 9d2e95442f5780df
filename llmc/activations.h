// The activation table: one row per activation of a layer, with what it costs to keep and when it is
// recomputed.
#pragma once
#include "config.h"
#include "storage.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    ACT_RESIDUAL,     // the layer's input
    ACT_ATTN_NORM,    // normalized input of attention
    ACT_ATTN_RSTD,    // its 1/rms
    ACT_QKV,          // queries, keys, values; after RoPE
    ACT_ATTENTION,    // attention's output, before its projection
    ACT_LOGSUMEXP,    // of the attention scores
    ACT_FFN_RESIDUAL, // the residual stream between attention and feed-forward
    ACT_FFN_NORM,     // normalized input of the feed-forward
    ACT_FFN_RSTD,     // its 1/rms
    ACT_GATE_UP,      // gate and up projections
    ACT_SWIGLU,       // their product, input of the down projection
    ACTIVATION_KINDS
} ActivationKind;

// What the backward makes again instead of keeping, each level more than the one before.
typedef enum {
    RECOMPUTE_NONE,
    RECOMPUTE_CHEAP, // normalized inputs and the SwiGLU product: one pass over memory each
    RECOMPUTE_FFN,   // and the gate and up projections
    RECOMPUTE_QKV,   // and all else but attention's output: no attention is run twice
    RECOMPUTE_BLOCK, // everything but the layer's input
    RECOMPUTE_LEVELS
} RecomputeLevel;

// "none", "cheap", "ffn", "qkv", "block".
const char *recompute_name(RecomputeLevel level);
// The level of that name; RECOMPUTE_LEVELS if there is none ("auto").
RecomputeLevel recompute_level(const char *name);

const char *activation_name(ActivationKind kind);
bool activation_kept(ActivationKind kind, RecomputeLevel level);

// Bytes of one layer's activation for `rows` tokens, rounded up to keep the next layer's aligned.
size_t activation_bytes(ActivationKind kind, const ModelConfig *config, int64_t rows, StorageType storage);

#ifdef __cplusplus
}
#endif
