// Arrays of more than 2^31 elements, on a GPU with enough memory. All rows are zero but the last few, whose
// results must equal those of a small array that has only these rows.
#include "test.h"

#include "model/attention.h"
#include "model/lighthouse.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TAIL = 5 }; // rows at the end that are not zeros

static const int64_t many_rows = ((int64_t)1 << 20) + 3; // with 2064 columns more than 2^31 elements
static const int64_t columns = 2064;
static const int64_t vocab = 128256, logit_rows = 16771; // more than 2^31 logits

static size_t element_size(Device *device) {
    return storage_size(device->ops->storage);
}

static void *allocate_zeroed(Device *device, size_t bytes) {
    void *memory = device->allocate(device, bytes);
    if (!memory) fatal("no room for %zu bytes", bytes);
    device->zero(device, memory, bytes);
    return memory;
}

// Allocates and zeros S[rows, width].
static void *allocate_rows(Device *device, int64_t rows, int64_t width) {
    return allocate_zeroed(device, (size_t)(rows * width) * element_size(device));
}

static void *row_at(Device *device, void *array, int64_t row, int64_t width) {
    return (char *)array + (size_t)(row * width) * element_size(device);
}

// Sets the last TAIL rows of a large array and the rows of a small array to the same random values.
static void fill_tail(Device *device, void *large, int64_t rows, void *small, int64_t width) {
    const size_t count = (size_t)(TAIL * width);
    double *values = host_allocate(count, sizeof(double), "values");
    void *stored = host_allocate(count, element_size(device), "values");
    random_fill(values, count);
    storage_from_double(stored, device->ops->storage, values, count);
    device->upload(device, row_at(device, large, rows - TAIL, width), stored, count * element_size(device));
    device->upload(device, small, stored, count * element_size(device));
    free(values);
    free(stored);
}

static void check_tail(Device *device, const char *what, void *large, int64_t rows, void *small,
                       int64_t width) {
    const size_t count = (size_t)(TAIL * width);
    double *a = download(device, row_at(device, large, rows - TAIL, width), device->ops->storage, count);
    double *b = download(device, small, device->ops->storage, count);
    check_close(what, a, b, count, 4e-3);
    free(a);
    free(b);
}

static void release_all(Device *device, void *const *arrays, size_t count) {
    for (size_t i = 0; i < count; i++) device->release(device, arrays[i]);
}

static void elementwise(void *argument) {
    Device *device = (Device *)argument;
    const Ops *ops = device->ops;
    Stream *stream = device->stream;
    const int64_t half = columns / 2;
    void *large = allocate_rows(device, many_rows, columns),
         *large_out = allocate_rows(device, many_rows, columns);
    void *large_grad = allocate_rows(device, many_rows, half);
    void *small = allocate_rows(device, TAIL, columns), *small_out = allocate_rows(device, TAIL, columns);
    void *small_grad = allocate_rows(device, TAIL, half), *weight = allocate_rows(device, TAIL, columns);
    void *rstd = allocate_zeroed(device, (size_t)many_rows * sizeof(float));
    fill_tail(device, large, many_rows, small, columns);
    fill_tail(device, large_grad, many_rows, small_grad, half);
    fill_tail(device, weight, TAIL, weight, columns);

    ops->rmsnorm.forward(large_out, rstd, large, weight, many_rows, columns, 1e-5, stream);
    ops->rmsnorm.forward(small_out, rstd, small, weight, TAIL, columns, 1e-5, stream);
    check_tail(device, "rmsnorm_forward", large_out, many_rows, small_out, columns);

    ops->swiglu.forward(large_out, large, many_rows, half, stream);
    ops->swiglu.forward(small_out, small, TAIL, half, stream);
    check_tail(device, "swiglu_forward", large_out, many_rows, small_out, half);

    ops->swiglu.backward(large_out, large_grad, large, many_rows, half, stream);
    ops->swiglu.backward(small_out, small_grad, small, TAIL, half, stream);
    check_tail(device, "swiglu_backward", large_out, many_rows, small_out, columns);
    void *const arrays[] = {large, large_out, large_grad, small, small_out, small_grad, weight, rstd};
    release_all(device, arrays, COUNT_OF(arrays));
}

