// How many floating-point operations training does, by count: what MFU is measured against.
#pragma once
#include "model/config.h"

typedef struct {
    double linear;    // matrix products with weights
    double attention; // the two products of scores and values
} FlopsPerToken;

// Forward and backward of one token, on average over a sequence: two operations for a multiplication and
// addition, the backward twice the forward (arXiv 2204.02311, appendix B), half of the score matrix. What
// recomputation adds is not counted. Of the layers, `lighthouse_layers` (which may be a mean over steps) attend
// over a subsequence of `entries`, the others over seq_len, or within spans of so many tokens.
FlopsPerToken flops_per_token(const ModelConfig *config, int64_t seq_len, int64_t span,
                              double lighthouse_layers, int64_t entries);
