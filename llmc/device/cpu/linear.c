// Linear layers: three products of two stored matrices, by tiles of the result. The tile size is fixed and
// one thread computes each tile, so the results do not depend on the number of threads.
#include "device/cpu/matrix.h"
#include "device/cpu/operations.h"

enum { TILE = 128, DEPTH = 512 };
_Static_assert(TILE *TILE + 2 * TILE * DEPTH <= SCRATCH_ELEMENTS, "a tile and its panels fit the scratch");

// A matrix in the storage type: element (row, column) is data[row * stride + column], or, if transposed,
// data[column * stride + row].
typedef struct {
    const storage_t *data;
    int64_t stride;
    bool transposed;
} Matrix;

// Destination of a product: if `accumulated` is not NULL, the product is added to it; else it is rounded to
// `stored`, after `addend` (may be NULL) has been added.
typedef struct {
    storage_t *stored;
    const storage_t *addend;
    accumulator_t *accumulated;
} Destination;

static Panel load_block(accumulator_t *scratch, Matrix matrix, int64_t row, int64_t column, int64_t rows,
                        int64_t columns) {
    if (!matrix.transposed)
        return load_panel(scratch, matrix.data + row * matrix.stride + column, matrix.stride, rows, columns);
    const storage_t *first = matrix.data + column * matrix.stride + row;
    return transpose(load_panel(scratch, first, matrix.stride, columns, rows));
}

static void finish_row(Destination out, const accumulator_t *tile, int64_t offset, int64_t columns) {
    if (out.accumulated)
        for (int64_t j = 0; j < columns; j++) out.accumulated[offset + j] += tile[j];
    else if (out.addend)
        for (int64_t j = 0; j < columns; j++)
            store(&out.stored[offset + j], tile[j] + load(&out.addend[offset + j]));
    else
        for (int64_t j = 0; j < columns; j++) store(&out.stored[offset + j], tile[j]);
}

// out [rows, columns] = a [rows, depth] · b [depth, columns].
static void product(Destination out, Matrix a, Matrix b, int64_t rows, int64_t columns, int64_t depth,
                    const Stream *stream) {
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row += TILE)
        for (int64_t column = 0; column < columns; column += TILE) {
            accumulator_t *tile = thread_scratch(stream);
            accumulator_t *a_scratch = tile + TILE * TILE, *b_scratch = a_scratch + TILE * DEPTH;
            int64_t tile_rows = min_i64(TILE, rows - row), tile_columns = min_i64(TILE, columns - column);
            for (int64_t k = 0; k < depth; k += DEPTH) {
                int64_t tile_depth = min_i64(DEPTH, depth - k);
                Panel a_panel = load_block(a_scratch, a, row, k, tile_rows, tile_depth);
                Panel b_panel = load_block(b_scratch, b, k, column, tile_depth, tile_columns);
                multiply(tile, a_panel, b_panel, tile_rows, tile_columns, tile_depth, k > 0);
            }
            for (int64_t i = 0; i < tile_rows; i++)
                finish_row(out, tile + i * tile_columns, (row + i) * columns + column, tile_columns);
        }
}

static void linear_forward(void *out, const void *a, const void *weight, const void *addend, int64_t rows,
                           int64_t outputs, int64_t inputs, Stream *stream) {
    product((Destination){.stored = out, .addend = addend}, (Matrix){a, inputs, false},
            (Matrix){weight, inputs, true}, rows, outputs, inputs, stream);
}

static void linear_backward_input(void *grad_a, const void *grad_out, const void *weight, int64_t rows,
                                  int64_t outputs, int64_t inputs, Stream *stream) {
    product((Destination){.stored = grad_a}, (Matrix){grad_out, outputs, false},
            (Matrix){weight, inputs, false}, rows, inputs, outputs, stream);
}

static void linear_backward_weight(void *grad_weight, const void *grad_out, const void *a, int64_t rows,
                                   int64_t outputs, int64_t inputs, Stream *stream) {
    product((Destination){.accumulated = grad_weight}, (Matrix){grad_out, outputs, true},
            (Matrix){a, inputs, false}, outputs, inputs, rows, stream);
}

const LinearOps CPU_NAME(linear) = {.forward = linear_forward,
                                    .backward_input = linear_backward_input,
                                    .backward_weight = linear_backward_weight};
