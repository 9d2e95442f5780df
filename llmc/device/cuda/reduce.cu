// Sums over whole arrays.
#include "device/cuda/operations.cuh"
#include "device/cuda/vector.cuh"

constexpr int SUM_BLOCKS_MAX = 1024;
constexpr int SUM_THREADS = 256;
constexpr int SUM_BATCH = 4; // 16-byte vectors that a thread loads before it uses the first

// The sum over a block's threads; only thread 0 gets it.
__device__ inline double block_sum(double value) {
    __shared__ double sums[SUM_THREADS / WARP];
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = value;
    __syncthreads();
    double total = 0;
    for (int warp = 0; warp < SUM_THREADS / WARP; warp++) total += sums[warp];
    return total;
}

template <bool SQUARED> __device__ inline double sum_term(float x) {
    return SQUARED ? (double)x * (double)x : (double)x;
}

// partials[blockIdx.x] = this block's part of the sum. In a round each thread of the block adds SUM_BATCH
// vectors; the blocks take rounds in turn. The first threads of block 0 add the elements after the last whole
// vector. Reads x once: 4 bytes and 1 or 2 operations per element.
template <bool SQUARED>
__global__ void __launch_bounds__(SUM_THREADS)
    sum_parts_kernel(double *__restrict__ partials, const float *__restrict__ x, int64_t count) {
    const int64_t vectors = count / 4, round = (int64_t)SUM_THREADS * SUM_BATCH;
    double sum = 0;
    for (int64_t first = blockIdx.x * round; first < vectors; first += gridDim.x * round) {
        Floats<4> values[SUM_BATCH] = {};
#pragma unroll
        for (int k = 0; k < SUM_BATCH; k++) {
            const int64_t vector = first + k * SUM_THREADS + threadIdx.x;
            if (vector < vectors) values[k] = load<4>(x + vector * 4);
        }
#pragma unroll
        for (int k = 0; k < SUM_BATCH; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum += sum_term<SQUARED>(values[k].x[i]);
        }
    }
    const int64_t left_over = vectors * 4 + threadIdx.x;
    if (blockIdx.x == 0 && left_over < count) sum += sum_term<SQUARED>(x[left_over]);
    const double total = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

__global__ void __launch_bounds__(SUM_THREADS)
    sum_partials_kernel(double *out, const double *partials, int count) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += SUM_THREADS) sum += partials[i];
    const double total = block_sum(sum);
    if (threadIdx.x == 0) *out = total;
}

template <bool SQUARED>
static void sum_to(double *out, const void *x, int64_t count, const char *name, Stream *stream) {
    OpScope scope(stream, name, 4.0 * (double)count);
    const int64_t blocks = max_i64(1, min_i64(divide_up(count, SUM_THREADS * SUM_BATCH * 4), SUM_BLOCKS_MAX));
    double *partials = (double *)stream->workspace;
    sum_parts_kernel<SQUARED>
        <<<(unsigned)blocks, SUM_THREADS, 0, stream->cuda>>>(partials, (const float *)x, count);
    sum_partials_kernel<<<1, SUM_THREADS, 0, stream->cuda>>>(out, partials, (int)blocks);
}

static void sum(double *out, const void *x, int64_t count, Stream *stream) {
    sum_to<false>(out, x, count, "sum", stream);
}

static void sum_of_squares(double *out, const void *x, int64_t count, Stream *stream) {
    sum_to<true>(out, x, count, "sum_of_squares", stream);
}

const ReduceOps cuda_reduce = {.sum = sum, .sum_of_squares = sum_of_squares};
