// Merging attention over several sets of keys.
#include "dev/test/ops/attention.h"

#include "dev/test/ops/rope.h"

#include <math.h>
#include <stdlib.h>

// Variants. MERGE_DENSE, MERGE_STRIDED: merges into an earlier result, in arrays without gaps or in parts of
// larger ones. MERGE_FIRST: there is no earlier result.
enum { MERGE_DENSE, MERGE_STRIDED, MERGE_FIRST };

static void set_merge_shape(Case *c) {
    const Sizes *s = &c->sizes;
    const bool strided = s->variant == MERGE_STRIDED;
    const int64_t logsumexp_len = s->rows + (strided ? LONGER : 0);
    c->attention[0] = (AttentionShape){
        .batch = s->batch,
        .query_len = s->rows,
        .heads = s->heads,
        .head_dim = s->head_dim,
        .output = strides_of(s->rows, s->heads + (strided ? 2 * s->kv_heads : 0), s->head_dim),
        .logsumexp = {s->heads * logsumexp_len, 1, logsumexp_len}};
}

static void set_nan(double *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) values[i] = NAN;
}

// The log-sum-exps are around 90, whose exp overflows a float. Some are -infinity; their vectors are NaN,
// which must have no effect.
static void describe_attention_merge(Case *c) {
    const Sizes *s = &c->sizes;
    set_merge_shape(c);
    const AttentionShape *shape = &c->attention[0];
    const bool first = s->variant == MERGE_FIRST;
    const Role role = first ? WRITTEN : UPDATED;
    double *sum = add_tensor(c, "sum", role, ACCUMULATED, s->batch * shape->output.batch);
    double *logsumexp = add_tensor(c, "logsumexp", role, ACCUMULATED, s->batch * shape->logsumexp.batch);
    double *part = add_tensor(c, "part", INPUT, STORED, s->batch * s->rows * s->heads * s->head_dim);
    double *more = add_tensor(c, "part_logsumexp", INPUT, ACCUMULATED, s->batch * s->heads * s->rows);
    for (int64_t i = 0; i < s->batch * s->heads * s->rows; i++) {
        const int64_t batch = i / s->rows / s->heads, head = i / s->rows % s->heads, query = i % s->rows;
        const int64_t at = token_at(shape->output, batch, query, head);
        const int64_t packed = ((batch * s->rows + query) * s->heads + head) * s->head_dim;
        more[i] = 90 + 2 * more[i];
        if (first) continue;
        double *so_far = logsumexp + token_at(shape->logsumexp, batch, query, head);
        *so_far = 90 + 2 * *so_far;
        if (i % 5 == 1) more[i] = -INFINITY, set_nan(part + packed, s->head_dim);
        if (i % 5 == 3) *so_far = -INFINITY, set_nan(sum + at, s->head_dim);
    }
}

RUN(attention_merge) {
    ops->attention.merge(at[0], at[1], at[2], at[3], &c->attention[0], c->sizes.variant == MERGE_FIRST,
                         stream);
}

static void formula_attention_merge(const Case *c, double **v) {
    const AttentionShape *shape = &c->attention[0];
    const bool first = c->sizes.variant == MERGE_FIRST;
    for (int64_t i = 0; i < shape->batch * shape->heads * shape->query_len; i++) {
        const int64_t batch = i / shape->query_len / shape->heads, query = i % shape->query_len;
        const int64_t head = i / shape->query_len % shape->heads;
        double *sum = v[0] + token_at(shape->output, batch, query, head);
        double *logsumexp = v[1] + token_at(shape->logsumexp, batch, query, head);
        const double *part =
            v[2] + ((batch * shape->query_len + query) * shape->heads + head) * shape->head_dim;
        const double before = first ? 0 : exp(*logsumexp), more = exp(v[3][i]);
        for (int64_t d = 0; d < shape->head_dim; d++)
            sum[d] = ((before > 0 ? before * sum[d] : 0) + (more > 0 ? more * part[d] : 0)) / (before + more);
        *logsumexp = log(before + more);
    }
}

// Attention over the first third of the keys, merged with attention over the rest. `part` and its
// log-sum-exp, which belong to the rest, are results that are checked too.
static void describe_attention_merged(Case *c) {
    const Sizes *s = &c->sizes;
    set_attention_shape(c);
    c->attention_count = 2;
    c->attention[1] = c->attention[0];
    c->attention[0].key_len = s->keys / 3;
    c->attention[1].key_len = s->keys - s->keys / 3;
    for (int i = 0; i < 2; i++)
        c->attention[i].key = c->attention[i].value = strides_of(s->keys, s->kv_heads, s->head_dim);
    const int64_t query_count = s->batch * s->rows * s->heads * s->head_dim;
    const int64_t key_count = s->batch * s->keys * s->kv_heads * s->head_dim;
    add_tensor(c, "sum", WRITTEN, FROM_STORED, query_count);
    add_tensor(c, "logsumexp", WRITTEN, ACCUMULATED, s->batch * s->heads * s->rows);
    add_tensor(c, "part", WRITTEN, STORED, query_count);
    add_tensor(c, "part_logsumexp", WRITTEN, ACCUMULATED, s->batch * s->heads * s->rows);
    add_tensor(c, "query", INPUT, STORED, query_count);
    add_tensor(c, "key", INPUT, STORED, key_count);
    add_tensor(c, "value", INPUT, STORED, key_count);
}

