// The groups of llmc/device/ops.h, as this folder defines them.
#pragma once
#include "device/ops.h"

extern const EmbeddingOps cuda_embedding;
extern const RmsnormOps cuda_rmsnorm;
extern const LinearOps cuda_linear;
extern const RopeOps cuda_rope;
extern const AttentionOps cuda_attention;
extern const SelectionOps cuda_selection;
extern const GatherOps cuda_gather;
extern const ScatterOps cuda_scatter;
extern const SwigluOps cuda_swiglu;
extern const LossOps cuda_loss;
extern const ReduceOps cuda_reduce;
extern const ConvertOps cuda_convert;
extern const OptimizerOps cuda_optimizer;
