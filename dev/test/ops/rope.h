// What the tests of rope share with those of operations that turn back.
#pragma once
#include "dev/test/ops/case.h"

// Tokens that a row of norms, or of log-sum-exps, has more where it is part of a longer sequence's.
enum { LONGER = 5 };

// Adds the tensor of angles: [rows, head_dim / 2] of cosine and sine.
void add_angles(Case *c);

// Turns the heads + kv_heads first heads of x[batch, rows, heads + 2·kv_heads, head_dim] in place.
void turn(double *x, const double *angles, const Sizes *s, bool inverse);
