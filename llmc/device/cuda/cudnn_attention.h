// Attention by cuDNN, behind an interface without cuDNN's headers, which take long to compile.
// Here the log-sum-exp is float32 [batch, heads, query_len] without gaps, whatever the shape says of it; see
// attention.cu.
#pragma once
#include "device/ops.h"

#include <cuda_runtime_api.h>

// A cuDNN handle on one CUDA stream, and the execution plans made so far, one for each shape and direction.
typedef struct Attention Attention;

Attention *cudnn_attention_create(cudaStream_t stream);
void cudnn_attention_destroy(Attention *attention);

// Bytes of workspace for this shape and direction. Makes the plan, which takes a good part of a second.
// Fails with a message if cuDNN cannot do it.
size_t cudnn_attention_workspace(Attention *attention, const AttentionShape *shape, bool backward);

// As attention_forward and attention_backward in ops.h, all tensors bfloat16.
void cudnn_attention_forward(Attention *attention, void *out, float *logsumexp, const void *query,
                             const void *key, const void *value, const AttentionShape *shape,
                             void *workspace);

void cudnn_attention_backward(Attention *attention, void *grad_query, void *grad_key, void *grad_value,
                              const void *grad_out, const void *query, const void *key, const void *value,
                              const void *out, const float *logsumexp, const AttentionShape *shape,
                              void *workspace);
