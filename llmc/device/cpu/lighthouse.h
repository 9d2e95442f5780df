// What gathering and scattering have in common: sums of vectors of a head, and a walk through the selected
// entries.
#pragma once
#include "device/cpu/storage_types.h"

// Query head `head` takes its keys and values from this head.
static inline int64_t kv_head_of(int64_t head, const LighthouseShape *shape) {
    return head / (shape->heads / shape->kv_heads);
}

// Where the query, key or value (part 0, 1, 2) of a query head is among the heads of a gathered entry.
static inline int64_t gathered_head(int part, int64_t head, const LighthouseShape *shape) {
    return part * shape->heads + head;
}

// --- vectors of a head ----------------------------------------------------------------------------------

// sum[head_dim] += scale · from.
static inline void add_vector(accumulator_t *sum, const storage_t *from, accumulator_t scale,
                              const LighthouseShape *shape) {
    for (int64_t d = 0; d < shape->head_dim; d++) sum[d] += scale * load(&from[d]);
}

static inline void clear_vector(accumulator_t *sum, const LighthouseShape *shape) {
    memset(sum, 0, (size_t)shape->head_dim * sizeof(*sum));
}

static inline void store_vector(storage_t *out, const accumulator_t *sum, const LighthouseShape *shape) {
    for (int64_t d = 0; d < shape->head_dim; d++) store(&out[d], sum[d]);
}

// sum = scale · the sum of the vectors of tokens [first, end), which lie `stride` elements apart from `in`
// on.
static inline void sum_tokens(accumulator_t *sum, const storage_t *in, int64_t stride, int64_t first,
                              int64_t end, accumulator_t scale, const LighthouseShape *shape) {
    clear_vector(sum, shape);
    for (int64_t token = first; token < end; token++) add_vector(sum, in + token * stride, scale, shape);
}

// --- selected entries -----------------------------------------------------------------------------------

// A selected entry: where it is in the pyramid and in the subsequence.
typedef struct {
    int64_t batch, head, index, position;
    int level;
} Entry;

typedef void EntryFunction(void *out, const void *in, Entry entry, const LighthouseShape *shape,
                           accumulator_t *scratch);

// Calls `function` for all selected entries of all heads.
static inline void for_each_selected(EntryFunction *function, void *out, const void *in,
                                     const int32_t *positions, const LighthouseShape *shape,
                                     const Stream *stream) {
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t head = 0; head < shape->heads; head++)
            for (int64_t chunk = 0; chunk < shape->chunks; chunk++)
                for (int level = 0; level < shape->levels; level++) {
                    const int64_t count = level_entries(shape, level) / shape->chunks;
                    const int32_t *row = positions + (batch * shape->heads + head) * shape->pyramid +
                                         level_start(shape, level);
                    for (int64_t i = chunk * count; i < (chunk + 1) * count; i++)
                        if (row[i] >= 0)
                            function(out, in, (Entry){batch, head, i, row[i], level}, shape,
                                     thread_scratch(stream));
                }
}

// The position of (level, index) for this head, or -1.
static inline int64_t position_of(const int32_t *positions, int64_t batch, int64_t head, int level,
                                  int64_t index, const LighthouseShape *shape) {
    return positions[(batch * shape->heads + head) * shape->pyramid + level_start(shape, level) + index];
}
