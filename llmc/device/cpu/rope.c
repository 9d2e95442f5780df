// Rotary positions, in place, and the norms of what was turned.
#include "device/cpu/operations.h"

#include <tgmath.h>

static accumulator_t norm_of(const storage_t *x, int64_t count) {
    accumulator_t squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < count; j++) squares += load(&x[j]) * load(&x[j]);
    return sqrt(squares);
}

static void rotate(void *x, void *norms, int64_t norms_stride, const void *angles, int64_t batch,
                   int64_t seq_len, int heads, int rotated_heads, int head_dim, bool inverse,
                   Stream *stream) {
    const int64_t half = head_dim / 2;
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t token = 0; token < batch * seq_len; token++) {
        const accumulator_t *angle = (const accumulator_t *)angles + token % seq_len * half * 2;
        for (int64_t head = 0; head < rotated_heads; head++) {
            storage_t *first = (storage_t *)x + (token * heads + head) * head_dim, *second = first + half;
            for (int64_t j = 0; j < half; j++) {
                accumulator_t cosine = angle[2 * j], sine = inverse ? -angle[2 * j + 1] : angle[2 * j + 1];
                accumulator_t a = load(&first[j]), b = load(&second[j]);
                store(&first[j], a * cosine - b * sine);
                store(&second[j], b * cosine + a * sine);
            }
            if (!norms) continue;
            const int64_t row = token / seq_len * rotated_heads + head;
            ((accumulator_t *)norms)[row * norms_stride + token % seq_len] = norm_of(first, head_dim);
        }
    }
}

const RopeOps CPU_NAME(rope) = {.rotate = rotate};