// Merging a result with itself must leave it as it is.
static void blocks_and_merges(void *argument) {
    Device *device = (Device *)argument;
    const Ops *ops = device->ops;
    Stream *stream = device->stream;
    const int heads = 258, head_dim = 8;
    const AttentionShape shape = {.batch = 1,
                                  .query_len = many_rows,
                                  .heads = heads,
                                  .head_dim = head_dim,
                                  .output = {many_rows * columns, columns, head_dim},
                                  .logsumexp = {many_rows * heads, 1, many_rows}};
    void *large = allocate_rows(device, many_rows, columns),
         *copy = allocate_rows(device, many_rows, columns);
    void *small = allocate_rows(device, TAIL, columns);
    void *sum = allocate_zeroed(device, (size_t)(many_rows * columns) * sizeof(float));
    void *logsumexp = allocate_zeroed(device, (size_t)(many_rows * heads) * sizeof(float));
    void *zeros = allocate_zeroed(device, (size_t)(many_rows * heads) * sizeof(float));
    fill_tail(device, large, many_rows, small, columns);
    ops->convert.copy_rows(copy, columns, large, columns, many_rows, columns, stream);
    check_tail(device, "copy_rows", copy, many_rows, small, columns);

    ops->attention.merge(sum, logsumexp, large, zeros, &shape, true, stream);
    ops->attention.merge(sum, logsumexp, large, zeros, &shape, false, stream);
    device->zero(device, copy, (size_t)(many_rows * columns) * element_size(device));
    ops->convert.round_rows(copy, columns, sum, columns, many_rows, columns, stream);
    check_tail(device, "attention_merge and round_rows", copy, many_rows, small, columns);
    void *const arrays[] = {large, copy, small, sum, logsumexp, zeros};
    release_all(device, arrays, COUNT_OF(arrays));
}

static void rotary(void *argument) {
    Device *device = (Device *)argument;
    const int heads = 258, head_dim = 8;
    const size_t angle_row = (size_t)head_dim * sizeof(float);
    void *large = allocate_rows(device, many_rows, columns), *small = allocate_rows(device, TAIL, columns);
    void *angles = allocate_zeroed(device, (size_t)many_rows * angle_row);
    float turns[TAIL * 8];
    for (size_t i = 0; i < COUNT_OF(turns); i += 2) {
        turns[i] = cosf((float)i);
        turns[i + 1] = sinf((float)i);
    }
    char *last_angles = (char *)angles + (size_t)(many_rows - TAIL) * angle_row;
    device->upload(device, last_angles, turns, sizeof(turns));
    fill_tail(device, large, many_rows, small, columns);
    device->ops->rope.rotate(large, NULL, 0, angles, 1, many_rows, heads, heads, head_dim, false,
                             device->stream);
    device->ops->rope.rotate(small, NULL, 0, last_angles, 1, TAIL, heads, heads, head_dim, false,
                             device->stream);
    check_tail(device, "rope", large, many_rows, small, columns);
    void *const arrays[] = {large, small, angles};
    release_all(device, arrays, COUNT_OF(arrays));
}

