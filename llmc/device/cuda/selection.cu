// Selects entries of the pyramid for Lighthouse attention, and numbers them in the order of the subsequence.
#include "device/cuda/lighthouse.cuh"
#include "device/cuda/limits.cuh"
#include "device/cuda/operations.cuh"

#include <math.h>

// --- scores of the coarser levels -----------------------------------------------------------------------

// A thread per entry (blockIdx.x) of one level, and row of scores (blockIdx.y, blockIdx.z), takes the maximum
// of its `pool` children. `level` and `below` are the indices in a row at which this level and the next finer
// start.
// Reads 4·pool bytes per entry and writes 4.
__global__ void pool_scores_kernel(float *scores, int64_t pyramid, int64_t below, int64_t level,
                                   int64_t entries, int pool) {
    const int64_t entry = grid_thread();
    if (entry >= entries) return;
    float *row = scores + ((int64_t)blockIdx.z * gridDim.y + blockIdx.y) * pyramid;
    float largest = -INFINITY;
#pragma unroll 4
    for (int i = 0; i < pool; i++) largest = fmaxf(largest, row[below + entry * pool + i]); // ignores NaN
    row[level + entry] = largest;
}

static void lighthouse_pool_scores(void *scores, const LighthouseShape *shape, Stream *stream) {
    const int rows = (int)score_rows(shape);
    OpScope scope(stream, "lighthouse_pool_scores", 4.0 * (double)shape->batch * rows * shape->pyramid);
    for (int level = 1; level < shape->levels; level++) {
        const int block = 256;
        const int64_t entries = level_entries(shape, level);
        const dim3 grid(grid_blocks(entries, block), (unsigned)rows, (unsigned)shape->batch);
        pool_scores_kernel<<<grid, block, 0, stream->cuda>>>(
            (float *)scores, shape->pyramid, level_start(shape, level - 1), level_start(shape, level),
            entries, 1 << shape->log2_pool);
    }
}

// --- selection ------------------------------------------------------------------------------------------
//
// A block selects for one chunk of one head. From the coarsest level down to level 1 it chooses the level's
// parents among its candidates, as a sorted list in shared memory. Then each candidate of each level finds
// its position in the subsequence by counting the selected entries before it.

constexpr int SELECT_THREADS = 512;
constexpr int LOG2_BINS = 11;
constexpr int BINS = 1 << LOG2_BINS;
constexpr int THREAD_BINS = BINS / SELECT_THREADS;

enum Score { QUERY_SCORE, KEY_SCORE, SCORES };

struct SelectShared {
    int bins[BINS]; // a histogram of candidates by merit; zero between passes
    int warps[SELECT_THREADS / WARP];
    struct {
        int bin, above, count;
    } found;
    uint32_t lowest[SCORES], highest[SCORES]; // of the candidates' scores
};

// Maps a score (of a level from 1 on, so never NaN) to an integer of the same order; -0 and +0 become equal.
__device__ inline uint32_t score_rank(float score) {
    const uint32_t bits = __float_as_uint(score), sign = 0x80000000u;
    if (bits == sign) return sign;
    return bits & sign ? ~bits : bits | sign;
}

// A level's candidates in a chunk, numbered from 0 in their order in the sequence.
struct Candidates {
    const float *scores[SCORES]; // scores of all entries of the level
    bool coarsest;               // candidates are the chunk's entries of the coarsest level, from `first` on;
    const int32_t *parents;      // else they are the children of these parents
    int first, count, log2_pool;
    int count_bits; // bits of the largest number, count - 1
    uint2 *cache;   // score_ranks of the first `cached` candidates, for the passes after the first
    int cached;

    __device__ int entry(int c) const {
        if (coarsest) return first + c;
        return (parents[c >> log2_pool] << log2_pool) + (c & ((1 << log2_pool) - 1));
    }
    __device__ uint2 read_ranks(int c) const {
        // __ldg because nvcc 13.0 takes these pointers for shared memory; they are global.
        const int i = entry(c);
        return make_uint2(score_rank(__ldg(scores[QUERY_SCORE] + i)),
                          score_rank(__ldg(scores[KEY_SCORE] + i)));
    }
    __device__ uint2 ranks(int c) const { return c < cached ? cache[c] : read_ranks(c); }

    // The key by which candidates are chosen: the higher score, then the lower number. No two are equal.
    __device__ uint64_t merit(uint32_t rank, int c) const {
        return ((uint64_t)rank << count_bits) | (uint32_t)(count - 1 - c);
    }
};

