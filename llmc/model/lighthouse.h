// Lighthouse attention (arXiv 2605.06554): a short causal subsequence of a pyramid of pooled queries, keys
// and values is picked by a top-K cascade, dense attention runs on it, and its outputs are scattered back.
#pragma once
#include "model/attention.h"
#include "model/geometry.h"

// One layer's attention: what is kept from forward to backward, all device memory.
typedef struct {
    int32_t *positions; // [batch, heads, pyramid]
    void *gathered;     // S[batch, entries, 3*heads, head_dim]
    void *sub_out;      // S[batch, entries, heads, head_dim]
    void *logsumexp;    // A[batch, heads, entries]
    // A[seq_len, head_dim/2, 2]: gathered queries and keys turn by the angles of their entry's last token. NULL:
    // they do not, as the tokens turned before they were pooled.
    const void *entry_angles;
} LighthouseLayer;

// What crosses from piece to piece of sequences that a context-parallel group holds: device memory that
// layers share. All NULL without one.
typedef struct {
    Collectives *context;
    void *sent, *received;           // S[pieces, batch, levels-1, heads, head_dim], as ops.h has a halo
    void *grad_sent, *grad_received; // A, likewise
} LighthouseHalo;

// The inner attention's plan for this shape.
AttentionPlan lighthouse_attention_plan(Device *device, const LighthouseShape *shape, bool deterministic,
                                        size_t workspace_bound, Collectives *context);

// layer->positions from scores A[batch, heads + key_score_heads, pyramid], whose level 0 a scorer wrote;
// the coarser levels are filled here.
void lighthouse_select(Device *device, const LighthouseShape *shape, const LighthouseLayer *layer,
                       void *scores);

// layer->gathered from qkv S[batch, seq_len, heads + 2*kv_heads, head_dim], the positions and entry_angles.
void lighthouse_gather(Device *device, const LighthouseShape *shape, const LighthouseLayer *layer,
                       const void *qkv);

// layer->sub_out and logsumexp from gathered; workspace as the inner plan says.
void lighthouse_attend(Device *device, const AttentionPlan *inner, const LighthouseLayer *layer,
                       void *workspace);

// out S[batch, seq_len, heads, head_dim] from layer->sub_out.
void lighthouse_scatter(Device *device, const LighthouseShape *shape, const LighthouseLayer *layer,
                        const LighthouseHalo *halo, void *out);

// Elements of storage type that lighthouse_backward needs as scratch.
int64_t lighthouse_backward_scratch(const LighthouseShape *shape);

// grad_qkv S, laid out as qkv and turned back by `angles` (as rope's inverse; NULL: not, since the tokens did
// not turn), from grad_out S, laid out as out. The selection has no gradient.
void lighthouse_backward(Device *device, const LighthouseShape *shape, const AttentionPlan *inner,
                         const LighthouseLayer *layer, const LighthouseHalo *halo, void *grad_qkv,
                         const void *grad_out, const void *angles, void *scratch, void *workspace);