RUN(attention_merged) {
    size_t offset = 0; // bytes before this set of keys
    for (int i = 0; i < 2; i++) {
        const AttentionShape *shape = &c->attention[i];
        ops->attention.forward(at[2], at[3], at[4], (char *)at[5] + offset, (char *)at[6] + offset, shape,
                               workspace, stream);
        ops->attention.merge(at[0], at[1], at[2], at[3], shape, i == 0, stream);
        offset += (size_t)(shape->key_len * shape->key.token) * storage_size(ops->storage);
    }
}

static void formula_attention_merged(const Case *c, double **v) {
    const AttentionShape *shape = &c->attention[1];
    const int64_t earlier = c->attention[0].key_len;
    for (int64_t i = 0; i < shape->batch * shape->heads * shape->query_len; i++) {
        const int64_t batch = i / shape->query_len / shape->heads, query = i % shape->query_len;
        const int64_t head = i / shape->query_len % shape->heads;
        const int64_t kv_head = head / (shape->heads / shape->kv_heads);
        const int64_t out = token_at(shape->output, batch, query, head);
        const double *from = v[4] + token_at(shape->query, batch, query, head);
        for (int later = 0; later < 2; later++) {
            const int64_t key = token_at(shape->key, batch, later ? earlier : 0, kv_head);
            attend(v[2 * later] + out, v[2 * later + 1] + token_at(shape->logsumexp, batch, query, head),
                   from, v[5] + key, v[6] + key, shape, shape->key_len + (later ? 0 : earlier));
        }
    }
}

static const Sizes merge_sizes[] = {
    {.batch = 1, .rows = 1, .heads = 1, .kv_heads = 1, .head_dim = 3, .variant = MERGE_DENSE},
    {.batch = 2, .rows = 37, .heads = 4, .kv_heads = 2, .head_dim = 6, .variant = MERGE_STRIDED},
    {.batch = 2, .rows = 65, .heads = 3, .kv_heads = 3, .head_dim = 22, .variant = MERGE_FIRST},
    {.batch = 3, .rows = 301, .heads = 6, .kv_heads = 2, .head_dim = 128, .variant = MERGE_STRIDED},
    {.batch = 1, .rows = 131, .heads = 5, .kv_heads = 1, .head_dim = 96, .variant = MERGE_DENSE},
    {.batch = 1, .rows = 70, .heads = 2, .kv_heads = 1, .head_dim = 200, .variant = MERGE_FIRST},
    {.batch = 1, .rows = 19, .heads = 2, .kv_heads = 1, .head_dim = 256, .variant = MERGE_STRIDED},
};

static const Sizes merged_sizes[] = {
    {.batch = 2, .rows = 7, .keys = 9, .heads = 2, .kv_heads = 1, .head_dim = 6},
    {.batch = 1, .rows = 129, .keys = 200, .heads = 6, .kv_heads = 2, .head_dim = 64},
    {.batch = 2, .rows = 70, .keys = 384, .heads = 2, .kv_heads = 1, .head_dim = 96},
};

static const Operation rows[] = {
    FORWARD(attention_merge, ONE_ROUNDING, ALL(merge_sizes)),
    FORWARD(attention_merged, ATTENTION, ALL(merged_sizes)),
};

const OperationTable attention_merge_operations = {rows, COUNT_OF(rows)};

// Merging two empty sets of keys (log-sum-exp -infinity) gives an empty set; the vectors have no effect.
static void nothing_stays_nothing(void *argument) {
    Device *device = (Device *)argument;
    const StorageType storage = device->ops->storage, accumulator = accumulator_type(storage);
    const AttentionShape shape = {.batch = 1,
                                  .query_len = 3,
                                  .heads = 2,
                                  .head_dim = 8,
                                  .output = strides_of(3, 2, 8),
                                  .logsumexp = {6, 1, 3}};
    double nan[48], none[6] = {0};
    set_nan(nan, COUNT_OF(nan));
    for (size_t i = 0; i < COUNT_OF(none); i++) none[i] = -INFINITY;
    void *sum = device_allocate(device, sizeof(nan)), *part = device_allocate(device, sizeof(nan));
    void *logsumexp = device_allocate(device, sizeof(none)), *more = device_allocate(device, sizeof(none));
    for (int first = 0; first < 2; first++) {
        upload(device, sum, accumulator, nan, COUNT_OF(nan));
        upload(device, part, storage, nan, COUNT_OF(nan));
        upload(device, logsumexp, accumulator, first ? nan : none, COUNT_OF(none));
        upload(device, more, accumulator, none, COUNT_OF(none));
        device->ops->attention.merge(sum, logsumexp, part, more, &shape, first, device->stream);
        double *merged = download(device, sum, accumulator, COUNT_OF(nan));
        double *total = download(device, logsumexp, accumulator, COUNT_OF(none));
        for (size_t i = 0; i < COUNT_OF(nan); i++) check(merged[i] == 0, "a sum of nothing is %g", merged[i]);
        for (size_t i = 0; i < COUNT_OF(none); i++)
            check(total[i] == -INFINITY, "the log-sum-exp of nothing is %g", total[i]);
        free(merged);
        free(total);
    }
    void *const all[] = {sum, part, logsumexp, more};
    for (size_t i = 0; i < COUNT_OF(all); i++) device->release(device, all[i]);
}

void test_merge_of_nothing(const char *where, Device *device) {
    char *name = format_string("%s: merge of nothing", where);
    test_run(name, nothing_stays_nothing, device);
    free(name);
}
