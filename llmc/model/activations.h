// The activation table: one row per activation of a layer, with what it costs to keep and when it is
// recomputed.
#pragma once
#include "model/config.h"
#include "device/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { LAYER_DENSE, LAYER_LIGHTHOUSE } LayerKind;

typedef enum {
    ACT_RESIDUAL,      // the layer's input
    ACT_ATTN_NORM,     // normalized input of attention
    ACT_ATTN_RSTD,     // its 1/rms
    ACT_QKV,           // queries, keys, values; after RoPE
    ACT_LOGSUMEXP,     // of the attention scores, in a dense layer
    ACT_POSITIONS,     // in a Lighthouse layer, as llmc/model/lighthouse.h has them: what was selected,
    ACT_GATHERED,      // the queries, keys and values of the subsequence,
    ACT_SUB_OUT,       // its attention output,
    ACT_SUB_LOGSUMEXP, // and the log-sum-exp of its scores
    ACT_ATTENTION,     // attention's output, before its projection
    ACT_FFN_RESIDUAL,  // the residual stream between attention and feed-forward
    ACT_FFN_NORM,      // normalized input of the feed-forward
    ACT_FFN_RSTD,      // its 1/rms
    ACT_GATE_UP,       // gate and up projections
    ACT_SWIGLU,        // their product, input of the down projection
    ACTIVATION_KINDS
} ActivationKind;

// What the backward makes again instead of keeping, each level more than the one before.
typedef enum {
    RECOMPUTE_NONE,
    RECOMPUTE_CHEAP, // what takes one pass over memory: normalized inputs, the SwiGLU product, the scatter
    RECOMPUTE_FFN,   // and the gate and up projections
    RECOMPUTE_QKV,   // and all else but what attention gave: no attention is run twice
    RECOMPUTE_BLOCK, // everything but the layer's input
    RECOMPUTE_LEVELS
} RecomputeLevel;

// "none", "cheap", "ffn", "qkv", "block".
const char *recompute_name(RecomputeLevel level);
// The level of that name; RECOMPUTE_LEVELS if there is none ("auto").
RecomputeLevel recompute_level(const char *name);

const char *activation_name(ActivationKind kind);

// Whether a layer of that kind keeps the activation from its forward to its backward.
bool activation_kept(ActivationKind kind, LayerKind layer, RecomputeLevel level);

// Whether it has the activation but does not keep it: it then uses a buffer that such layers share.
bool activation_shared(ActivationKind kind, LayerKind layer, RecomputeLevel level);

// Bytes of one layer's activation for `batch` sequences of seq_len, rounded up to keep the next layer's
// aligned. `lighthouse` may be NULL if there are no such layers: what only they have is then of 0 bytes.
size_t activation_bytes(ActivationKind kind, const ModelConfig *config, int64_t batch, int64_t seq_len,
                        const LighthouseShape *lighthouse, StorageType storage);

#ifdef __cplusplus
}
#endif
