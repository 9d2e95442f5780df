// Rotary position embedding of the selected entries, after they were gathered. The operation works in place: here
// on a copy, so that its input and its result have names of their own.
#include "dev/test/ops/lighthouse.h"
#include "dev/test/ops/rope.h"

#include <string.h>

static int64_t row_width(const Case *c) {
    return 3 * c->lighthouse.heads * c->lighthouse.head_dim;
}

static void rotate_copy(const Case *c, const Ops *ops, void **at, bool inverse, Stream *stream) {
    const int64_t width = row_width(c), rows = c->lighthouse.batch * c->lighthouse.entries;
    ops->convert.copy_rows(at[0], width, at[1], width, rows, width, stream);
    ops->rope.rotate_entries(at[0], at[2], at[3], &c->lighthouse, inverse, stream);
}

static void describe_rope_entries(Case *c) {
    set_lighthouse_shape(c);
    add_tensor(c, "turned", WRITTEN, STORED, gathered_count(&c->lighthouse));
    add_tensor(c, "gathered", INPUT, STORED, gathered_count(&c->lighthouse));
    add_positions(c);
    add_angles(c);
}

RUN(rope_entries) {
    rotate_copy(c, ops, at, false, stream);
}

// Token by token: it turns the entries whose last token it is.
static void formula_rope_entries(const Case *c, double **v) {
    const LighthouseShape *shape = &c->lighthouse;
    const int64_t half = shape->head_dim / 2;
    memcpy(v[0], v[1], c->tensors[0].count * sizeof(double));
    for (int64_t i = 0; i < shape->batch * shape->heads * shape->seq_len * shape->levels; i++) {
        const int64_t token = i / shape->levels % shape->seq_len, row = i / shape->levels / shape->seq_len;
        const int level = (int)(i % shape->levels);
        const int64_t end = token + 1, covered = (int64_t)1 << (level * shape->log2_pool);
        if (end % covered != 0) continue;
        const int64_t place = level_start(shape, level) + end / covered - 1;
        const double position = v[2][row * shape->pyramid + place];
        if (position < 0) continue;
        const int64_t batch = row / shape->heads, head = row % shape->heads;
        double *entry = v[0] + (batch * shape->entries + (int64_t)position) * row_width(c);
        for (int64_t j = 0; j < 2 * half; j++) {
            double *pair = entry + (j / half * shape->heads + head) * 2 * half + j % half;
            const double *angle = v[3] + (token * half + j % half) * 2, a = pair[0], b = pair[half];
            pair[0] = a * angle[0] - b * angle[1];
            pair[half] = a * angle[1] + b * angle[0];
        }
    }
}

static void describe_rope_entries_backward(Case *c) {
    set_lighthouse_shape(c);
    add_tensor(c, "grad_gathered", WRITTEN, STORED, gathered_count(&c->lighthouse));
    add_tensor(c, "grad_turned", INPUT, STORED, gathered_count(&c->lighthouse));
    add_positions(c);
    add_angles(c);
}

RUN(rope_entries_backward) {
    rotate_copy(c, ops, at, true, stream);
}

static const Operation rows[] = {
    FORWARD(rope_entries, ONE_ROUNDING, ALL(lighthouse_sizes)),
    BACKWARD(rope_entries_backward, rope_entries, ONE_ROUNDING, ALL(lighthouse_sizes)),
};

const OperationTable rope_entries_operations = {rows, COUNT_OF(rows)};
