// The operations of ops_lighthouse.c, for the table in ops.c; llmc/ops.h says what they do.
#pragma once
#include "storage_types.h"

void CPU_NAME(lighthouse_pool_scores)(void *scores, const LighthouseShape *shape, Stream *stream);
void CPU_NAME(lighthouse_select)(int32_t *positions, const void *scores, const LighthouseShape *shape,
                                 Stream *stream);
void CPU_NAME(lighthouse_gather)(void *gathered, const void *qkv, const int32_t *positions,
                                 const LighthouseShape *shape, Stream *stream);
void CPU_NAME(lighthouse_gather_backward)(void *grad_qkv, const void *grad_gathered, const int32_t *positions,
                                          const void *angles, const LighthouseShape *shape, Stream *stream);
void CPU_NAME(lighthouse_scatter)(void *out, const void *sub_out, const int32_t *positions,
                                  const LighthouseShape *shape, Stream *stream);
void CPU_NAME(lighthouse_scatter_backward)(void *grad_sub_out, const void *grad_out, const int32_t *positions,
                                           const LighthouseShape *shape, Stream *stream);
