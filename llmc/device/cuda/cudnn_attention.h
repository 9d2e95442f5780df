// Attention by cuDNN, behind an interface without cuDNN's headers, which take long to compile. Here the
// log-sum-exp is always float32 [batch, heads, query_len] without gaps; shape->logsumexp is ignored.
#pragma once
#include "device/ops.h"

#include <cuda_runtime_api.h>

// A cuDNN handle on one CUDA stream, and the execution plans built so far: one for each shape and direction.
typedef struct Attention Attention;

Attention *cudnn_attention_create(cudaStream_t stream);
void cudnn_attention_destroy(Attention *attention);

// Bytes of workspace for this shape and direction. The first call for a shape builds its execution plan,
// which takes up to a second. Ends the process with a message if cuDNN does not support the shape.
size_t cudnn_attention_workspace(Attention *attention, const AttentionShape *shape, bool backward);

// As forward and backward of AttentionOps in ops.h, with all tensors but logsumexp bfloat16.
void cudnn_attention_forward(Attention *attention, void *out, float *logsumexp, const void *query,
                             const void *key, const void *value, const AttentionShape *shape,
                             void *workspace);

void cudnn_attention_backward(Attention *attention, void *grad_query, void *grad_key, void *grad_value,
                              const void *grad_out, const void *query, const void *key, const void *value,
                              const void *out, const float *logsumexp, const AttentionShape *shape,
                              void *workspace);
