// SwiGLU.
#include "dev/test/ops/case.h"

#include <math.h>

static void describe_swiglu_forward(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "out", WRITTEN, STORED, s->rows * s->columns);
    add_tensor(c, "gate_up", INPUT, STORED, s->rows * 2 * s->columns);
}

RUN(swiglu_forward) {
    ops->swiglu.forward(at[0], at[1], c->sizes.rows, c->sizes.columns, stream);
}

static void formula_swiglu_forward(const Case *c, double **v) {
    const int64_t dim = c->sizes.columns;
    for (int64_t i = 0; i < c->sizes.rows * dim; i++) {
        const double gate = v[1][i / dim * 2 * dim + i % dim], up = v[1][i / dim * 2 * dim + dim + i % dim];
        v[0][i] = gate / (1 + exp(-gate)) * up;
    }
}

static void describe_swiglu_backward(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "grad_gate_up", WRITTEN, STORED, s->rows * 2 * s->columns);
    add_tensor(c, "grad_out", INPUT, STORED, s->rows * s->columns);
    add_tensor(c, "gate_up", INPUT, STORED, s->rows * 2 * s->columns);
}

RUN(swiglu_backward) {
    ops->swiglu.backward(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns, stream);
}

static const Sizes sizes[] = {
    {.rows = 1, .columns = 1},
    {.rows = 37, .columns = 21},
    {.rows = 300, .columns = 1030},
};

static const Operation rows[] = {
    FORWARD(swiglu_forward, ONE_ROUNDING, ALL(sizes)),
    BACKWARD(swiglu_backward, swiglu_forward, ONE_ROUNDING, ALL(sizes)),
};

const OperationTable swiglu_operations = {rows, COUNT_OF(rows)};
