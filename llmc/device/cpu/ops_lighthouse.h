// The operations of ops_lighthouse.c, for the table in ops.c; llmc/device/ops.h says what they do.
#pragma once
#include "device/cpu/storage_types.h"

bool CPU_NAME(lighthouse_supported)(const LighthouseShape *shape, Reason *reason, const Stream *stream);
void CPU_NAME(lighthouse_pool_scores)(void *scores, const LighthouseShape *shape, Stream *stream);
void CPU_NAME(lighthouse_select)(int32_t *positions, const void *scores, const LighthouseShape *shape,
                                 Stream *stream);
void CPU_NAME(lighthouse_gather)(void *gathered, const void *qkv, const int32_t *positions,
                                 const LighthouseShape *shape, Stream *stream);
void CPU_NAME(lighthouse_gather_backward)(void *grad_qkv, const void *grad_gathered, const int32_t *positions,
                                          const void *angles, const LighthouseShape *shape, Stream *stream);
void CPU_NAME(lighthouse_scatter)(void *out, const void *sub_out, const void *halo, const int32_t *positions,
                                  const LighthouseShape *shape, Stream *stream);
void CPU_NAME(lighthouse_scatter_backward)(void *grad_sub_out, const void *grad_out, const void *grad_halo,
                                           const int32_t *positions, const LighthouseShape *shape,
                                           Stream *stream);
void CPU_NAME(lighthouse_halo)(void *halo, const void *sub_out, const int32_t *positions,
                               const LighthouseShape *shape, Stream *stream);
void CPU_NAME(lighthouse_halo_backward)(void *grad_halo, const void *grad_out, const LighthouseShape *shape,
                                        Stream *stream);
