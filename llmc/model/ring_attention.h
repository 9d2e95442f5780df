// Attention of sequences whose pieces lie on the ranks of a context-parallel group
// (llmc/parallel/sequence_parts.h). Keys and values go round the ring of ranks; each adds what its own
// queries see of them, the partial softmaxes merged by their log-sum-exp in the accumulator type. In the
// backward their gradients go round with them.
//
// Of the pieces of a rank before this one in the ring, both of this rank's pieces see the early one and none
// sees the late one; of a rank after it, the late piece sees both and the early one none. So every turn but
// the first is one block without a mask, half of it: all ranks have the same work. While a turn is computed,
// the next one's keys and values are on their way.
#pragma once
#include "model/attention_blocks.h"

void ring_forward(Device *device, const AttentionPlan *plan, void *out, void *logsumexp, const void *qkv,
                  void *workspace);

void ring_backward(Device *device, const AttentionPlan *plan, void *grad_qkv, const void *grad_out,
                   const void *qkv, const void *out, const void *logsumexp, void *workspace);

// The most workspace that one of their calls of the device's operation asks for.
size_t ring_forward_call_bytes(Device *device, const AttentionPlan *plan);
size_t ring_backward_call_bytes(Device *device, const AttentionPlan *plan);

// Bytes of workspace for each, with calls as planned in forward_call_bytes and call_bytes.
size_t ring_forward_bytes(Device *device, const AttentionPlan *plan);
size_t ring_backward_bytes(Device *device, const AttentionPlan *plan);