static void logits(void *argument) {
    Device *device = (Device *)argument;
    const Ops *ops = device->ops;
    Stream *stream = device->stream;
    const int64_t dim = 64;
    void *a = allocate_rows(device, logit_rows, dim), *small_a = allocate_rows(device, TAIL, dim);
    void *weight = allocate_rows(device, vocab, dim), *large = allocate_rows(device, logit_rows, vocab);
    void *small = allocate_rows(device, TAIL, vocab);
    void *losses = allocate_zeroed(device, (size_t)logit_rows * sizeof(float));
    void *small_losses = allocate_zeroed(device, TAIL * sizeof(float));
    int32_t *targets = (int32_t *)allocate_zeroed(device, (size_t)logit_rows * sizeof(int32_t));
    fill_tail(device, a, logit_rows, small_a, dim);
    fill_tail(device, weight, TAIL, weight, dim); // a few rows of weights that are not zero
    ops->linear.forward(large, a, weight, NULL, logit_rows, vocab, dim, stream);
    ops->linear.forward(small, small_a, weight, NULL, TAIL, vocab, dim, stream);
    check_tail(device, "linear_forward", large, logit_rows, small, vocab);

    fill_tail(device, large, logit_rows, small, vocab);
    ops->loss.cross_entropy(losses, large, targets, logit_rows, vocab, 0.5, stream);
    ops->loss.cross_entropy(small_losses, small, targets, TAIL, vocab, 0.5, stream);
    check_tail(device, "cross_entropy's gradient", large, logit_rows, small, vocab);
    double *tail = download(device, (float *)losses + logit_rows - TAIL, STORAGE_FLOAT32, TAIL);
    double *expected = download(device, small_losses, STORAGE_FLOAT32, TAIL);
    check_close("losses", tail, expected, TAIL, 1e-6);

    fill_tail(device, large, logit_rows, small, vocab);
    ops->linear.backward_input(a, large, weight, logit_rows, vocab, dim, stream);
    ops->linear.backward_input(small_a, small, weight, TAIL, vocab, dim, stream);
    check_tail(device, "linear_backward_input", a, logit_rows, small_a, dim);
    free(tail);
    free(expected);
    void *const arrays[] = {a, small_a, weight, large, small, losses, small_losses, targets};
    release_all(device, arrays, COUNT_OF(arrays));
}

static void flat_buffers(void *argument) {
    Device *device = (Device *)argument;
    const int64_t count = ((int64_t)1 << 31) + 24, last = 8;
    const size_t bytes = (size_t)count * sizeof(float);
    float *grad = (float *)allocate_zeroed(device, bytes), *master = (float *)allocate_zeroed(device, bytes);
    float *m = (float *)allocate_zeroed(device, bytes), *v = (float *)allocate_zeroed(device, bytes);
    void *weights = allocate_rows(device, count, 1), *sums = allocate_zeroed(device, 2 * sizeof(double));
    const float values[8] = {1, -2, 3, -4, 5, -6, 7, -8};
    device->upload(device, grad + count - last, values, sizeof(values));
    device->ops->reduce.sum((double *)sums, grad, count, device->stream);
    device->ops->reduce.sum_of_squares((double *)sums + 1, grad, count, device->stream);
    double results[2];
    device->download(device, results, sums, sizeof(results));
    check(results[0] == -4 && results[1] == 204, "sum %g and sum of squares %g, expected -4 and 204",
          results[0], results[1]);
    const AdamwStep update = {1, 0.25, 0.9, 0.95, 1e-8, 0, 1}; // a first step moves by the learning rate
    device->ops->optimizer.adamw(weights, master, m, v, grad, count, &update, device->stream);
    double *after =
        download(device, row_at(device, weights, count - last, 1), device->ops->storage, (size_t)last);
    for (int i = 0; i < last; i++)
        check(fabs(after[i] + copysign(0.25, values[i])) < 1e-3, "weight %d from the end is %g", i, after[i]);
    free(after);
    void *const arrays[] = {grad, master, m, v, weights, sums};
    release_all(device, arrays, COUNT_OF(arrays));
}

// Many sequences, since dense attention over one long sequence would take minutes.
static void attention(void *argument) {
    Device *device = (Device *)argument;
    const int64_t batch = 1101, seq_len = 640;
    const int heads = 8, head_dim = 128;
    const int64_t qkv = 3 * heads * head_dim, out = heads * head_dim, rows = batch * seq_len;
    AttentionPlan large_plan =
        attention_plan(device, batch, seq_len, heads, heads, head_dim, true, SIZE_MAX, NULL);
    AttentionPlan small_plan =
        attention_plan(device, 1, seq_len, heads, heads, head_dim, true, SIZE_MAX, NULL);
    void *large = allocate_rows(device, rows, qkv), *large_out = allocate_rows(device, rows, out);
    void *small = allocate_rows(device, seq_len, qkv), *small_out = allocate_rows(device, seq_len, out);
    void *logsumexp = allocate_zeroed(device, (size_t)(rows * heads) * sizeof(float));
    void *workspace = allocate_zeroed(device, large_plan.workspace_bytes + small_plan.workspace_bytes + 256);
    fill_tail(device, large, rows, row_at(device, small, seq_len - TAIL, qkv), qkv);
    attention_forward(device, &large_plan, large_out, logsumexp, large, workspace);
    attention_forward(device, &small_plan, small_out, logsumexp, small, workspace);
    check_tail(device, "attention_forward", large_out, rows, row_at(device, small_out, seq_len - TAIL, out),
               out);
    void *const arrays[] = {large, large_out, small, small_out, logsumexp, workspace};
    release_all(device, arrays, COUNT_OF(arrays));
}

