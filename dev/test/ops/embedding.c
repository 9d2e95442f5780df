// Embedding: rows of the weight by token, and its gradient.
#include "dev/test/ops/case.h"

static void describe_embedding_forward(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "out", WRITTEN, STORED, s->rows * s->columns);
    add_tensor(c, "weight", INPUT, STORED, s->inner * s->columns);
    add_tokens(c, "tokens", s->rows, s->inner);
}

RUN(embedding_forward) {
    ops->embedding.forward(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns, c->sizes.inner, stream);
}

static void formula_embedding_forward(const Case *c, double **v) {
    for (int64_t i = 0; i < c->sizes.rows; i++)
        for (int64_t j = 0; j < c->sizes.columns; j++)
            v[0][i * c->sizes.columns + j] = v[1][(int64_t)v[2][i] * c->sizes.columns + j];
}

static void describe_embedding_backward(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "grad_weight", UPDATED, ACCUMULATED, s->inner * s->columns);
    add_tensor(c, "grad_out", INPUT, STORED, s->rows * s->columns);
    add_tokens(c, "tokens", s->rows, s->inner);
}

RUN(embedding_backward) {
    ops->embedding.backward(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns, c->sizes.inner, stream);
}

static const Sizes sizes[] = {
    {.rows = 1, .columns = 5, .inner = 3},
    {.rows = 37, .columns = 33, .inner = 11},
    {.rows = 300, .columns = 130, .inner = 1029},
};

static const Operation rows[] = {
    FORWARD(embedding_forward, ONE_ROUNDING, ALL(sizes)),
    BACKWARD(embedding_backward, embedding_forward, ONE_ROUNDING, ALL(sizes)),
};

const OperationTable embedding_operations = {rows, COUNT_OF(rows)};
