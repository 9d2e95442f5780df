// Products of small matrices in the accumulator type: what linear layers and attention are made of.
#pragma once
#include "device/cpu/storage_types.h"

#include <cblas.h>

// A matrix in the accumulator type: element (row, column) stands at data[row * stride + column], or the other
// way round if transposed.
typedef struct {
    const accumulator_t *data;
    int64_t stride;
    bool transposed;
} Panel;

static inline Panel transpose(Panel panel) {
    panel.transposed = !panel.transposed;
    return panel;
}

// A block of stored rows, `stride` elements apart, as a panel: where it stands if it is of the accumulator
// type already, else converted into scratch A[rows, columns].
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

// out A[rows, columns] = a [rows, depth] · b [depth, columns], added to what out holds if `add`.
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