// Fills the cache, and finds the range of the scores.
__device__ inline void read_candidates(SelectShared &shared, const Candidates &candidates) {
    if (threadIdx.x < SCORES) {
        shared.lowest[threadIdx.x] = UINT32_MAX;
        shared.highest[threadIdx.x] = 0;
    }
    __syncthreads();
    uint2 low = make_uint2(UINT32_MAX, UINT32_MAX), high = make_uint2(0, 0);
    for (int c = threadIdx.x; c < candidates.count; c += SELECT_THREADS) {
        const uint2 ranks = candidates.read_ranks(c);
        if (c < candidates.cached) candidates.cache[c] = ranks;
        low = make_uint2(min(low.x, ranks.x), min(low.y, ranks.y));
        high = make_uint2(max(high.x, ranks.x), max(high.y, ranks.y));
    }
    low = make_uint2(__reduce_min_sync(0xffffffffu, low.x), __reduce_min_sync(0xffffffffu, low.y));
    high = make_uint2(__reduce_max_sync(0xffffffffu, high.x), __reduce_max_sync(0xffffffffu, high.y));
    if (threadIdx.x % WARP == 0) {
        atomicMin(&shared.lowest[QUERY_SCORE], low.x);
        atomicMin(&shared.lowest[KEY_SCORE], low.y);
        atomicMax(&shared.highest[QUERY_SCORE], high.x);
        atomicMax(&shared.highest[KEY_SCORE], high.y);
    }
    __syncthreads();
}

// The sum of `value` over the threads before this one (exclusive prefix sum). All threads must call it, and
// pass a barrier before they call it again.
__device__ inline int sum_before(SelectShared &shared, int value) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int sum = value;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, distance);
        if (lane >= distance) sum += other;
    }
    if (lane == WARP - 1) shared.warps[warp] = sum;
    __syncthreads();
    for (int before = 0; before < warp; before++) sum += shared.warps[before];
    return sum - value;
}

// Sets shared.found: the bin that holds the `wanted`-th best candidate, the number of candidates in higher
// bins, and the number in it. Sets the bins to zero.
__device__ inline void find_bin(SelectShared &shared, int wanted) {
    const int first = BINS - (int)(threadIdx.x + 1) * THREAD_BINS; // thread 0 has the highest bins
    int counts[THREAD_BINS], sum = 0;
#pragma unroll
    for (int i = 0; i < THREAD_BINS; i++) {
        counts[i] = shared.bins[first + i];
        shared.bins[first + i] = 0;
        sum += counts[i];
    }
    int above = sum_before(shared, sum);
#pragma unroll
    for (int i = THREAD_BINS - 1; i >= 0; i--) {
        if (above < wanted && wanted <= above + counts[i]) shared.found = {first + i, above, counts[i]};
        above += counts[i];
    }
    __syncthreads();
}

// Radix selection. Of the candidates whose merit by query score is below `taken`, the `wanted` best by
// `score` are those whose merit by `score` is at least the returned one. Each pass makes a histogram of the
// merits in [low, high] and narrows this range to the bin that holds the `wanted`-th, until all of a bin are
// wanted.
__device__ inline uint64_t least_chosen(SelectShared &shared, const Candidates &candidates, Score score,
                                        uint64_t taken, int wanted) {
    uint64_t low = (uint64_t)shared.lowest[score] << candidates.count_bits;
    uint64_t high = (((uint64_t)shared.highest[score] + 1) << candidates.count_bits) - 1;
    for (;;) {
        const int shift = max(0, 64 - __clzll((long long)(high - low)) - LOG2_BINS);
        for (int c = threadIdx.x; c < candidates.count; c += SELECT_THREADS) {
            const uint2 ranks = candidates.ranks(c);
            if (candidates.merit(ranks.x, c) >= taken) continue;
            const uint64_t merit = candidates.merit(score == QUERY_SCORE ? ranks.x : ranks.y, c);
            if (low <= merit && merit <= high) atomicAdd(&shared.bins[(merit - low) >> shift], 1);
        }
        __syncthreads();
        find_bin(shared, wanted);
        low += (uint64_t)shared.found.bin << shift;
        wanted -= shared.found.above;
        if (wanted == shared.found.count) return low;
        high = low + ((uint64_t)1 << shift) - 1;
    }
}

