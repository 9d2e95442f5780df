// Shared by the tests of rope and of operations whose backward turns queries and keys back.
#pragma once
#include "dev/test/ops/case.h"

// Where a row of norms, or of log-sum-exps, is part of a longer sequence's row, that has this many more
// tokens.
enum { LONGER = 5 };

// Adds the tensor of angles A[rows, head_dim / 2, 2]: cosine and sine of each.
void add_angles(Case *c);

// Turns the first heads + kv_heads heads of x[batch, rows, heads + 2·kv_heads, head_dim] in place.
void turn(double *x, const double *angles, const Sizes *s, bool inverse);
