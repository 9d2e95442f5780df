// How many floating-point operations training does, by count: what MFU is measured against.
#pragma once
#include "config.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    double linear;    // matrix products with weights
    double attention; // the two products of scores and values
} FlopsPerToken;

// Forward and backward of one token in a sequence of seq_len under dense causal attention: two operations for
// a multiplication and addition, the backward twice the forward (arXiv 2204.02311, appendix B), half of the
// score matrix. What recomputation adds is not counted.
FlopsPerToken flops_per_token(const ModelConfig *config, int64_t seq_len);

#ifdef __cplusplus
}
#endif
