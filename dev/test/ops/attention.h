// What the tests of attention share: shapes, and a plain reference.
#pragma once
#include "dev/test/ops/case.h"

// Variants: every array by itself, or queries, keys and values packed in one [batch, seq_len, heads +
// 2·kv_heads, head_dim] and the log-sum-exp part of one of a longer sequence, or scores around 90, whose exp
// overflows a float.
enum { APART, PACKED, APART_LARGE_SCORES };

// Strides of [batch, seq_len, heads, head_dim] without gaps.
AttentionStrides strides_of(int64_t seq_len, int64_t heads, int64_t head_dim);

// The shape of the case's sizes, as its only call.
void set_attention_shape(Case *c);

// Where a head's vector begins.
int64_t token_at(AttentionStrides strides, int64_t batch, int64_t token, int64_t head);

// One query of one head: scores, softmax, weighted values of the first `seen` keys.
void attend(double *out, double *logsumexp, const double *query, const double *keys, const double *values,
            const AttentionShape *shape, int64_t seen);
