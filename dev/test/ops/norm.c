// RMSNorm.
#include "dev/test/ops/case.h"

#include <math.h>

static void describe_rmsnorm_forward(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "out", WRITTEN, STORED, s->rows * s->columns);
    add_tensor(c, "rstd", WRITTEN, ACCUMULATED, s->rows);
    add_tensor(c, "x", INPUT, STORED, s->rows * s->columns);
    add_tensor(c, "weight", INPUT, STORED, s->columns);
}

static const double norm_epsilon = 1e-3; // large, so that a wrong use changes the results

RUN(rmsnorm_forward) {
    ops->rmsnorm.forward(at[0], at[1], at[2], at[3], c->sizes.rows, c->sizes.columns, norm_epsilon, stream);
}

static void formula_rmsnorm_forward(const Case *c, double **v) {
    const int64_t dim = c->sizes.columns;
    for (int64_t i = 0; i < c->sizes.rows; i++) {
        double squares = 0;
        for (int64_t j = 0; j < dim; j++) squares += v[2][i * dim + j] * v[2][i * dim + j];
        v[1][i] = 1 / sqrt(squares / (double)dim + norm_epsilon);
        for (int64_t j = 0; j < dim; j++) v[0][i * dim + j] = v[2][i * dim + j] * v[1][i] * v[3][j];
    }
}

// Variants of grad_residual: an array of its own, grad_x itself, or none.
enum { RESIDUAL_APART, RESIDUAL_IN_PLACE, RESIDUAL_NONE };

static void describe_rmsnorm_backward(Case *c) {
    const Sizes *s = &c->sizes;
    const int64_t count = s->rows * s->columns;
    add_tensor(c, "grad_x", s->variant == RESIDUAL_IN_PLACE ? UPDATED : WRITTEN, STORED, count);
    add_tensor(c, "grad_weight", UPDATED, ACCUMULATED, s->columns);
    add_tensor(c, "grad_out", INPUT, STORED, count);
    add_tensor(c, "x", INPUT, STORED, count);
    add_tensor(c, "weight", INPUT, STORED, s->columns);
    add_tensor(c, "rstd", INPUT, ACCUMULATED, s->rows);
    if (s->variant == RESIDUAL_APART) add_tensor(c, "grad_residual", INPUT, STORED, count);
}

RUN(rmsnorm_backward) {
    const void *residual = c->sizes.variant == RESIDUAL_APART      ? at[6]
                           : c->sizes.variant == RESIDUAL_IN_PLACE ? at[0]
                                                                   : NULL;
    ops->rmsnorm.backward(at[0], at[1], residual, at[2], at[3], at[4], at[5], c->sizes.rows, c->sizes.columns,
                          stream);
}

static const Sizes sizes[] = {
    {.rows = 1, .columns = 3, .variant = RESIDUAL_NONE},
    {.rows = 19, .columns = 37, .variant = RESIDUAL_APART},
    {.rows = 5, .columns = 130, .variant = RESIDUAL_IN_PLACE},
    {.rows = 140, .columns = 1030, .variant = RESIDUAL_APART},
};

static const Operation rows[] = {
    FORWARD(rmsnorm_forward, ONE_ROUNDING, ALL(sizes)),
    BACKWARD(rmsnorm_backward, rmsnorm_forward, ONE_ROUNDING, ALL(sizes)),
};

const OperationTable norm_operations = {rows, COUNT_OF(rows)};
