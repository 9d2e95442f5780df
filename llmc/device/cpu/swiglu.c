// SwiGLU: out = silu(gate) * up.
#include "device/cpu/operations.h"

#include <tgmath.h>

static accumulator_t sigmoid(accumulator_t x) {
    return 1 / (1 + exp(-x));
}

static void swiglu_forward(void *out, const void *gate_up, int64_t rows, int64_t dim, Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        const storage_t *gate_row = (const storage_t *)gate_up + row * 2 * dim, *up_row = gate_row + dim;
        storage_t *out_row = (storage_t *)out + row * dim;
        for (int64_t j = 0; j < dim; j++) {
            accumulator_t gate = load(&gate_row[j]);
            store(&out_row[j], gate * sigmoid(gate) * load(&up_row[j]));
        }
    }
}

static void swiglu_backward(void *grad_gate_up, const void *grad_out, const void *gate_up, int64_t rows,
                            int64_t dim, Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        const storage_t *gate_row = (const storage_t *)gate_up + row * 2 * dim, *up_row = gate_row + dim;
        const storage_t *grad_row = (const storage_t *)grad_out + row * dim;
        storage_t *grad_gate = (storage_t *)grad_gate_up + row * 2 * dim, *grad_up = grad_gate + dim;
        for (int64_t j = 0; j < dim; j++) {
            accumulator_t gate = load(&gate_row[j]), up = load(&up_row[j]), grad = load(&grad_row[j]);
            accumulator_t s = sigmoid(gate);
            store(&grad_gate[j], grad * up * s * (1 + gate * (1 - s)));
            store(&grad_up[j], grad * gate * s);
        }
    }
}

const SwigluOps CPU_NAME(swiglu) = {.forward = swiglu_forward, .backward = swiglu_backward};
