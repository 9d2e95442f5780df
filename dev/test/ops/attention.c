// Attention, whole, and its gradients.
#include "dev/test/ops/attention.h"

#include "dev/test/ops/rope.h"

#include <math.h>
#include <stdlib.h>

AttentionStrides strides_of(int64_t seq_len, int64_t heads, int64_t head_dim) {
    return (AttentionStrides){
        .batch = seq_len * heads * head_dim, .token = heads * head_dim, .head = head_dim};
}

void set_attention_shape(Case *c) {
    const Sizes *s = &c->sizes;
    const int64_t d = s->head_dim, all_heads = s->heads + 2 * s->kv_heads;
    const int64_t key_len = s->keys > 0 ? s->keys : s->rows;
    const bool packed = s->variant == PACKED;
    const AttentionStrides query =
        packed ? strides_of(s->rows, all_heads, d) : strides_of(s->rows, s->heads, d);
    const AttentionStrides key = packed ? query : strides_of(key_len, s->kv_heads, d);
    const int64_t logsumexp_len = s->rows + (packed ? LONGER : 0);
    c->attention_count = 1;
    c->attention[0] = (AttentionShape){.batch = s->batch,
                                       .query_len = s->rows,
                                       .key_len = key_len,
                                       .heads = s->heads,
                                       .kv_heads = s->kv_heads,
                                       .head_dim = s->head_dim,
                                       .causal = s->causal,
                                       .deterministic = true,
                                       .scale = 1 / sqrt((double)d),
                                       .query = query,
                                       .key = key,
                                       .value = key,
                                       .output = strides_of(s->rows, s->heads, d),
                                       .logsumexp = {s->heads * logsumexp_len, 1, logsumexp_len},
                                       .grad_query = query,
                                       .grad_key = key,
                                       .grad_value = key};
}

// Adds query, key and value, or, if packed, qkv; or their gradients. `names` has the four names in this
// order.
static void add_query_key_value(Case *c, Role role, const char *const names[4]) {
    const Sizes *s = &c->sizes;
    const AttentionShape *shape = &c->attention[0];
    if (s->variant == PACKED) {
        add_tensor(c, names[3], role, STORED,
                   s->batch * s->rows * (s->heads + 2 * s->kv_heads) * s->head_dim);
        return;
    }
    add_tensor(c, names[0], role, STORED, s->batch * s->rows * s->heads * s->head_dim);
    add_tensor(c, names[1], role, STORED, s->batch * shape->key_len * s->kv_heads * s->head_dim);
    add_tensor(c, names[2], role, STORED, s->batch * shape->key_len * s->kv_heads * s->head_dim);
}

// The addresses of queries, keys and values: in a packed case parts of tensor `index`, whose elements have
// `size` bytes; else the tensors `index`, `index` + 1 and `index` + 2.
static void split_query_key_value(void *parts[3], const Case *c, void **at, int index, size_t size) {
    const Sizes *s = &c->sizes;
    const size_t key_offset = (size_t)(s->heads * s->head_dim) * size;
    const size_t value_offset = key_offset + (size_t)(s->kv_heads * s->head_dim) * size;
    const bool packed = s->variant == PACKED;
    parts[0] = at[index];
    parts[1] = packed ? (char *)at[index] + key_offset : at[index + 1];
    parts[2] = packed ? (char *)at[index] + value_offset : at[index + 2];
}

static const char *const query_key_value[4] = {"query", "key", "value", "qkv"};
static const char *const gradients_of_them[4] = {"grad_query", "grad_key", "grad_value", "grad_qkv"};

static void describe_attention_forward(Case *c) {
    const Sizes *s = &c->sizes;
    set_attention_shape(c);
    add_tensor(c, "out", WRITTEN, STORED, s->batch * s->rows * s->heads * s->head_dim);
    add_tensor(c, "logsumexp", s->variant == PACKED ? UPDATED : WRITTEN, ACCUMULATED,
               s->batch * c->attention[0].logsumexp.batch);
    add_query_key_value(c, INPUT, query_key_value);
    if (s->variant != APART_LARGE_SCORES) return;
    for (int i = find_tensor(c, "query"); i <= find_tensor(c, "key"); i++)
        for (size_t j = 0; j < c->tensors[i].count; j += (size_t)s->head_dim) c->tensors[i].values[j] += 16;
}

RUN(attention_forward) {
    void *in[3];
    split_query_key_value(in, c, at, 2, storage_size(ops->storage));
    ops->attention.forward(at[0], at[1], in[0], in[1], in[2], &c->attention[0], workspace, stream);
}

