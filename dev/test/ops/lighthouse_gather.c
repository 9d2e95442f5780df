// Lighthouse attention: gathering the selected entries.
#include "dev/test/ops/lighthouse.h"

#include "dev/test/ops/rope.h"

static int64_t qkv_count(const LighthouseShape *shape) {
    return shape->batch * shape->seq_len * (shape->heads + 2 * shape->kv_heads) * shape->head_dim;
}
int64_t gathered_count(const LighthouseShape *shape) {
    return shape->batch * shape->entries * 3 * shape->heads * shape->head_dim;
}

static void describe_lighthouse_gather(Case *c) {
    set_lighthouse_shape(c);
    const bool turned = c->sizes.variant == GATHER_TURNED;
    add_tensor(c, "gathered", WRITTEN, STORED, gathered_count(&c->lighthouse));
    add_tensor(c, "qkv", turned ? UPDATED : INPUT, STORED, qkv_count(&c->lighthouse));
    add_positions(c);
    if (turned) add_angles(c);
}

RUN(lighthouse_gather) {
    const Sizes *s = &c->sizes;
    if (s->variant == GATHER_TURNED)
        ops->rope.rotate(at[1], NULL, 0, at[3], s->batch, s->rows, s->heads + 2 * s->kv_heads,
                         s->heads + s->kv_heads, s->head_dim, false, stream);
    ops->gather.forward(at[0], at[1], at[2], &c->lighthouse, stream);
}

static void formula_lighthouse_gather(const Case *c, double **v) {
    const LighthouseShape *shape = &c->lighthouse;
    const int64_t head_dim = shape->head_dim, width = shape->heads + 2 * shape->kv_heads;
    if (c->sizes.variant == GATHER_TURNED) turn(v[1], v[3], &c->sizes, false);
    for (int64_t i = 0; i < shape->batch * shape->heads * shape->pyramid; i++) {
        if (v[2][i] < 0) continue;
        const int64_t batch = i / shape->pyramid / shape->heads, head = i / shape->pyramid % shape->heads;
        int64_t index = i % shape->pyramid, covered = 1;
        for (; index >= shape->seq_len / covered; covered <<= shape->log2_pool)
            index -= shape->seq_len / covered;
        for (int64_t j = 0; j < 3 * head_dim; j++) {
            const int64_t part = j / head_dim, kv_head = head / (shape->heads / shape->kv_heads);
            const int64_t from = part == 0 ? head : shape->heads + (part - 1) * shape->kv_heads + kv_head;
            const int64_t row = batch * shape->entries + (int64_t)v[2][i];
            double mean = 0;
            for (int64_t t = index * covered; t < (index + 1) * covered; t++)
                mean += v[1][((batch * shape->seq_len + t) * width + from) * head_dim + j % head_dim] /
                        (double)covered;
            v[0][((row * 3 + part) * shape->heads + head) * head_dim + j % head_dim] = mean;
        }
    }
}

static void describe_lighthouse_gather_backward(Case *c) {
    set_lighthouse_shape(c);
    add_tensor(c, "grad_qkv", WRITTEN, STORED, qkv_count(&c->lighthouse));
    add_tensor(c, "grad_gathered", INPUT, STORED, gathered_count(&c->lighthouse));
    add_positions(c);
    if (c->sizes.variant == GATHER_TURNED) add_angles(c);
}

RUN(lighthouse_gather_backward) {
    ops->gather.backward(at[0], at[1], at[2], c->sizes.variant == GATHER_TURNED ? at[3] : NULL,
                         &c->lighthouse, stream);
}

static const Operation rows[] = {
    FORWARD(lighthouse_gather, ONE_ROUNDING, FIRST(lighthouse_sizes, WHOLE_SIZES)),
    BACKWARD(lighthouse_gather_backward, lighthouse_gather, ONE_ROUNDING,
             FIRST(lighthouse_sizes, WHOLE_SIZES)),
};

const OperationTable lighthouse_gather_operations = {rows, COUNT_OF(rows)};
