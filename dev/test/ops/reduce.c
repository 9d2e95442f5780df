// Sums.
#include "dev/test/ops/case.h"

static void describe_sum(Case *c) {
    add_tensor(c, "out", WRITTEN, DOUBLE, 1);
    double *x = add_tensor(c, "x", INPUT, ACCUMULATED, c->sizes.columns);
    for (int64_t i = 0; i < c->sizes.columns; i++) x[i] += 1; // so that the sum is far from zero
}

RUN(sum) {
    ops->reduce.sum(at[0], at[1], c->sizes.columns, stream);
}

static void formula_sum(const Case *c, double **v) {
    v[0][0] = 0;
    for (int64_t i = 0; i < c->sizes.columns; i++) v[0][0] += v[1][i];
}

static void describe_sum_of_squares(Case *c) {
    describe_sum(c);
}

RUN(sum_of_squares) {
    ops->reduce.sum_of_squares(at[0], at[1], c->sizes.columns, stream);
}

static void formula_sum_of_squares(const Case *c, double **v) {
    v[0][0] = 0;
    for (int64_t i = 0; i < c->sizes.columns; i++) v[0][0] += v[1][i] * v[1][i];
}

static const Sizes sizes[] = {
    {.columns = 1},
    {.columns = 299},
    {.columns = 100003},
};

static const Operation rows[] = {
    FORWARD(sum, ONE_ROUNDING, ALL(sizes)),
    FORWARD(sum_of_squares, ONE_ROUNDING, ALL(sizes)),
};

const OperationTable reduce_operations = {rows, COUNT_OF(rows)};
