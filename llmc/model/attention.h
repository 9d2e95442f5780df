// Dense causal attention over packed projections: of sequences that this rank holds whole, or whose pieces
// the ranks of a context-parallel group hold (llmc/model/ring_attention.h).
//
// The device's attention operation takes a whole sequence at once when it can. A deterministic backward on a
// GPU asks for a workspace that grows with the square of the length, so it is cut, first by heads and then
// into query/key pieces whose gradients are added in a fixed order in the accumulator type.
#pragma once
#include "model/attention_blocks.h"

// How to run attention of this size with calls that ask for at most `workspace_bound` bytes (but uncut, if
// the backward need not be deterministic). A bound nothing fits is a failure that names it. A context of one
// rank is as none.
AttentionPlan attention_plan(Device *device, int64_t batch, int64_t seq_len, int heads, int kv_heads,
                             int head_dim, bool deterministic, size_t workspace_bound, Collectives *context);

// The plan with the cut already chosen in kv_heads_per_call (a divisor of kv_heads) and piece_len: sets the
// sizes.
void attention_plan_sizes(Device *device, AttentionPlan *plan);

// out S[batch, seq_len, heads, head_dim] and logsumexp A[batch, heads, seq_len] from
// qkv S[batch, seq_len, heads + 2*kv_heads, head_dim]; workspace as planned.
void attention_forward(Device *device, const AttentionPlan *plan, void *out, void *logsumexp, const void *qkv,
                       void *workspace);

// grad_qkv S, laid out as qkv, from grad_out S, laid out as out.
void attention_backward(Device *device, const AttentionPlan *plan, void *grad_qkv, const void *grad_out,
                        const void *qkv, const void *out, const void *logsumexp, void *workspace);
