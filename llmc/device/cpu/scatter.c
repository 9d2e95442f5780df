// Scatters the subsequence's outputs to the sequence, computes halos, and the transposes of both.
#include "device/cpu/lighthouse.h"
#include "device/cpu/operations.h"

// The index at which the vector of (piece, batch, level, head) starts in a halo [pieces, batch, levels-1,
// heads, head_dim], which has levels 1 to levels-1.
static int64_t halo_at(int64_t piece, int64_t batch, int level, int64_t head, const LighthouseShape *shape) {
    const int64_t row = (piece * shape->batch + batch) * (shape->levels - 1) + level - 1;
    return (row * shape->heads + head) * shape->head_dim;
}

// The output [head_dim] that one level adds to a token: that of the last entry that ends at or before the
// token. NULL if this entry is not selected or does not exist.
static const storage_t *output_for(const storage_t *sub_out, const storage_t *halo, const int32_t *positions,
                                   int64_t batch, int64_t head, int level, int64_t token,
                                   const LighthouseShape *shape) {
    const int64_t piece_len = shape->seq_len / shape->pieces, piece = token / piece_len;
    const int64_t covered = (int64_t)1 << (level * shape->log2_pool);
    const int64_t index = (token + 1) / covered - 1;
    if (index < piece * piece_len / covered) // the entry is the last one of the piece before
        return halo ? halo + halo_at(piece, batch, level, head, shape) : NULL;
    const int64_t position = position_of(positions, batch, head, level, index, shape);
    const int64_t row = (batch * shape->entries + position) * shape->heads + head;
    return position >= 0 ? sub_out + row * shape->head_dim : NULL;
}

static void scatter(void *out, const void *sub_out, const void *halo, const int32_t *positions,
                    const LighthouseShape *shape, Stream *stream) {
#pragma omp parallel for collapse(3) schedule(static) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t token = 0; token < shape->seq_len; token++)
            for (int64_t head = 0; head < shape->heads; head++) {
                accumulator_t *sum = thread_scratch(stream);
                clear_vector(sum, shape);
                for (int level = 0; level < shape->levels; level++) {
                    const storage_t *from =
                        output_for(sub_out, halo, positions, batch, head, level, token, shape);
                    if (from) add_vector(sum, from, 1, shape);
                }
                const int64_t row = (batch * shape->seq_len + token) * shape->heads + head;
                store_vector((storage_t *)out + row * shape->head_dim, sum, shape);
            }
}

typedef struct {
    const storage_t *out;
    const accumulator_t *halo; // or NULL
} ScatterGradients;

static void scatter_backward_entry(void *grad_sub_out, const void *gradients, Entry entry,
                                   const LighthouseShape *shape, accumulator_t *scratch) {
    const ScatterGradients *grad = gradients;
    const int64_t head_dim = shape->head_dim, stride = shape->heads * head_dim;
    const int64_t covered = (int64_t)1 << (entry.level * shape->log2_pool);
    const int64_t piece_len = shape->seq_len / shape->pieces, piece = entry.index * covered / piece_len;
    const int64_t first = (entry.index + 1) * covered - 1, piece_end = (piece + 1) * piece_len;
    const storage_t *in = grad->out + entry.batch * shape->seq_len * stride + entry.head * head_dim;
    storage_t *out = (storage_t *)grad_sub_out + (entry.batch * shape->entries + entry.position) * stride +
                     entry.head * head_dim;
    sum_tokens(scratch, in, stride, first, min_i64(first + covered, piece_end), 1, shape);
    if (grad->halo && entry.level > 0 && first == piece_end - 1) {
        const accumulator_t *beyond =
            grad->halo + halo_at(piece, entry.batch, entry.level, entry.head, shape);
        for (int64_t d = 0; d < head_dim; d++) scratch[d] += beyond[d];
    }
    store_vector(out, scratch, shape);
}

static void scatter_backward(void *grad_sub_out, const void *grad_out, const void *grad_halo,
                             const int32_t *positions, const LighthouseShape *shape, Stream *stream) {
    const ScatterGradients gradients = {grad_out, grad_halo};
    for_each_selected(scatter_backward_entry, grad_sub_out, &gradients, positions, shape, stream);
}

// --- halos ----------------------------------------------------------------------------------------------

static void make_halo(void *halo, const void *sub_out, const int32_t *positions, const LighthouseShape *shape,
                      Stream *stream) {
    const size_t bytes = (size_t)shape->head_dim * sizeof(storage_t);
#pragma omp parallel for collapse(4) schedule(static) num_threads(stream->threads)
    for (int64_t piece = 0; piece < shape->pieces; piece++)
        for (int64_t batch = 0; batch < shape->batch; batch++)
            for (int level = 1; level < shape->levels; level++)
                for (int64_t head = 0; head < shape->heads; head++) {
                    const int64_t last = (piece + 1) * (level_entries(shape, level) / shape->pieces) - 1;
                    const int64_t position = position_of(positions, batch, head, level, last, shape);
                    const int64_t row = (batch * shape->entries + position) * shape->heads + head;
                    storage_t *out = (storage_t *)halo + halo_at(piece, batch, level, head, shape);
                    if (position >= 0)
                        memcpy(out, (const storage_t *)sub_out + row * shape->head_dim, bytes);
                    else
                        memset(out, 0, bytes);
                }
}

static void halo_backward(void *grad_halo, const void *grad_out, const LighthouseShape *shape,
                          Stream *stream) {
    const int64_t head_dim = shape->head_dim, stride = shape->heads * head_dim;
    const int64_t piece_len = shape->seq_len / shape->pieces;
#pragma omp parallel for collapse(4) schedule(static) num_threads(stream->threads)
    for (int64_t piece = 0; piece < shape->pieces; piece++)
        for (int64_t batch = 0; batch < shape->batch; batch++)
            for (int level = 1; level < shape->levels; level++)
                for (int64_t head = 0; head < shape->heads; head++) {
                    const int64_t count = ((int64_t)1 << (level * shape->log2_pool)) - 1;
                    const storage_t *in = (const storage_t *)grad_out + head * head_dim +
                                          (batch * shape->seq_len + piece * piece_len) * stride;
                    sum_tokens((accumulator_t *)grad_halo + halo_at(piece, batch, level, head, shape), in,
                               stride, 0, count, 1, shape);
                }
}

const ScatterOps CPU_NAME(scatter) = {
    .forward = scatter, .backward = scatter_backward, .halo = make_halo, .halo_backward = halo_backward};
