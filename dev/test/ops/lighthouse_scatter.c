// Lighthouse attention: scattering the entries' outputs to the tokens.
#include "dev/test/ops/lighthouse.h"

#include <string.h>

static bool has_halo(const Case *c) {
    return c->sizes.pieces > 0 && c->sizes.variant == HALO_GIVEN;
}

static int64_t halo_count(const LighthouseShape *shape) {
    return shape->pieces * shape->batch * (shape->levels - 1) * shape->heads * shape->head_dim;
}

// With halos the case also tests ScatterOps.halo: `before` is the halo that scatter receives from the pieces
// before, `halo` the one that this sequence's pieces give.
static void describe_lighthouse_scatter(Case *c) {
    set_lighthouse_shape(c);
    const int64_t width = c->sizes.batch * c->sizes.heads * c->sizes.head_dim;
    add_tensor(c, "out", WRITTEN, STORED, c->lighthouse.seq_len * width);
    add_tensor(c, "sub_out", INPUT, STORED, c->lighthouse.entries * width);
    add_positions(c);
    if (!has_halo(c)) return;
    add_tensor(c, "halo", WRITTEN, STORED, halo_count(&c->lighthouse));
    add_tensor(c, "before", INPUT, STORED, halo_count(&c->lighthouse));
}

RUN(lighthouse_scatter) {
    ops->scatter.forward(at[0], at[1], has_halo(c) ? at[4] : NULL, at[2], &c->lighthouse, stream);
    if (has_halo(c)) ops->scatter.halo(at[3], at[1], at[2], &c->lighthouse, stream);
}

static double *halo_at(double *halo, int64_t piece, int64_t batch, int level, int64_t head,
                       const LighthouseShape *shape) {
    const int64_t row = (piece * shape->batch + batch) * (shape->levels - 1) + level - 1;
    return halo + (row * shape->heads + head) * shape->head_dim;
}

// Adds the output of each entry to the tokens that get it.
static void formula_lighthouse_scatter(const Case *c, double **v) {
    const LighthouseShape *shape = &c->lighthouse;
    const int64_t head_dim = shape->head_dim, piece_len = shape->seq_len / shape->pieces;
    memset(v[0], 0, c->tensors[0].count * sizeof(double));
    if (has_halo(c)) memset(v[3], 0, c->tensors[3].count * sizeof(double));
    for (int64_t i = 0; i < shape->batch * shape->heads * shape->pyramid; i++) {
        const int64_t batch = i / shape->pyramid / shape->heads, head = i / shape->pyramid % shape->heads;
        int64_t index = i % shape->pyramid, covered = 1;
        int level = 0;
        for (; index >= shape->seq_len / covered; covered <<= shape->log2_pool, level++)
            index -= shape->seq_len / covered;
        const int64_t first = (index + 1) * covered - 1, piece = first / piece_len;
        const int64_t piece_end = (piece + 1) * piece_len;
        const bool is_last = first == piece_end - 1 && level > 0, selected = v[2][i] >= 0;
        const double *from =
            v[1] + ((batch * shape->entries + (int64_t)v[2][i]) * shape->heads + head) * head_dim;
        for (int64_t d = 0; d < head_dim; d++) {
            double *out = v[0] + (batch * shape->seq_len * shape->heads + head) * head_dim + d;
            for (int64_t t = first; t < first + covered && t < piece_end && selected; t++)
                out[t * shape->heads * head_dim] += from[d];
            if (!is_last || !has_halo(c)) continue;
            if (selected) halo_at(v[3], piece, batch, level, head, shape)[d] = from[d];
            for (int64_t t = piece * piece_len; t < piece * piece_len + covered - 1; t++)
                out[t * shape->heads * head_dim] += halo_at(v[4], piece, batch, level, head, shape)[d];
        }
    }
}

static void describe_lighthouse_scatter_backward(Case *c) {
    set_lighthouse_shape(c);
    const int64_t width = c->sizes.batch * c->sizes.heads * c->sizes.head_dim;
    add_tensor(c, "grad_sub_out", WRITTEN, STORED, c->lighthouse.entries * width);
    add_tensor(c, "grad_out", INPUT, STORED, c->lighthouse.seq_len * width);
    add_positions(c);
    if (!has_halo(c)) return;
    add_tensor(c, "grad_halo", INPUT, ACCUMULATED, halo_count(&c->lighthouse));
    add_tensor(c, "grad_before", WRITTEN, ACCUMULATED, halo_count(&c->lighthouse));
}

RUN(lighthouse_scatter_backward) {
    ops->scatter.backward(at[0], at[1], has_halo(c) ? at[3] : NULL, at[2], &c->lighthouse, stream);
    if (has_halo(c)) ops->scatter.halo_backward(at[4], at[1], &c->lighthouse, stream);
}

static const Operation rows[] = {
    FORWARD(lighthouse_scatter, ONE_ROUNDING, ALL(lighthouse_sizes)),
    BACKWARD(lighthouse_scatter_backward, lighthouse_scatter, ONE_ROUNDING, ALL(lighthouse_sizes)),
};

const OperationTable lighthouse_scatter_operations = {rows, COUNT_OF(rows)};
