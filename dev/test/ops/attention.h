// Shared by the tests of attention: shapes, and a simple reference implementation.
#pragma once
#include "dev/test/ops/case.h"

// Variants. APART: separate arrays. PACKED: queries, keys and values in one [batch, seq_len, heads +
// 2·kv_heads, head_dim], and a log-sum-exp that is part of a longer sequence's. APART_LARGE_SCORES: scores
// around 90, whose exp
// overflows a float.
enum { APART, PACKED, APART_LARGE_SCORES };

// The strides of an array [batch, seq_len, heads, head_dim] without gaps.
AttentionStrides strides_of(int64_t seq_len, int64_t heads, int64_t head_dim);

// Sets the case's attention shape from its sizes, for one call.
void set_attention_shape(Case *c);

// The index at which the vector of (batch, token, head) begins.
int64_t token_at(AttentionStrides strides, int64_t batch, int64_t token, int64_t head);

// Attention of one query of one head to the first `seen` keys: out[head_dim] and its log-sum-exp.
void attend(double *out, double *logsumexp, const double *query, const double *keys, const double *values,
            const AttentionShape *shape, int64_t seen);
