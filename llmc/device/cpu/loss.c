// Cross-entropy of logits against target tokens, and its gradient in place of the logits.
#include "device/cpu/operations.h"

#include <tgmath.h>

static void cross_entropy(void *losses, void *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                          double gradient_scale, Stream *stream) {
    const accumulator_t gradient = (accumulator_t)gradient_scale;
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        storage_t *logit = (storage_t *)logits + row * vocab;
        accumulator_t max = -INFINITY;
        for (int64_t j = 0; j < vocab; j++) max = load(&logit[j]) > max ? load(&logit[j]) : max;
        double sum = 0;
        for (int64_t j = 0; j < vocab; j++) sum += exp(load(&logit[j]) - max);
        ((accumulator_t *)losses)[row] = (accumulator_t)(log(sum) + (max - load(&logit[targets[row]])));
        if (gradient_scale == 0) continue;
        const accumulator_t inverse = (accumulator_t)(1 / sum);
        for (int64_t j = 0; j < vocab; j++) {
            accumulator_t probability = exp(load(&logit[j]) - max) * inverse;
            store(&logit[j], gradient * (j == targets[row] ? probability - 1 : probability));
        }
    }
}

const LossOps CPU_NAME(loss) = {.cross_entropy = cross_entropy};
