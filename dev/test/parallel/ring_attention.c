// Ring attention alone, against attention of the whole sequence.
#include "dev/test/parallel/tests.h"

#include "model/attention.h"
#include "parallel/sequence_parts.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    double *out, *logsumexp, *grad_qkv;
} AttentionResult;

// Attention of qkv and grad_out as given, on this rank's plan.
static AttentionResult attend(Device *device, const AttentionPlan *plan, const double *qkv,
                              const double *grad_out) {
    const StorageType storage = device->ops->storage, accumulator = accumulator_type(storage);
    const size_t rows = (size_t)(plan->batch * plan->seq_len), dim = (size_t)plan->head_dim;
    const size_t qkv_count = rows * (size_t)(plan->heads + 2 * plan->kv_heads) * dim,
                 out_count = rows * (size_t)plan->heads * dim;
    void *memory[6];
    const size_t bytes[] = {qkv_count * storage_size(storage),
                            out_count * storage_size(storage),
                            rows * (size_t)plan->heads * storage_size(accumulator),
                            out_count * storage_size(storage),
                            qkv_count * storage_size(storage),
                            plan->workspace_bytes + 1};
    for (size_t i = 0; i < COUNT_OF(memory); i++) {
        memory[i] = device->allocate(device, bytes[i]);
        void *poison = host_allocate(bytes[i], 1, "poison");
        memset(poison, 0xff, bytes[i]);
        device->upload(device, memory[i], poison, bytes[i]);
        free(poison);
    }
    upload(device, memory[0], storage, qkv, qkv_count);
    upload(device, memory[3], storage, grad_out, out_count);
    attention_forward(device, plan, memory[1], memory[2], memory[0], memory[5]);
    attention_backward(device, plan, memory[4], memory[3], memory[0], memory[1], memory[2], memory[5]);
    AttentionResult result = {download(device, memory[1], storage, out_count),
                              download(device, memory[2], accumulator, rows * (size_t)plan->heads),
                              download(device, memory[4], storage, qkv_count)};
    for (size_t i = 0; i < COUNT_OF(memory); i++) device->release(device, memory[i]);
    return result;
}

static void free_result(AttentionResult *result) {
    free(result->out);
    free(result->logsumexp);
    free(result->grad_qkv);
}

// This rank's tokens of rows [batch, SEQ, width] of whole sequences.
static double *rows_here(const Setup *s, const double *whole, int64_t batch, int64_t seq_len, int64_t width) {
    const Group context = context_group(s);
    const int64_t tokens = seq_len / context.size;
    double *here = host_allocate((size_t)(batch * tokens * width), sizeof(double), "rows");
    for (int64_t row = 0; row < batch; row++)
        for (int64_t i = 0; i < tokens; i++)
            memcpy(here + (row * tokens + i) * width,
                   whole + (row * seq_len + context_position(context, tokens, i)) * width,
                   (size_t)width * sizeof(double));
    return here;
}

// Operations that ask for workspaces by their strides, as cuDNN may, and keep the most that was asked for in calls.
static const Ops *real_ops;
static size_t most_executed[2]; // of the forward, of the backward

static size_t workspace_by_strides(const AttentionShape *shape, bool backward, Stream *stream) {
    (void)stream;
    const int64_t strides =
        shape->query.token + 3 * shape->output.token + (backward ? shape->grad_key.token : 0);
    return (size_t)(shape->query_len + shape->key_len + strides + (1 << 20) / shape->key.token);
}

static void keep_most(const AttentionShape *shape, bool backward) {
    const size_t bytes = workspace_by_strides(shape, backward, NULL);
    if (bytes > most_executed[backward]) most_executed[backward] = bytes;
}

static void forward_and_keep(void *out, void *logsumexp, const void *query, const void *key,
                             const void *value, const AttentionShape *shape, void *workspace,
                             Stream *stream) {
    keep_most(shape, false);
    real_ops->attention.forward(out, logsumexp, query, key, value, shape, workspace, stream);
}

