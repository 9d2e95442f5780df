// Scorers: what Lighthouse layers choose entries by. A scorer fills level 0 of the scores of a layer's queries
// and keys; the coarser levels and the choice are the same for all. Scores have no gradient.
#pragma once
#include "device/device.h"

typedef struct {
    bool keys_for_each_query_head; // else once for the query heads that share a key head
    // Whether level 0 are the norms of queries and keys, which the RoPE operation writes where it turns them.
    bool by_rope;
    // Where it does not: level 0 of scores A[batch, heads + key_score_heads, pyramid] from qkv S[batch, seq_len,
    // heads + 2*kv_heads, head_dim], whose queries and keys are as they will be pooled.
    void (*score)(Device *device, const LighthouseShape *shape, void *scores, const void *qkv);
} Scorer;

// The scorers and, as --scorer takes them and in the same order, their names, ending with NULL.
extern const Scorer scorers[];
extern const char *const scorer_names[];