// parents[tile] = the tile/2 candidates with the best query scores and, of the rest, the tile/2 with the best
// key scores, as indices of entries in ascending order.
__device__ inline void choose_parents(SelectShared &shared, int32_t *parents, const Candidates &candidates,
                                      int tile) {
    read_candidates(shared, candidates);
    const uint64_t by_query = least_chosen(shared, candidates, QUERY_SCORE, UINT64_MAX, tile / 2);
    const uint64_t by_key = least_chosen(shared, candidates, KEY_SCORE, by_query, tile / 2);
    auto chosen = [&](int c) {
        const uint2 ranks = candidates.ranks(c);
        return candidates.merit(ranks.x, c) >= by_query || candidates.merit(ranks.y, c) >= by_key;
    };
    const int share = (candidates.count + SELECT_THREADS - 1) / SELECT_THREADS; // a thread's candidates
    const int first = min((int)threadIdx.x * share, candidates.count);
    const int end = min(first + share, candidates.count);
    int count = 0;
    for (int c = first; c < end; c++) count += chosen(c);
    int place = sum_before(shared, count);
    for (int c = first; c < end; c++)
        if (chosen(c)) parents[place++] = candidates.entry(c);
    __syncthreads();
}

// The number of candidates of `level` in the chunk, which are the children of `parents`, that end before
// token `token`: all children of the parents before the one that covers the token, and some children of that
// one.
__device__ inline int ended_children(const int32_t *parents, int tile, int token, int level, int log2_pool) {
    const int parent_bits = (level + 1) * log2_pool, parent = token >> parent_bits;
    int before = 0, after = tile; // parents[before - 1] < parent <= parents[after]
    while (before < after) {
        const int middle = (before + after) / 2;
        if (parents[middle] < parent)
            before = middle + 1;
        else
            after = middle;
    }
    const bool inside = before < tile && parents[before] == parent;
    const int partly = (token & ((1 << parent_bits) - 1)) >> (level * log2_pool);
    return (before << log2_pool) + (inside ? partly : 0);
}

// The position of candidate (level, entry) among its chunk's selected entries, in post-order. Before it are
// the entries of its own and of coarser levels that end before it begins, and the entries of finer levels
// that end no later than it. Row l of parents[levels - 1][tile] holds the parents of level l + 1, whose
// children are the candidates of level l; first_coarsest is the chunk's first entry of the coarsest level.
__device__ inline int place_in_chunk(const int32_t *parents, const LighthouseShape &shape, int first_coarsest,
                                     int level, int entry) {
    const int begin = entry << (level * shape.log2_pool), end = (entry + 1) << (level * shape.log2_pool);
    int place = (begin >> ((shape.levels - 1) * shape.log2_pool)) - first_coarsest;
    for (int other = 0; other < shape.levels - 1; other++)
        place += ended_children(parents + other * shape.tile, shape.tile, other < level ? end : begin, other,
                                shape.log2_pool);
    return place;
}

// A block per chunk (blockIdx.x), query head (blockIdx.y) and batch (blockIdx.z). Dynamic shared memory holds
// the ranks of `cached` candidates, then the parents of levels 1 to levels - 1. Reads both scores of every
// candidate of these levels and writes all positions: 8 bytes per candidate and 4 per entry.
__global__ void __launch_bounds__(SELECT_THREADS, 2)
    select_kernel(int32_t *__restrict__ positions, const float *__restrict__ scores, LighthouseShape shape,
                  int cached) {
    extern __shared__ uint2 select_memory[];
    __shared__ SelectShared shared;
    int32_t *parents = reinterpret_cast<int32_t *>(select_memory + cached); // [levels - 1, tile]
    const int64_t chunk = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
    const int64_t rows = shape.heads + shape.key_score_heads;
    const int key_head = (int)blockIdx.y / (shape.heads / shape.key_score_heads);
    const float *query_scores = scores + (batch * rows + head) * shape.pyramid;
    const float *key_scores = scores + (batch * rows + shape.heads + key_head) * shape.pyramid;
    int32_t *places = positions + (batch * shape.heads + head) * shape.pyramid;

    for (int i = threadIdx.x; i < BINS; i += SELECT_THREADS) shared.bins[i] = 0;
    const int coarsest = shape.levels - 1, children = shape.tile << shape.log2_pool;
    const int coarsest_count =
        (int)(shape.seq_len >> (coarsest * shape.log2_pool)) / (int)shape.chunks; // in one chunk
    const int first_coarsest = (int)chunk * coarsest_count;
    int64_t start = 0; // index of the level's first entry in the pyramid
    for (int level = 0; level < coarsest; level++) {
        const int count = coarsest_count << ((coarsest - level) * shape.log2_pool);
        int32_t *chunk_places = places + start + chunk * count;
        for (int i = threadIdx.x; i < count; i += SELECT_THREADS) chunk_places[i] = -1;
        start += shape.seq_len >> (level * shape.log2_pool);
    }

    auto level_candidates = [&](int level) {
        Candidates candidates;
        candidates.scores[QUERY_SCORE] = query_scores + start;
        candidates.scores[KEY_SCORE] = key_scores + start;
        candidates.coarsest = level == coarsest;
        candidates.parents = parents + level * shape.tile; // not used at the coarsest level
        candidates.first = first_coarsest;
        candidates.count = level < coarsest ? children : coarsest_count;
        candidates.log2_pool = shape.log2_pool;
        candidates.count_bits = 32 - __clz(candidates.count - 1);
        candidates.cache = select_memory;
        candidates.cached = cached;
        return candidates;
    };
    for (int level = coarsest; level > 0; level--) {
        choose_parents(shared, parents + (level - 1) * shape.tile, level_candidates(level), shape.tile);
        start -= shape.seq_len >> ((level - 1) * shape.log2_pool);
    }

    const int chunk_entries = coarsest_count + coarsest * children, first_place = (int)chunk * chunk_entries;
    for (int level = 0; level < shape.levels; level++) {
        const Candidates candidates = level_candidates(level);
        for (int c = threadIdx.x; c < candidates.count; c += SELECT_THREADS) {
            const int entry = candidates.entry(c);
            places[start + entry] =
                first_place + place_in_chunk(parents, shape, first_coarsest, level, entry);
        }
        start += shape.seq_len >> (level * shape.log2_pool);
    }
}