// A million tokens: the last entry of the coarsest level is the mean of the last tokens, and the only one
// whose output reaches the last token.
static void lighthouse(void *argument) {
    Device *device = (Device *)argument;
    const Ops *ops = device->ops;
    const LighthouseSettings settings = {4, 4, 4096, 128};
    const LighthouseShape s = lighthouse_shape(&settings, 1, (int64_t)1 << 20, 8, 8, 128);
    const int64_t qkv_width = 3 * 1024, width = 1024;
    void *qkv = allocate_rows(device, s.seq_len, qkv_width), *small = allocate_rows(device, TAIL, qkv_width);
    void *gathered = allocate_rows(device, s.entries, qkv_width),
         *sub_out = allocate_rows(device, s.entries, width);
    void *out = allocate_rows(device, s.seq_len, width);
    void *scores = allocate_zeroed(device, (size_t)(16 * s.pyramid) * sizeof(float));
    int32_t *positions = (int32_t *)allocate_zeroed(device, (size_t)(8 * s.pyramid) * sizeof(int32_t));
    fill_tail(device, qkv, s.seq_len, small, qkv_width);
    ops->selection.pool_scores(scores, &s, device->stream); // all equal: each chunk's first entries win
    ops->selection.select(positions, scores, &s, device->stream);
    ops->gather.forward(gathered, qkv, positions, &s, device->stream);
    double *mean =
        download(device, row_at(device, gathered, s.entries - 1, qkv_width), ops->storage, (size_t)qkv_width);
    double *tokens = download(device, small, ops->storage, (size_t)(TAIL * qkv_width));
    for (int64_t i = 0; i < qkv_width; i++) {
        double sum = 0;
        for (int64_t row = 0; row < TAIL; row++) sum += tokens[row * qkv_width + i] / 64;
        tokens[i] = sum;
    }
    check_close("the last coarsest entry", mean, tokens, (size_t)qkv_width, 4e-3);

    fill_tail(device, sub_out, s.entries, small, width);
    ops->scatter.forward(out, sub_out, NULL, positions, &s, device->stream);
    double *last_token =
        download(device, row_at(device, out, s.seq_len - 1, width), ops->storage, (size_t)width);
    double *last_entry =
        download(device, row_at(device, sub_out, s.entries - 1, width), ops->storage, (size_t)width);
    check_close("the last token", last_token, last_entry, (size_t)width, 4e-3);
    free(mean);
    free(tokens);
    free(last_token);
    free(last_entry);
    void *const arrays[] = {qkv, small, gathered, sub_out, out, scores, positions};
    release_all(device, arrays, COUNT_OF(arrays));
}

void test_large(Device *device) {
    const size_t needed = (size_t)64 << 30;
    size_t free_bytes, total_bytes;
    device->memory(device, &free_bytes, &total_bytes);
    if (strcmp(device->kind, "cuda") != 0) return;
    if (free_bytes < needed) {
        printf("--- arrays beyond 2^31 elements are not tested: that needs 64 GiB of GPU memory\n");
        return;
    }
    test_run("beyond 2^31: norms and SwiGLU", elementwise, device);
    test_run("beyond 2^31: blocks of rows and merged attention", blocks_and_merges, device);
    test_run("beyond 2^31: rope", rotary, device);
    test_run("beyond 2^31: head and loss", logits, device);
    test_run("beyond 2^31: sums and AdamW", flat_buffers, device);
    test_run("beyond 2^31: attention", attention, device);
    test_run("beyond 2^31: Lighthouse at a million tokens", lighthouse, device);
}
