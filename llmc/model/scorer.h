// Scorers: what Lighthouse layers choose entries by. A scorer fills level 0 of the scores of a layer's queries
// and keys; the coarser levels and the choice are the same for all. Scores have no gradient.
#pragma once
#include "device/device.h"

typedef struct {
    // Whether the RoPE operation writes level 0, as the norms of the queries and keys that it turns.
    bool by_rope;
    // Else: level 0 of scores A[batch, heads + kv_heads, pyramid] from qkv S[batch, seq_len,
    // heads + 2*kv_heads, head_dim], turned by their positions.
    void (*score)(Device *device, const LighthouseShape *shape, void *scores, const void *qkv);
} Scorer;

// The scorers and, as --scorer takes them and in the same order, their names, ending with NULL.
extern const Scorer scorers[];
extern const char *const scorer_names[];
