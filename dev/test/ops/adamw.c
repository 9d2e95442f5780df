// The optimizer's update.
#include "dev/test/ops/case.h"

#include <math.h>

static const AdamwStep adamw_step = {.step = 3,
                                     .learning_rate = 0.1,
                                     .beta1 = 0.9,
                                     .beta2 = 0.95,
                                     .epsilon = 1e-2,
                                     .weight_decay = 0.3,
                                     .gradient_scale = 0.7};

static void describe_adamw(Case *c) {
    const int64_t count = c->sizes.columns;
    add_tensor(c, "weights", WRITTEN, STORED, count);
    add_tensor(c, "master", UPDATED, ACCUMULATED, count);
    add_tensor(c, "m", UPDATED, ACCUMULATED, count);
    double *v = add_tensor(c, "v", UPDATED, ACCUMULATED, count);
    for (int64_t i = 0; i < count; i++) v[i] *= v[i];
    add_tensor(c, "grad", INPUT, ACCUMULATED, count);
}

RUN(adamw) {
    ops->optimizer.adamw(at[0], at[1], at[2], at[3], at[4], c->sizes.columns, &adamw_step, stream);
}

static void formula_adamw(const Case *c, double **v) {
    const AdamwStep *u = &adamw_step;
    for (int64_t i = 0; i < c->sizes.columns; i++) {
        const double g = u->gradient_scale * v[4][i];
        v[2][i] = u->beta1 * v[2][i] + (1 - u->beta1) * g;
        v[3][i] = u->beta2 * v[3][i] + (1 - u->beta2) * g * g;
        const double m_hat = v[2][i] / (1 - pow(u->beta1, (double)u->step));
        const double v_hat = v[3][i] / (1 - pow(u->beta2, (double)u->step));
        v[1][i] -= u->learning_rate * (m_hat / (sqrt(v_hat) + u->epsilon) + u->weight_decay * v[1][i]);
        v[0][i] = v[1][i];
    }
}

static const Sizes sizes[] = {
    {.columns = 1},
    {.columns = 299},
    {.columns = 100003},
};

static const Operation rows[] = {
    FORWARD(adamw, ONE_ROUNDING, ALL(sizes)),
};

const OperationTable adamw_operations = {rows, COUNT_OF(rows)};
