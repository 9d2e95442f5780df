// Shared by attention.cu and single_query.cu: the address of a row, and attention of a single query.
#pragma once
#include "device/cuda/vector.cuh"

__device__ inline int64_t row_offset(const AttentionStrides &strides, int64_t batch, int64_t token,
                                     int head) {
    return batch * strides.batch + token * strides.token + head * strides.head;
}

// As forward and backward of AttentionOps, for shapes whose query_len is 1.
void single_query_forward(void *out, void *logsumexp, const void *query, const void *key, const void *value,
                          const AttentionShape *shape, Stream *stream);
void single_query_backward(void *grad_query, void *grad_key, void *grad_value, const void *grad_out,
                           const void *query, const void *key, const void *value, const void *out,
                           const void *logsumexp, const AttentionShape *shape, Stream *stream);
