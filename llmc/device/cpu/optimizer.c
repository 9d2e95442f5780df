// One AdamW update (arXiv 1711.05101), as torch.optim.AdamW computes it.
#include "device/cpu/operations.h"

#include <tgmath.h>

static void adamw(void *weights, void *master, void *m, void *v, const void *grad, int64_t count,
                  const AdamwStep *update, Stream *stream) {
    storage_t *w = weights;
    accumulator_t *p = master, *first = m, *second = v;
    const accumulator_t *g = grad;
    const accumulator_t learning_rate = (accumulator_t)update->learning_rate;
    const accumulator_t beta1 = (accumulator_t)update->beta1, rest1 = (accumulator_t)(1 - update->beta1);
    const accumulator_t beta2 = (accumulator_t)update->beta2, rest2 = (accumulator_t)(1 - update->beta2);
    const accumulator_t correction1 = (accumulator_t)(1 - pow(update->beta1, (double)update->step));
    const accumulator_t correction2 = (accumulator_t)(1 - pow(update->beta2, (double)update->step));
    const accumulator_t epsilon = (accumulator_t)update->epsilon, decay = (accumulator_t)update->weight_decay;
    const accumulator_t gradient_scale = (accumulator_t)update->gradient_scale;
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t i = 0; i < count; i++) {
        const accumulator_t gradient = gradient_scale * g[i];
        first[i] = beta1 * first[i] + rest1 * gradient;
        second[i] = beta2 * second[i] + rest2 * gradient * gradient;
        const accumulator_t m_hat = first[i] / correction1, v_hat = second[i] / correction2;
        p[i] -= learning_rate * (m_hat / (sqrt(v_hat) + epsilon) + decay * p[i]);
        store(&w[i], p[i]);
    }
}

const OptimizerOps CPU_NAME(optimizer) = {.adamw = adamw};
