// Products of small matrices in the accumulator type, from which linear layers and attention are built.
#pragma once
#include "device/cpu/storage_types.h"

#include <cblas.h>

// A matrix in the accumulator type: element (row, column) is data[row * stride + column], or, if transposed,
// data[column * stride + row].
typedef struct {
    const accumulator_t *data;
    int64_t stride;
    bool transposed;
} Panel;

static inline Panel transpose(Panel panel) {
    panel.transposed = !panel.transposed;
    return panel;
}

// A block [rows, columns] of a stored matrix, whose rows are `stride` elements apart, as a panel. If the
// storage type is the accumulator type, the panel is that memory; else it is a copy in scratch A[rows,
// columns].
static inline Panel load_panel(accumulator_t *scratch, const storage_t *in, int64_t stride, int64_t rows,
                               int64_t columns) {
#if STORAGE == 16
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++)
            scratch[row * columns + column] = load(&in[row * stride + column]);
    return (Panel){scratch, columns, false};
#else
    (void)scratch, (void)rows, (void)columns;
    return (Panel){in, stride, false};
#endif
}

// out A[rows, columns] = a [rows, depth] · b [depth, columns]; with `add` the product is added to out.
static inline void multiply(accumulator_t *out, Panel a, Panel b, int64_t rows, int64_t columns,
                            int64_t depth, bool add) {
#if STORAGE == 64
    cblas_dgemm
#else
    cblas_sgemm
#endif
        (CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans, b.transposed ? CblasTrans : CblasNoTrans,
         (int)rows, (int)columns, (int)depth, 1, a.data, (int)a.stride, b.data, (int)b.stride, add ? 1 : 0,
         out, (int)columns);
}
