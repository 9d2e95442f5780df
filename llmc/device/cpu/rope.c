// Rotary positions, in place, and norms of heads, turned or not.
#include "device/cpu/lighthouse.h"
#include "device/cpu/operations.h"

#include <tgmath.h>

static accumulator_t norm_of(const storage_t *x, int64_t count) {
    accumulator_t squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < count; j++) squares += load(&x[j]) * load(&x[j]);
    return sqrt(squares);
}

// Turns a head by the angles A[head_dim/2, 2] of its position.
static void rotate_head(storage_t *head, const accumulator_t *angle, int64_t head_dim, bool inverse) {
    const int64_t half = head_dim / 2;
    storage_t *first = head, *second = head + half;
    for (int64_t j = 0; j < half; j++) {
        accumulator_t cosine = angle[2 * j], sine = inverse ? -angle[2 * j + 1] : angle[2 * j + 1];
        accumulator_t a = load(&first[j]), b = load(&second[j]);
        store(&first[j], a * cosine - b * sine);
        store(&second[j], b * cosine + a * sine);
    }
}

static void rotate(void *x, void *norms, int64_t norms_stride, const void *angles, int64_t batch,
                   int64_t seq_len, int heads, int rotated_heads, int head_dim, bool inverse,
                   Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t token = 0; token < batch * seq_len; token++) {
        const accumulator_t *angle = (const accumulator_t *)angles + token % seq_len * head_dim;
        for (int64_t head = 0; head < rotated_heads; head++) {
            storage_t *at = (storage_t *)x + (token * heads + head) * head_dim;
            rotate_head(at, angle, head_dim, inverse);
            if (!norms) continue;
            const int64_t row = token / seq_len * rotated_heads + head;
            ((accumulator_t *)norms)[row * norms_stride + token % seq_len] = norm_of(at, head_dim);
        }
    }
}

static void head_norms(void *norms, int64_t norms_stride, const void *x, int64_t batch, int64_t seq_len,
                       int heads, int normed_heads, int head_dim, Stream *stream) {
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t token = 0; token < batch * seq_len; token++)
        for (int64_t head = 0; head < normed_heads; head++) {
            const int64_t row = token / seq_len * normed_heads + head;
            ((accumulator_t *)norms)[row * norms_stride + token % seq_len] =
                norm_of((const storage_t *)x + (token * heads + head) * head_dim, head_dim);
        }
}

static void rotate_entry(void *gathered, const void *angles, Entry entry, const LighthouseShape *shape,
                         bool inverse) {
    const int64_t token = ((entry.index + 1) << (entry.level * shape->log2_pool)) - 1;
    const int64_t row = (entry.batch * shape->entries + entry.position) * 3 * shape->heads;
    for (int part = 0; part < 2; part++)
        rotate_head((storage_t *)gathered + (row + gathered_head(part, entry.head, shape)) * shape->head_dim,
                    (const accumulator_t *)angles + token * shape->head_dim, shape->head_dim, inverse);
}

static void rotate_entry_forwards(void *gathered, const void *angles, Entry entry,
                                  const LighthouseShape *shape, accumulator_t *scratch) {
    (void)scratch;
    rotate_entry(gathered, angles, entry, shape, false);
}

static void rotate_entry_back(void *gathered, const void *angles, Entry entry, const LighthouseShape *shape,
                              accumulator_t *scratch) {
    (void)scratch;
    rotate_entry(gathered, angles, entry, shape, true);
}

static void rotate_entries(void *gathered, const int32_t *positions, const void *angles,
                           const LighthouseShape *shape, bool inverse, Stream *stream) {
    for_each_selected(inverse ? rotate_entry_back : rotate_entry_forwards, gathered, angles, positions, shape,
                      stream);
}

const RopeOps CPU_NAME(rope) = {.rotate = rotate, .norms = head_norms, .rotate_entries = rotate_entries};
