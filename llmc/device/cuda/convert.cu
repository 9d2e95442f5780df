// Conversions between the storage type and the accumulator type, element by element.
#include "device/cuda/operations.cuh"
#include "device/cuda/vector.cuh"

// Transfers N neighbouring elements, by their types: storage is added to an accumulator, storage is copied to
// storage, an accumulator is rounded to storage.
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

// N = 8 if rows and strides are whole vectors, else N = 1. Reads `in` once and writes `out` once, which
// accumulating also reads: 10 bytes per element to accumulate, 4 to copy, 6 to round; at most 1 operation.
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

// A thread rounds a vector of 8 elements; the thread after the last whole vector rounds the remaining
// elements.
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

const ConvertOps cuda_convert = {.accumulate_rows = accumulate_rows,
                                 .copy_rows = copy_rows,
                                 .round_rows = round_rows,
                                 .round_to_storage = round_to_storage};
