// What selecting, gathering and scattering have in common: the layout of a pyramid, and a walk that sums the
// blocks of every level.
#pragma once
#include "device/cuda/limits.cuh"
#include "device/cuda/vector.cuh"

// Ends the program if the GPU cannot do this shape (SelectionOps.supported).
void check_supported(const LighthouseShape *shape, const Stream *stream);

// kernels[levels - 2] of a table of kernels for 2 … LEVELS_MAX levels.
#define LEVELS_TABLE(kernel)                                                                                 \
    { kernel<2>, kernel<3>, kernel<4>, kernel<5>, kernel<6>, kernel<7>, kernel<8> }
static_assert(LEVELS_MAX == 8, "LEVELS_TABLE ends there");

// What the positions and one array [batch, entries, heads_each, head_dim] of the subsequence take.
static inline double subsequence_bytes(const LighthouseShape *shape, int heads_each) {
    const double batch = (double)shape->batch;
    return batch * (4.0 * shape->heads * (double)shape->pyramid +
                    2.0 * (double)shape->entries * heads_each * shape->head_dim);
}

// What an array [batch, seq_len, heads_each, head_dim] takes.
static inline double sequence_bytes(const LighthouseShape *shape, int heads_each) {
    return 2.0 * (double)shape->batch * (double)shape->seq_len * heads_each * shape->head_dim;
}

// A grid of `rows` rows of threads for each sequence (blockIdx.z), a thread per vector of `heads_each` heads.
static inline RowGrid sequence_grid(const LighthouseShape *shape, int64_t rows, int heads_each) {
    RowGrid launch = row_grid(rows, (int64_t)heads_each * shape->head_dim / WIDTH);
    launch.grid.z = (unsigned)shape->batch;
    return launch;
}

// Where a level starts in a head's pyramid: level_start of shapes.h for a level known to the compiler.
__device__ inline int64_t pyramid_start(const LighthouseShape &shape, int level) {
    int64_t start = 0;
#pragma unroll
    for (int below = 0; below < level; below++) start += shape.seq_len >> (below * shape.log2_pool);
    return start;
}

// --- sums over a sequence's blocks ----------------------------------------------------------------------

constexpr int WALK_ROWS = 16; // that a thread goes through, unless a block of the coarsest level has more
constexpr int WALK_BATCH = 4; // whose loads are under way together

static inline int walk_rows(const LighthouseShape *shape) {
    return (int)max_i64(WALK_ROWS, (int64_t)1 << ((shape->levels - 1) * shape->log2_pool));
}

// Goes through rows first … end - 1, load(row) giving 8 columns of one, and hands out the sum of each block
// of pool^level rows as soon as it is complete (at row `last` all are) by put(level, block's index, place,
// sum), with place(level, index) read ahead.
template <int LEVELS, typename Load, typename Place, typename Put>
__device__ inline void walk(int first, int end, int last, int log2_pool, Load load, Place place, Put put) {
    Floats<8> sums[LEVELS - 1] = {}; // of the blocks of levels 1 … LEVELS - 1 so far
    for (int start = first; start < end; start += WALK_BATCH) {
        uint4 packed[WALK_BATCH];
        int32_t places[WALK_BATCH];
#pragma unroll
        for (int k = 0; k < WALK_BATCH; k++) {
            packed[k] = start + k < end ? load(start + k) : make_uint4(0, 0, 0, 0);
            places[k] = start + k < end ? place(0, start + k) : -1;
        }
#pragma unroll
        for (int k = 0; k < WALK_BATCH; k++) {
            const int row = start + k;
            if (row >= end) break;
            Floats<8> block = unpack(packed[k]);
            put(0, row, places[k], block);
#pragma unroll
            for (int level = 1; level < LEVELS; level++) {
                add_scaled(sums[level - 1], 1, block);
                const int rows = 1 << (level * log2_pool), index = row >> (level * log2_pool);
                if (((row + 1) & (rows - 1)) != 0 && row != last) break;
                block = sums[level - 1];
                sums[level - 1] = {};
                put(level, index, place(level, index), block);
            }
        }
    }
}