int64_t token_at(AttentionStrides strides, int64_t batch, int64_t token, int64_t head) {
    return batch * strides.batch + token * strides.token + head * strides.head;
}

void attend(double *out, double *logsumexp, const double *query, const double *keys, const double *values,
            const AttentionShape *shape, int64_t seen) {
    double *scores = host_allocate((size_t)seen, sizeof(double), "scores");
    double total = 0;
    for (int64_t j = 0; j < seen; j++) {
        double dot = 0;
        for (int64_t d = 0; d < shape->head_dim; d++) dot += query[d] * keys[j * shape->key.token + d];
        scores[j] = exp(shape->scale * dot);
        total += scores[j];
    }
    *logsumexp = log(total);
    for (int64_t d = 0; d < shape->head_dim; d++) {
        out[d] = 0;
        for (int64_t j = 0; j < seen; j++) out[d] += scores[j] / total * values[j * shape->value.token + d];
    }
    free(scores);
}

static void formula_attention_forward(const Case *c, double **v) {
    const AttentionShape *shape = &c->attention[0];
    void *in[3];
    split_query_key_value(in, c, (void **)v, 2, sizeof(double));
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t head = 0; head < shape->heads; head++)
            for (int64_t i = 0; i < shape->query_len; i++) {
                const int64_t kv_head = head / (shape->heads / shape->kv_heads);
                attend(v[0] + token_at(shape->output, batch, i, head),
                       v[1] + token_at(shape->logsumexp, batch, i, head),
                       (double *)in[0] + token_at(shape->query, batch, i, head),
                       (double *)in[1] + token_at(shape->key, batch, 0, kv_head),
                       (double *)in[2] + token_at(shape->value, batch, 0, kv_head), shape,
                       shape->causal ? i + 1 : shape->key_len);
            }
}

static void describe_attention_backward(Case *c) {
    const Sizes *s = &c->sizes;
    set_attention_shape(c);
    add_tensor(c, "grad_out", INPUT, STORED, s->batch * s->rows * s->heads * s->head_dim);
    add_tensor(c, "out", INPUT, STORED, s->batch * s->rows * s->heads * s->head_dim);
    add_tensor(c, "logsumexp", INPUT, ACCUMULATED, s->batch * c->attention[0].logsumexp.batch);
    add_query_key_value(c, WRITTEN, gradients_of_them);
    add_query_key_value(c, INPUT, query_key_value);
}

RUN(attention_backward) {
    void *grad[3], *in[3];
    split_query_key_value(grad, c, at, 3, storage_size(ops->storage));
    split_query_key_value(in, c, at, c->sizes.variant == PACKED ? 4 : 6, storage_size(ops->storage));
    ops->attention.backward(grad[0], grad[1], grad[2], at[0], in[0], in[1], in[2], at[1], at[2],
                            &c->attention[0], workspace, stream);
}

// The last of these sizes is for the forward only.
static const Sizes sizes[] = {
    {.batch = 1, .rows = 1, .keys = 9, .heads = 1, .kv_heads = 1, .head_dim = 3, .variant = APART},
    {.batch = 2, .rows = 1, .keys = 70, .heads = 4, .kv_heads = 2, .head_dim = 256, .variant = APART},
    {.batch = 2, .rows = 7, .heads = 2, .kv_heads = 2, .head_dim = 5, .causal = true, .variant = PACKED},
    {.batch = 2, .rows = 65, .heads = 4, .kv_heads = 2, .head_dim = 8, .causal = true, .variant = APART},
    {.batch = 1, .rows = 70, .keys = 131, .heads = 6, .kv_heads = 2, .head_dim = 22, .variant = APART},
    {.batch = 2, .rows = 129, .heads = 3, .kv_heads = 1, .head_dim = 64, .variant = PACKED},
    {.batch = 1, .rows = 257, .heads = 4, .kv_heads = 2, .head_dim = 128, .causal = true, .variant = PACKED},
    {.batch = 1, .rows = 384, .heads = 2, .kv_heads = 1, .head_dim = 96, .causal = true, .variant = APART},
    {.batch = 1, .rows = 1000, .heads = 2, .kv_heads = 1, .head_dim = 64, .causal = true, .variant = PACKED},
    {.batch = 2, .rows = 70, .heads = 2, .kv_heads = 1, .head_dim = 8, .variant = APART_LARGE_SCORES},
};

static const Operation rows[] = {
    FORWARD(attention_forward, ATTENTION, ALL(sizes)),
    BACKWARD(attention_backward, attention_forward, ATTENTION, FIRST(sizes, COUNT_OF(sizes) - 1)),
};

const OperationTable attention_operations = {rows, COUNT_OF(rows)};
