// Shared by the kernels: 16-byte loads and stores, sums over threads, and shapes of grids.
#pragma once
#include "device/cuda/stream.cuh"

#include <cuda_bf16.h>

typedef __nv_bfloat16 bf16;

// --- vectors --------------------------------------------------------------------------------------------

// Arrays are read and written in vectors of 8 bf16 values, 16 bytes, at addresses that are multiples of 16.
constexpr int WIDTH = 8;

// Values in registers, in float, the type of all arithmetic.
template <int N> struct Floats { float x[N]; };

// Two bf16 values of one 32-bit word; out[0] is the one at the lower address.
__device__ inline void unpack2(float *out, uint32_t word) {
    out[0] = __uint_as_float(word << 16);
    out[1] = __uint_as_float(word & 0xffff0000u);
}

__device__ inline uint32_t pack2(const float *in) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(in[0], in[1]);
    return *reinterpret_cast<const uint32_t *>(&pair);
}

__device__ inline Floats<8> unpack(uint4 packed) {
    Floats<8> values;
    unpack2(values.x, packed.x);
    unpack2(values.x + 2, packed.y);
    unpack2(values.x + 4, packed.z);
    unpack2(values.x + 6, packed.w);
    return values;
}

__device__ inline Floats<4> unpack(uint2 packed) {
    Floats<4> values;
    unpack2(values.x, packed.x);
    unpack2(values.x + 2, packed.y);
    return values;
}

__device__ inline uint4 pack(const Floats<8> &values) {
    return make_uint4(pack2(values.x), pack2(values.x + 2), pack2(values.x + 4), pack2(values.x + 6));
}

__device__ inline uint2 pack(const Floats<4> &values) {
    return make_uint2(pack2(values.x), pack2(values.x + 2));
}

// Loads a vector without unpacking it: this takes half the registers until the values are needed.
__device__ inline uint4 load_packed(const bf16 *from) {
    return *reinterpret_cast<const uint4 *>(from);
}

// The same for data that is read only once and need not stay in the cache.
__device__ inline uint4 load_streaming(const bf16 *from) {
    return __ldcs(reinterpret_cast<const uint4 *>(from));
}

// Keeps the compiler from unpacking the vector before this point, which would take twice the registers.
__device__ inline void stay_packed(uint4 &packed) {
    asm volatile("" : "+r"(packed.x), "+r"(packed.y), "+r"(packed.z), "+r"(packed.w));
}

template <int N> __device__ inline Floats<N> load(const bf16 *from);

template <> __device__ inline Floats<8> load<8>(const bf16 *from) {
    return unpack(load_packed(from));
}

template <> __device__ inline Floats<4> load<4>(const bf16 *from) {
    return unpack(*reinterpret_cast<const uint2 *>(from));
}

template <int N> __device__ inline Floats<N> load(const float *from) {
    static_assert(N % 4 == 0, "whole 16-byte vectors");
    Floats<N> values;
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        const float4 four = *reinterpret_cast<const float4 *>(from + i);
        values.x[i] = four.x;
        values.x[i + 1] = four.y;
        values.x[i + 2] = four.z;
        values.x[i + 3] = four.w;
    }
    return values;
}

// Stores to global memory, in assembly because nvcc splits some of these 16-byte stores into four.
__device__ inline void store_packed(bf16 *to, uint4 packed) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(packed.x), "r"(packed.y), "r"(packed.z), "r"(packed.w)
                 : "memory");
}

__device__ inline void store(bf16 *to, const Floats<8> &values) {
    store_packed(to, pack(values));
}

__device__ inline void store(bf16 *to, const Floats<4> &values) {
    *reinterpret_cast<uint2 *>(to) = pack(values);
}

// Stores data that is too large to stay in the cache until it is read, without evicting other data for it.
__device__ inline void store_streaming(bf16 *to, const Floats<8> &values) {
    __stcs(reinterpret_cast<uint4 *>(to), pack(values));
}

__device__ inline void store_streaming(bf16 *to, const Floats<4> &values) {
    __stcs(reinterpret_cast<uint2 *>(to), pack(values));
}

template <int N> __device__ inline void store(float *to, const Floats<N> &values) {
    static_assert(N % 4 == 0, "whole 16-byte vectors");
#pragma unroll
    for (int i = 0; i < N; i += 4)
        *reinterpret_cast<float4 *>(to + i) =
            make_float4(values.x[i], values.x[i + 1], values.x[i + 2], values.x[i + 3]);
}

template <int N> __device__ inline void add_scaled(Floats<N> &sum, float scale, const Floats<N> &values) {
#pragma unroll
    for (int i = 0; i < N; i++) sum.x[i] += scale * values.x[i];
}

// --- sums over threads ----------------------------------------------------------------------------------

constexpr int WARP = 32;

// The sum over a warp. Every lane gets the same bits: in each step both partners add the same two numbers.
template <typename T> __device__ inline T warp_sum(T value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

// --- grids ----------------------------------------------------------------------------------------------

// A grid with a thread per vector of a row-major array [rows, vectors]: the thread's row is grid_row(), its
// vector grid_vector(). Both can lie beyond the array: the kernel must check.
struct RowGrid {
    dim3 grid, block;
};

static inline RowGrid row_grid(int64_t rows, int64_t vectors) {
    const int64_t threads = 256;
    const int64_t slabs = divide_up(vectors, threads);
    const int64_t x = divide_up(vectors, slabs);
    const int64_t y = threads / x;
    return {dim3((unsigned)divide_up(rows, y), (unsigned)slabs), dim3((unsigned)x, (unsigned)y)};
}

__device__ inline int64_t grid_row() {
    return (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
}
__device__ inline int64_t grid_vector() {
    return (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
}
__device__ inline int64_t grid_thread() {
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

// The number of blocks of `block` threads for `threads` threads in all.
static inline unsigned grid_blocks(int64_t threads, int block) {
    return (unsigned)divide_up(threads, block);
}
