// Sums over whole arrays, and the element-wise conversions between the storage and the accumulator type.
#pragma once
#include "device/cuda/vector.cuh"

// --- sums -----------------------------------------------------------------------------------------------

constexpr int SUM_BLOCKS_MAX = 1024;
constexpr int SUM_THREADS = 256;
constexpr int SUM_BATCH = 4; // 16-byte vectors of a thread whose loads are under way together

// The sum over a block's threads, in thread 0.
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

// partials[blockIdx.x] = this block's part of the sum: every gridDim.x-th round of SUM_BATCH vectors per
// thread; the elements after the last whole vector go to the first threads of block 0. Reads x once: 4 bytes
// and 1 or 2 operations per element.
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

// --- conversions ----------------------------------------------------------------------------------------

// What is done with N neighbouring elements follows from their types: in is added to an accumulator, copied
// as it is, or rounded to storage.
template <int N> __device__ inline void transfer(float *to, const bf16 *from) {
    if constexpr (N == 1) {
        *to += __bfloat162float(*from);
    } else {
        Floats<N> total = load<N>(to);
        const Floats<N> values = load<N>(from);
#pragma unroll
        for (int i = 0; i < N; i++) total.x[i] += values.x[i];
        store(to, total);
    }
}

template <int N> __device__ inline void transfer(bf16 *to, const bf16 *from) {
    if constexpr (N == 1)
        *to = *from;
    else
        store_packed(to, load_packed(from));
}

template <int N> __device__ inline void transfer(bf16 *to, const float *from) {
    if constexpr (N == 1)
        *to = __float2bfloat16_rn(*from);
    else
        store(to, load<N>(from));
}

// N = 8: rows and strides are whole vectors; N = 1: any. Reads in once and writes out once, to accumulate
// reads it too: 10 bytes per element to accumulate, 4 to copy, 6 to round; at most 1 operation.
template <int N, typename Out, typename In>
__global__ void rows_kernel(Out *__restrict__ out, int64_t out_stride, const In *__restrict__ in,
                            int64_t in_stride, int64_t rows, int64_t columns) {
    const int64_t row = grid_row(), column = grid_vector() * N;
    if (row >= rows || column >= columns) return;
    transfer<N>(out + row * out_stride + column, in + row * in_stride + column);
}

template <typename Out, typename In>
static void transfer_rows(Out *out, int64_t out_stride, const In *in, int64_t in_stride, int64_t rows,
                          int64_t columns, Stream *stream) {
    if (rows == 0 || columns == 0) return;
    const bool whole =
        (columns | out_stride | in_stride) % WIDTH == 0 && ((uintptr_t)out | (uintptr_t)in) % 16 == 0;
    const RowGrid shape = row_grid(rows, whole ? columns / WIDTH : columns);
    auto kernel = whole ? rows_kernel<WIDTH, Out, In> : rows_kernel<1, Out, In>;
    kernel<<<shape.grid, shape.block, 0, stream->cuda>>>(out, out_stride, in, in_stride, rows, columns);
}

static void accumulate_rows(void *out, int64_t out_stride, const void *in, int64_t in_stride, int64_t rows,
                            int64_t columns, Stream *stream) {
    OpScope scope(stream, "accumulate_rows", 10.0 * (double)rows * (double)columns);
    transfer_rows((float *)out, out_stride, (const bf16 *)in, in_stride, rows, columns, stream);
}

static void copy_rows(void *out, int64_t out_stride, const void *in, int64_t in_stride, int64_t rows,
                      int64_t columns, Stream *stream) {
    OpScope scope(stream, "copy_rows", 4.0 * (double)rows * (double)columns);
    transfer_rows((bf16 *)out, out_stride, (const bf16 *)in, in_stride, rows, columns, stream);
}

static void round_rows(void *out, int64_t out_stride, const void *in, int64_t in_stride, int64_t rows,
                       int64_t columns, Stream *stream) {
    OpScope scope(stream, "round_rows", 6.0 * (double)rows * (double)columns);
    transfer_rows((bf16 *)out, out_stride, (const float *)in, in_stride, rows, columns, stream);
}

// A thread takes a vector of 8 elements; the thread after the last whole vector takes what is left over.
// Reads 4 and writes 2 bytes per element.
__global__ void __launch_bounds__(256)
    round_to_storage_kernel(bf16 *__restrict__ out, const float *__restrict__ in, int64_t count) {
    const int64_t start = grid_thread() * WIDTH;
    if (start + WIDTH <= count)
        store(out + start, load<8>(in + start));
    else
        for (int64_t i = start; i < count; i++) out[i] = __float2bfloat16_rn(in[i]);
}

static void round_to_storage(void *out, const void *in, int64_t count, Stream *stream) {
    OpScope scope(stream, "round_to_storage", 6.0 * (double)count);
    if (count == 0) return;
    const int block = 256;
    round_to_storage_kernel<<<grid_blocks(divide_up(count, WIDTH), block), block, 0, stream->cuda>>>(
        (bf16 *)out, (const float *)in, count);
}
