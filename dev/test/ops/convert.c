// Copies, sums and roundings of rows.
#include "dev/test/ops/case.h"

#include <string.h>

// Variants, for rows of about `inner` elements of which about `columns` are converted. BLOCK_WHOLE: on CUDA
// all sizes and strides are multiples of 8; BLOCK_ODD: none is.
enum { BLOCK_WHOLE, BLOCK_ODD };

typedef struct {
    int64_t rows, columns, out_stride, in_stride;
} RowBlock;

static RowBlock block_of(const Case *c) {
    const Sizes *s = &c->sizes;
    if (s->variant == BLOCK_ODD) return (RowBlock){s->rows, s->columns - 3, s->inner + 1, s->inner + 5};
    return (RowBlock){s->rows, s->columns, s->inner, s->inner + 8};
}

static void describe_block(Case *c, Element out, Element in) {
    const RowBlock block = block_of(c);
    add_tensor(c, "out", UPDATED, out, block.rows * block.out_stride); // gaps between rows must not change
    add_tensor(c, "in", INPUT, in, block.rows * block.in_stride);
}

// The index in each array of element i of the block, counted row by row.
static int64_t out_index(const RowBlock *block, int64_t i) {
    return i / block->columns * block->out_stride + i % block->columns;
}
static int64_t in_index(const RowBlock *block, int64_t i) {
    return i / block->columns * block->in_stride + i % block->columns;
}

static void describe_accumulate_rows(Case *c) {
    describe_block(c, ACCUMULATED, STORED);
}

RUN(accumulate_rows) {
    const RowBlock b = block_of(c);
    ops->convert.accumulate_rows(at[0], b.out_stride, at[1], b.in_stride, b.rows, b.columns, stream);
}

static void formula_accumulate_rows(const Case *c, double **v) {
    const RowBlock b = block_of(c);
    for (int64_t i = 0; i < b.rows * b.columns; i++) v[0][out_index(&b, i)] += v[1][in_index(&b, i)];
}

static void describe_copy_rows(Case *c) {
    describe_block(c, STORED, STORED);
}

RUN(copy_rows) {
    const RowBlock b = block_of(c);
    ops->convert.copy_rows(at[0], b.out_stride, at[1], b.in_stride, b.rows, b.columns, stream);
}

static void formula_copy_rows(const Case *c, double **v) {
    const RowBlock b = block_of(c);
    for (int64_t i = 0; i < b.rows * b.columns; i++) v[0][out_index(&b, i)] = v[1][in_index(&b, i)];
}

static void describe_round_rows(Case *c) {
    describe_block(c, STORED, ACCUMULATED);
}

RUN(round_rows) {
    const RowBlock b = block_of(c);
    ops->convert.round_rows(at[0], b.out_stride, at[1], b.in_stride, b.rows, b.columns, stream);
}

static void formula_round_rows(const Case *c, double **v) {
    formula_copy_rows(c, v);
}

static void describe_round_to_storage(Case *c) {
    add_tensor(c, "out", WRITTEN, STORED, c->sizes.columns);
    add_tensor(c, "in", INPUT, ACCUMULATED, c->sizes.columns);
}

RUN(round_to_storage) {
    ops->convert.round_to_storage(at[0], at[1], c->sizes.columns, stream);
}

static void formula_round_to_storage(const Case *c, double **v) {
    memcpy(v[0], v[1], (size_t)c->sizes.columns * sizeof(double));
}

static const Sizes block_sizes[] = {
    {.rows = 1, .columns = 3, .inner = 5, .variant = BLOCK_WHOLE},
    {.rows = 300, .columns = 130, .inner = 259, .variant = BLOCK_WHOLE},
    {.rows = 67, .columns = 2100, .inner = 2103, .variant = BLOCK_WHOLE},
    {.rows = 131, .columns = 37, .inner = 37, .variant = BLOCK_ODD},
};

static const Sizes flat_sizes[] = {
    {.columns = 1},
    {.columns = 299},
    {.columns = 100003},
};

static const Operation rows[] = {
    FORWARD(accumulate_rows, ONE_ROUNDING, ALL(block_sizes)),
    FORWARD(copy_rows, 0, ALL(block_sizes)),
    FORWARD(round_rows, ONE_ROUNDING, ALL(block_sizes)),
    FORWARD(round_to_storage, ONE_ROUNDING, ALL(flat_sizes)),
};

const OperationTable convert_operations = {rows, COUNT_OF(rows)};
