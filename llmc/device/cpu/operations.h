// The groups of llmc/device/ops.h as this folder defines them, for the storage type being compiled.
#pragma once
#include "device/cpu/storage_types.h"

extern const EmbeddingOps CPU_NAME(embedding);
extern const RmsnormOps CPU_NAME(rmsnorm);
extern const LinearOps CPU_NAME(linear);
extern const RopeOps CPU_NAME(rope);
extern const AttentionOps CPU_NAME(attention);
extern const SelectionOps CPU_NAME(selection);
extern const GatherOps CPU_NAME(gather);
extern const ScatterOps CPU_NAME(scatter);
extern const SwigluOps CPU_NAME(swiglu);
extern const LossOps CPU_NAME(loss);
extern const ReduceOps CPU_NAME(reduce);
extern const ConvertOps CPU_NAME(convert);
extern const OptimizerOps CPU_NAME(optimizer);
