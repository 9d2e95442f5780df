// Cross-entropy, and its gradient.
#include "dev/test/ops/case.h"

#include <math.h>

// Variants: the losses only, or also the gradient, multiplied by gradient_scale.
enum { LOSS_ALONE, LOSS_AND_GRADIENT };
static const double gradient_scale = -0.37;

static void describe_cross_entropy(Case *c) {
    const Sizes *s = &c->sizes;
    add_tensor(c, "losses", WRITTEN, ACCUMULATED, s->rows);
    double *logits =
        add_tensor(c, "logits", s->variant == LOSS_ALONE ? INPUT : UPDATED, STORED, s->rows * s->columns);
    for (int64_t i = 0; i < s->rows * s->columns; i++)
        logits[i] = 2 * logits[i] + 100; // exp(100) overflows a float
    add_tokens(c, "targets", s->rows, s->columns);
}

RUN(cross_entropy) {
    ops->loss.cross_entropy(at[0], at[1], at[2], c->sizes.rows, c->sizes.columns,
                            c->sizes.variant == LOSS_ALONE ? 0 : gradient_scale, stream);
}

static void formula_cross_entropy(const Case *c, double **v) {
    const int64_t vocab = c->sizes.columns;
    for (int64_t i = 0; i < c->sizes.rows; i++) {
        double *logits = v[1] + i * vocab, total = 0;
        const int64_t target = (int64_t)v[2][i];
        for (int64_t j = 0; j < vocab; j++) total += exp(logits[j]);
        v[0][i] = log(total) - logits[target];
        if (c->sizes.variant == LOSS_ALONE) continue;
        for (int64_t j = 0; j < vocab; j++)
            logits[j] = gradient_scale * (exp(logits[j]) / total - (j == target ? 1 : 0));
    }
}

static const Sizes sizes[] = {
    {.rows = 1, .columns = 37, .variant = LOSS_ALONE},
    {.rows = 1, .columns = 37, .variant = LOSS_AND_GRADIENT},
    {.rows = 37, .columns = 259, .variant = LOSS_AND_GRADIENT},
    {.rows = 21, .columns = 4101, .variant = LOSS_ALONE},
    {.rows = 45, .columns = 4101, .variant = LOSS_AND_GRADIENT},
};

static const Operation rows[] = {
    FORWARD(cross_entropy, ONE_ROUNDING, ALL(sizes)),
};

const OperationTable loss_operations = {rows, COUNT_OF(rows)};
