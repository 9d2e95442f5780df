// Token embedding: rows of a table, and the gradient of that table.
#include "device/cpu/operations.h"

static void embedding_forward(void *out, const void *weight, const int32_t *tokens, int64_t rows, int64_t dim,
                              int64_t vocab, Stream *stream) {
    (void)vocab;
    const size_t row_bytes = (size_t)dim * sizeof(storage_t);
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++)
        memcpy((storage_t *)out + row * dim, (const storage_t *)weight + tokens[row] * dim, row_bytes);
}

enum { COLUMNS = 32 }; // columns for which one thread sums all rows

static void embedding_backward(void *grad_weight, const void *grad_out, const int32_t *tokens, int64_t rows,
                               int64_t dim, int64_t vocab, Stream *stream) {
    (void)vocab;
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t first = 0; first < dim; first += COLUMNS) {
        const int64_t columns = min_i64(COLUMNS, dim - first);
        for (int64_t row = 0; row < rows; row++) {
            accumulator_t *to = (accumulator_t *)grad_weight + tokens[row] * dim + first;
            const storage_t *from = (const storage_t *)grad_out + row * dim + first;
            for (int64_t j = 0; j < columns; j++) to[j] += load(&from[j]);
        }
    }
}

const EmbeddingOps CPU_NAME(embedding) = {.forward = embedding_forward, .backward = embedding_backward};
