// The backward of attention over pieces of a sequence, as context parallelism calls it.
#include "dev/test/ops/attention.h"

#include <stdlib.h>
#include <string.h>

// Causal attention of `rows` tokens, cut after the first `keys` of them. Each part with itself gives
// grad_query, grad_key and grad_value; the later queries with the earlier keys give the "crossing" gradients.
// All three calls use the log-sum-exp and the output of attention over all tokens.
static void describe_attention_pieces(Case *c) {
    const Sizes *s = &c->sizes;
    const int64_t cut = s->keys, rest = s->rows - s->keys;
    c->sizes.keys = 0;
    set_attention_shape(c);
    c->sizes.keys = cut;
    AttentionShape *pieces = c->attention;
    c->attention_count = PIECES;
    pieces[1] = pieces[2] = pieces[0];
    pieces[0].query_len = pieces[0].key_len = cut;
    pieces[1].query_len = pieces[1].key_len = rest;
    pieces[2].query_len = rest;
    pieces[2].key_len = cut;
    pieces[2].causal = false;
    pieces[2].grad_query = strides_of(rest, s->heads, s->head_dim);
    pieces[2].grad_key = pieces[2].grad_value = strides_of(cut, s->kv_heads, s->head_dim);

    const int64_t query_count = s->batch * s->rows * s->heads * s->head_dim;
    const int64_t key_count = s->batch * s->rows * s->kv_heads * s->head_dim;
    const int64_t crossing_key_count = s->batch * cut * s->kv_heads * s->head_dim;
    add_tensor(c, "grad_query", WRITTEN, STORED, query_count);
    add_tensor(c, "grad_key", WRITTEN, STORED, key_count);
    add_tensor(c, "grad_value", WRITTEN, STORED, key_count);
    add_tensor(c, "crossing grad_query", WRITTEN, STORED, s->batch * rest * s->heads * s->head_dim);
    add_tensor(c, "crossing grad_key", WRITTEN, STORED, crossing_key_count);
    add_tensor(c, "crossing grad_value", WRITTEN, STORED, crossing_key_count);
    add_tensor(c, "grad_out", INPUT, STORED, query_count);
    add_tensor(c, "query", INPUT, STORED, query_count);
    add_tensor(c, "key", INPUT, STORED, key_count);
    add_tensor(c, "value", INPUT, STORED, key_count);
    add_tensor(c, "out", INPUT, STORED, query_count);
    add_tensor(c, "logsumexp", INPUT, ACCUMULATED, s->batch * s->heads * s->rows);
}

RUN(attention_pieces) {
    const Sizes *s = &c->sizes;
    const AttentionShape *pieces = c->attention;
    const size_t size = storage_size(ops->storage);
    const size_t query_bytes = (size_t)(s->keys * s->heads * s->head_dim) * size;
    const size_t key_bytes = (size_t)(s->keys * s->kv_heads * s->head_dim) * size;
    // The address in each tensor at which the later part begins.
    char *later[MAX_TENSORS];
    for (int i = 0; i < c->count; i++) {
        const bool is_key = i == 1 || i == 2 || i == 8 || i == 9;
        later[i] = (char *)at[i] + (is_key ? key_bytes : query_bytes);
    }
    later[11] = (char *)at[11] + (size_t)s->keys * storage_size(accumulator_type(ops->storage));
    ops->attention.backward(at[0], at[1], at[2], at[6], at[7], at[8], at[9], at[10], at[11], &pieces[0],
                            workspace, stream);
    ops->attention.backward(later[0], later[1], later[2], later[6], later[7], later[8], later[9], later[10],
                            later[11], &pieces[1], workspace, stream);
    ops->attention.backward(at[3], at[4], at[5], later[6], later[7], at[8], at[9], later[10], later[11],
                            &pieces[2], workspace, stream);
}

// Adds the crossing piece [batch, part, width] of a gradient to the tokens from `first` on of [batch, rows,
// width].
static void add_crossing(double *whole, const double *crossing, int64_t first, int64_t part, int64_t rows,
                         int64_t batch, int64_t width) {
    for (int64_t i = 0; i < batch * part * width; i++)
        whole[(i / width / part * rows + first + i / width % part) * width + i % width] += crossing[i];
}

// Checks that the gradients of the pieces add up to those of a single backward on the same device.
static void check_sum_of_pieces(const Case *pieces, const Devices *devices) {
    static const char *const names[] = {"grad_query", "grad_key", "grad_value"};
    const Sizes *s = &pieces->sizes;
    Sizes uncut = *s;
    uncut.keys = 0;
    Case whole = make_case(operation_named("attention_backward"), uncut, 1);
    for (int i = 0; i < whole.count; i++) {
        const Tensor *tensor = &whole.tensors[i];
        if (tensor->role != INPUT) continue;
        const Tensor *from = &pieces->tensors[find_tensor(pieces, tensor->name)];
        memcpy(tensor->values, from->values, tensor->count * sizeof(double));
    }
    Results expected = run_case(&whole, devices->tested), got = run_case(pieces, devices->tested);
    for (int i = 0; i < 3; i++) {
        const int64_t first = i == 0 ? s->keys : 0, part = i == 0 ? s->rows - s->keys : s->keys;
        const int64_t width = (i == 0 ? s->heads : s->kv_heads) * s->head_dim;
        const double tolerance = devices->tested->ops->storage == STORAGE_BFLOAT16 ? ATTENTION : 1e-5;
        add_crossing(got.values[i], got.values[3 + i], first, part, s->rows, s->batch, width);
        char *what = label(pieces, "whole", i);
        check_close(what, got.values[i], expected.values[find_tensor(&whole, names[i])],
                    (size_t)(s->batch * s->rows * width), tolerance);
        free(what);
    }
    free_results(&expected);
    free_results(&got);
    free_case(&whole);
}

static void pieces_make_the_whole(void *argument) {
    const OperationTest *test = (const OperationTest *)argument;
    for (int i = 0; i < test->operation->sizes_count; i++) {
        Case pieces =
            make_case(test->operation, test->operation->sizes[i], alignment_of(test->devices->tested));
        Case forward = join_forward(&pieces, test->devices->float64);
        check_on_device(&pieces, test->devices); // which rounds its inputs
        check_sum_of_pieces(&pieces, test->devices);
        free_case(&forward);
        free_case(&pieces);
    }
}

static const Sizes sizes[] = {
    {.batch = 2, .rows = 2, .keys = 1, .heads = 2, .kv_heads = 1, .head_dim = 6, .causal = true},
    {.batch = 2, .rows = 131, .keys = 70, .heads = 4, .kv_heads = 2, .head_dim = 22, .causal = true},
    {.batch = 1, .rows = 384, .keys = 192, .heads = 2, .kv_heads = 2, .head_dim = 64, .causal = true},
};

void test_attention_pieces(const char *where, const Devices *devices) {
    static const Operation operation = BACKWARD(attention_pieces, attention_forward, ATTENTION, ALL(sizes));
    OperationTest test = {&operation, devices};
    char *name = format_string("%s: attention_pieces", where);
    test_run(name, pieces_make_the_whole, &test);
    free(name);
}