static void backward_and_keep(void *grad_query, void *grad_key, void *grad_value, const void *grad_out,
                              const void *query, const void *key, const void *value, const void *out,
                              const void *logsumexp, const AttentionShape *shape, void *workspace,
                              Stream *stream) {
    keep_most(shape, true);
    real_ops->attention.backward(grad_query, grad_key, grad_value, grad_out, query, key, value, out,
                                 logsumexp, shape, workspace, stream);
}

// The workspaces that are planned are those that the calls then ask for, to the byte.
void ring_plans_what_it_runs(void *argument) {
    const Setup *s = (const Setup *)argument;
    Device *device = s->device;
    real_ops = device->ops;
    Ops watched = *real_ops;
    watched.attention.workspace = workspace_by_strides;
    watched.attention.forward = forward_and_keep;
    watched.attention.backward = backward_and_keep;
    device->ops = &watched;
    const int64_t batch = 2, tokens = 2 * 37;
    const int heads = 6, kv_heads = 2, dim = 32;
    const size_t count = (size_t)(batch * tokens * (heads + 2 * kv_heads) * dim);
    double *random = host_allocate(count, sizeof(double), "a test");
    random_fill(random, count);
    AttentionPlan plan =
        attention_plan(device, batch, tokens, heads, kv_heads, dim, true, SIZE_MAX, s->collectives);
    for (int cut = 0; cut < 3; cut++) {
        plan.kv_heads_per_call = cut > 0 ? 1 : kv_heads;
        plan.piece_len = cut > 1 ? 16 : tokens;
        attention_plan_sizes(device, &plan);
        most_executed[false] = most_executed[true] = 0;
        AttentionResult result = attend(device, &plan, random, random);
        check(most_executed[false] == plan.forward_call_bytes && most_executed[true] == plan.call_bytes,
              "forward %zu bytes, planned %zu; backward %zu, planned %zu", most_executed[false],
              plan.forward_call_bytes, most_executed[true], plan.call_bytes);
        free_result(&result);
    }
    free(random);
    device->ops = real_ops;
}

void ring_equals_whole(void *argument) {
    const Setup *s = (const Setup *)argument;
    Device *device = s->device;
    const int64_t batch = 2, piece = 37, seq_len = 2 * context_group(s).size * piece;
    const int heads = 6, kv_heads = 2, dim = 32;
    const int64_t width = (heads + 2 * kv_heads) * dim, out_width = heads * dim;
    double *qkv = host_allocate((size_t)(batch * seq_len * width), sizeof(double), "qkv");
    double *grad_out = host_allocate((size_t)(batch * seq_len * out_width), sizeof(double), "grad");
    random_fill(qkv, (size_t)(batch * seq_len * width));
    random_fill(grad_out, (size_t)(batch * seq_len * out_width));
    const AttentionPlan whole =
        attention_plan(device, batch, seq_len, heads, kv_heads, dim, true, SIZE_MAX, NULL);
    AttentionResult expected = attend(device, &whole, qkv, grad_out);
    double *qkv_here = rows_here(s, qkv, batch, seq_len, width);
    double *grad_here = rows_here(s, grad_out, batch, seq_len, out_width);
    double *out_here = rows_here(s, expected.out, batch, seq_len, out_width);
    double *grads_here = rows_here(s, expected.grad_qkv, batch, seq_len, width);
    const int64_t tokens = seq_len / context_group(s).size;
    AttentionPlan plan =
        attention_plan(device, batch, tokens, heads, kv_heads, dim, true, SIZE_MAX, s->collectives);
    for (int cut = 0; cut < 3; cut++) {
        plan.kv_heads_per_call = cut > 0 ? 1 : kv_heads;
        plan.piece_len = cut > 1 ? 16 : tokens; // cut, the last piece is shorter
        attention_plan_sizes(device, &plan);
        AttentionResult result = attend(device, &plan, qkv_here, grad_here);
        check_close("out", result.out, out_here, (size_t)(batch * tokens * out_width), tolerance_of(s));
        check_close("grad_qkv", result.grad_qkv, grads_here, (size_t)(batch * tokens * width),
                    tolerance_of(s));
        free_result(&result);
    }
    double *const arrays[] = {qkv, grad_out, qkv_here, grad_here, out_here, grads_here};
    for (size_t i = 0; i < COUNT_OF(arrays); i++) free(arrays[i]);
    free_result(&expected);
}
