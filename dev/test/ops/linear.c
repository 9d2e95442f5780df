// Matrix products with a weight, and their gradients.
#include "dev/test/ops/case.h"

// Variants of the addend: none, an array of its own, or `out` itself.
enum { ADDEND_NONE, ADDEND_APART, ADDEND_IN_PLACE };

static void describe_linear_forward(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "out", s->variant == ADDEND_IN_PLACE ? UPDATED : WRITTEN, STORED, s->rows * s->columns);
    add_tensor(c, "a", INPUT, STORED, s->rows * s->inner);
    add_tensor(c, "weight", INPUT, STORED, s->columns * s->inner);
    if (s->variant == ADDEND_APART) add_tensor(c, "addend", INPUT, STORED, s->rows * s->columns);
}

RUN(linear_forward) {
    const Sizes *s = &c->sizes;
    const void *addend = s->variant == ADDEND_APART ? at[3] : s->variant == ADDEND_IN_PLACE ? at[0] : NULL;
    ops->linear.forward(at[0], at[1], at[2], addend, s->rows, s->columns, s->inner, stream);
}

static void formula_linear_forward(const Case *c, double **v) {
    const Sizes *s = &c->sizes;
    for (int64_t i = 0; i < s->rows; i++)
        for (int64_t j = 0; j < s->columns; j++) {
            double *out = &v[0][i * s->columns + j];
            double sum = s->variant == ADDEND_APART      ? v[3][i * s->columns + j]
                         : s->variant == ADDEND_IN_PLACE ? *out
                                                         : 0;
            for (int64_t k = 0; k < s->inner; k++) sum += v[1][i * s->inner + k] * v[2][j * s->inner + k];
            *out = sum;
        }
}

static void describe_linear_backward_input(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "grad_a", WRITTEN, STORED, s->rows * s->inner);
    add_tensor(c, "grad_out", INPUT, STORED, s->rows * s->columns);
    add_tensor(c, "weight", INPUT, STORED, s->columns * s->inner);
}

RUN(linear_backward_input) {
    ops->linear.backward_input(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns, c->sizes.inner, stream);
}

static void describe_linear_backward_weight(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "grad_weight", UPDATED, ACCUMULATED, s->columns * s->inner);
    add_tensor(c, "grad_out", INPUT, STORED, s->rows * s->columns);
    add_tensor(c, "a", INPUT, STORED, s->rows * s->inner);
}

RUN(linear_backward_weight) {
    ops->linear.backward_weight(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns, c->sizes.inner, stream);
}

static const Sizes forward_sizes[] = {
    {.rows = 1, .columns = 3, .inner = 5, .variant = ADDEND_NONE},
    {.rows = 7, .columns = 1, .inner = 13, .variant = ADDEND_APART},
    {.rows = 33, .columns = 70, .inner = 21, .variant = ADDEND_IN_PLACE},
    {.rows = 300, .columns = 257, .inner = 130, .variant = ADDEND_APART},
    {.rows = 131, .columns = 61, .inner = 1030, .variant = ADDEND_IN_PLACE},
    {.rows = 1030, .columns = 130, .inner = 45, .variant = ADDEND_NONE},
    {.rows = 67, .columns = 4101, .inner = 33, .variant = ADDEND_APART},
};

static const Sizes backward_sizes[] = {
    {.rows = 1, .columns = 3, .inner = 5},       {.rows = 7, .columns = 1, .inner = 13},
    {.rows = 33, .columns = 70, .inner = 21},    {.rows = 300, .columns = 257, .inner = 130},
    {.rows = 131, .columns = 61, .inner = 1030}, {.rows = 1030, .columns = 130, .inner = 45},
    {.rows = 67, .columns = 4101, .inner = 33},
};

static const Operation rows[] = {
    FORWARD(linear_forward, ONE_ROUNDING, ALL(forward_sizes)),
    BACKWARD(linear_backward_input, linear_forward, ONE_ROUNDING, ALL(backward_sizes)),
    BACKWARD(linear_backward_weight, linear_forward, ONE_ROUNDING, ALL(backward_sizes)),
};

const OperationTable linear_operations = {rows, COUNT_OF(rows)};