// --- limits of a GPU ------------------------------------------------------------------------------------

static int64_t select_parent_bytes(const LighthouseShape *shape) {
    return (int64_t)(shape->levels - 1) * shape->tile * (int64_t)sizeof(int32_t);
}

// Bytes of dynamic shared memory that select_kernel may use: all of a multiprocessor's, less 1 KiB that CUDA
// keeps and the static part.
static int64_t select_memory_bytes(const Stream *stream) {
    return (int64_t)stream->shared_memory - 1024 - (int64_t)sizeof(SelectShared);
}

static bool lighthouse_supported(const LighthouseShape *shape, Reason *reason, const Stream *stream) {
    const int64_t picks = select_memory_bytes(stream) / (int64_t)sizeof(int32_t);
    if (shape->levels > LEVELS_MAX)
        return fail(reason, "--levels %d is more than CUDA devices take: at most %d", shape->levels,
                    LEVELS_MAX);
    if ((shape->levels - 1) * (int64_t)shape->tile > picks)
        return fail(
            reason,
            "--topk-tile %d in each of --levels %d - 1 is more than this GPU's shared memory takes: at most "
            "%ld, or fewer levels",
            shape->tile, shape->levels, (long)(picks / (shape->levels - 1) / 2 * 2));
    return true;
}

void check_supported(const LighthouseShape *shape, const Stream *stream) {
    Reason reason;
    if (!lighthouse_supported(shape, &reason, stream)) fatal("%s", reason.text);
}

static void lighthouse_select(int32_t *positions, const void *scores, const LighthouseShape *shape,
                              Stream *stream) {
    const double heads = (double)shape->batch * shape->heads;
    const int64_t children = (int64_t)shape->tile << shape->log2_pool;
    OpScope scope(
        stream, "lighthouse_select",
        heads * (4.0 * (double)shape->pyramid + 8.0 * (double)(shape->entries - children * shape->chunks)));
    check_supported(shape, stream);
    const int64_t coarsest = level_entries(shape, shape->levels - 1) / shape->chunks;
    const int64_t parents = select_parent_bytes(shape), room = select_memory_bytes(stream) - parents;
    const int64_t cached = min_i64(max_i64(coarsest, children), room / (int64_t)sizeof(uint2));
    const size_t shared = (size_t)(cached * (int64_t)sizeof(uint2) + parents);
    CUDA_CHECK(cudaFuncSetAttribute(select_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    const dim3 grid((unsigned)shape->chunks, (unsigned)shape->heads, (unsigned)shape->batch);
    select_kernel<<<grid, SELECT_THREADS, shared, stream->cuda>>>(positions, (const float *)scores, *shape,
                                                                  (int)cached);
}

const SelectionOps cuda_selection = {
    .supported = lighthouse_supported, .pool_scores = lighthouse_pool_scores, .select = lighthouse_select};
