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
