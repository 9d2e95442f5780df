// The operations of ops_linear.c and ops_attention.c, for the table in ops.c; llmc/device/ops.h says what
// they do.
#pragma once
#include "device/cpu/storage_types.h"

void CPU_NAME(linear_forward)(void *out, const void *a, const void *weight, const void *addend, int64_t rows,
                              int64_t outputs, int64_t inputs, Stream *stream);
void CPU_NAME(linear_backward_input)(void *grad_a, const void *grad_out, const void *weight, int64_t rows,
                                     int64_t outputs, int64_t inputs, Stream *stream);
void CPU_NAME(linear_backward_weight)(void *grad_weight, const void *grad_out, const void *a, int64_t rows,
                                      int64_t outputs, int64_t inputs, Stream *stream);

size_t CPU_NAME(attention_workspace)(const AttentionShape *shape, bool backward, Stream *stream);
void CPU_NAME(attention_forward)(void *out, void *logsumexp, const void *query, const void *key,
                                 const void *value, const AttentionShape *shape, void *workspace,
                                 Stream *stream);
void CPU_NAME(attention_backward)(void *grad_query, void *grad_key, void *grad_value, const void *grad_out,
                                  const void *query, const void *key, const void *value, const void *out,
                                  const void *logsumexp, const AttentionShape *shape, void *workspace,
                                  Stream *stream);
void CPU_NAME(attention_merge)(void *sum, void *logsumexp, const void *part, const void *part_logsumexp,
                               const AttentionShape *shape, bool first, Stream *stream);
