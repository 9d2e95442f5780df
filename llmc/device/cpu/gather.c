// From the sequence to the subsequence of the selected entries, and back for the gradients.
#include "device/cpu/lighthouse.h"
#include "device/cpu/operations.h"

#include <math.h>

// 1 / the tokens that an entry of the level covers.
static accumulator_t share_of_token(int level, const LighthouseShape *shape) {
    return (accumulator_t)ldexp(1, -level * shape->log2_pool);
}

// Where query, key and value heads (part 0, 1, 2) begin among a token's heads of qkv, where query heads share a
// key head.
static int64_t qkv_head(int part, int64_t head, const LighthouseShape *shape) {
    return part == 0 ? head : shape->heads + (part - 1) * shape->kv_heads + kv_head_of(head, shape);
}

static void gather_entry(void *gathered, const void *qkv, Entry entry, const LighthouseShape *shape,
                         accumulator_t *scratch) {
    const int64_t head_dim = shape->head_dim, covered = (int64_t)1 << (entry.level * shape->log2_pool);
    const int64_t stride = (shape->heads + 2 * shape->kv_heads) * head_dim;
    const storage_t *in = (const storage_t *)qkv + entry.batch * shape->seq_len * stride;
    storage_t *out =
        (storage_t *)gathered + (entry.batch * shape->entries + entry.position) * 3 * shape->heads * head_dim;
    for (int part = 0; part < 3; part++) {
        sum_tokens(scratch, in + qkv_head(part, entry.head, shape) * head_dim, stride, entry.index * covered,
                   (entry.index + 1) * covered, share_of_token(entry.level, shape), shape);
        store_vector(out + gathered_head(part, entry.head, shape) * head_dim, scratch, shape);
    }
}

static void gather(void *gathered, const void *qkv, const int32_t *positions, const LighthouseShape *shape,
                   Stream *stream) {
    for_each_selected(gather_entry, gathered, qkv, positions, shape, stream);
}

// Adds what a token's query, key or value (part 0, 1, 2) gets from one query head's entries, finest first.
static void add_from_levels(accumulator_t *sum, const storage_t *grad_gathered, const int32_t *positions,
                            int part, int64_t batch, int64_t head, int64_t token,
                            const LighthouseShape *shape) {
    for (int level = 0; level < shape->levels; level++) {
        const int64_t position =
            position_of(positions, batch, head, level, token >> (level * shape->log2_pool), shape);
        if (position < 0) continue;
        const int64_t row = (batch * shape->entries + position) * 3 * shape->heads;
        add_vector(sum, grad_gathered + (row + gathered_head(part, head, shape)) * shape->head_dim,
                   share_of_token(level, shape), shape);
    }
}

// The inverse of rope on one head; angle is the token's A[head_dim/2, 2].
static void turn_back(accumulator_t *x, const accumulator_t *angle, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t j = 0; j < half; j++) {
        const accumulator_t cosine = angle[2 * j], sine = angle[2 * j + 1], a = x[j], b = x[j + half];
        x[j] = a * cosine + b * sine;
        x[j + half] = b * cosine - a * sine;
    }
}

static void gather_backward_token(storage_t *grad_qkv, const storage_t *grad_gathered,
                                  const int32_t *positions, const accumulator_t *angles, int64_t batch,
                                  int64_t token, const LighthouseShape *shape, accumulator_t *sum) {
    const int64_t group = shape->heads / shape->kv_heads;
    storage_t *out =
        grad_qkv + (batch * shape->seq_len + token) * (shape->heads + 2 * shape->kv_heads) * shape->head_dim;
    for (int part = 0; part < 3; part++) {
        const int64_t readers = part == 0 ? 1 : group; // query heads that use one head of this part
        for (int64_t head = 0; head < shape->heads; head += readers) {
            clear_vector(sum, shape);
            for (int64_t reader = head; reader < head + readers; reader++)
                add_from_levels(sum, grad_gathered, positions, part, batch, reader, token, shape);
            if (angles && part < 2) turn_back(sum, angles + token * shape->head_dim, shape->head_dim);
            store_vector(out + qkv_head(part, head, shape) * shape->head_dim, sum, shape);
        }
    }
}

static void gather_backward(void *grad_qkv, const void *grad_gathered, const int32_t *positions,
                            const void *angles, const LighthouseShape *shape, Stream *stream) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t token = 0; token < shape->seq_len; token++)
            gather_backward_token(grad_qkv, grad_gathered, positions, angles, batch, token, shape,
                                  thread_scratch(stream));
}

const GatherOps CPU_NAME(gather) = {.forward = gather, .backward = gather_backward};
