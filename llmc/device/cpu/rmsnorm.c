// RMSNorm: out = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + epsilon).
#include "device/cpu/operations.h"

#include <tgmath.h>

static void rmsnorm_forward(void *out, void *rstd, const void *x, const void *weight, int64_t rows,
                            int64_t dim, double epsilon, Stream *stream) {
    const storage_t *w = weight;
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        const storage_t *x_row = (const storage_t *)x + row * dim;
        storage_t *out_row = (storage_t *)out + row * dim;
        double squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < dim; j++) squares += (double)load(&x_row[j]) * (double)load(&x_row[j]);
        const accumulator_t scale = (accumulator_t)(1 / sqrt(squares / (double)dim + epsilon));
        ((accumulator_t *)rstd)[row] = scale;
        for (int64_t j = 0; j < dim; j++) store(&out_row[j], load(&x_row[j]) * scale * load(&w[j]));
    }
}

enum { COLUMNS = 32 }; // columns for which one thread sums all rows

static void rmsnorm_backward_weight(accumulator_t *grad_weight, const storage_t *grad_out, const storage_t *x,
                                    const accumulator_t *rstd, int64_t rows, int64_t dim,
                                    const Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t first = 0; first < dim; first += COLUMNS) {
        const int64_t columns = min_i64(COLUMNS, dim - first);
        double sums[COLUMNS] = {0};
        for (int64_t row = 0; row < rows; row++) {
            const storage_t *grad_row = grad_out + row * dim + first, *x_row = x + row * dim + first;
            for (int64_t j = 0; j < columns; j++) sums[j] += load(&grad_row[j]) * load(&x_row[j]) * rstd[row];
        }
        for (int64_t j = 0; j < columns; j++) grad_weight[first + j] += (accumulator_t)sums[j];
    }
}

// With n = x·rstd and h = grad_out·weight, the gradient of x through the norm is rstd·(h - n·mean(h·n)).
static void rmsnorm_backward(void *grad_x, void *grad_weight, const void *grad_residual, const void *grad_out,
                             const void *x, const void *weight, const void *rstd, int64_t rows, int64_t dim,
                             Stream *stream) {
    const storage_t *w = weight;
    rmsnorm_backward_weight(grad_weight, grad_out, x, rstd, rows, dim, stream);
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        const storage_t *x_row = (const storage_t *)x + row * dim;
        const storage_t *grad_row = (const storage_t *)grad_out + row * dim;
        const storage_t *residual_row = grad_residual ? (const storage_t *)grad_residual + row * dim : NULL;
        storage_t *out_row = (storage_t *)grad_x + row * dim;
        const accumulator_t scale = ((const accumulator_t *)rstd)[row];
        double dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < dim; j++) dot += load(&grad_row[j]) * load(&w[j]) * (load(&x_row[j]) * scale);
        const accumulator_t mean = (accumulator_t)(dot / (double)dim);
        for (int64_t j = 0; j < dim; j++) {
            accumulator_t own = scale * (load(&grad_row[j]) * load(&w[j]) - load(&x_row[j]) * scale * mean);
            store(&out_row[j], residual_row ? load(&residual_row[j]) + own : own);
        }
    }
}

const RmsnormOps CPU_NAME(rmsnorm) = {.forward = rmsnorm_forward, .backward = rmsnorm_backward};
