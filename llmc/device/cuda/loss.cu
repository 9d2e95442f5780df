// Cross-entropy of logits against target tokens, and its gradient in place of the logits.
#include "device/cuda/operations.cuh"
#include "device/cuda/vector.cuh"

#include <float.h>

constexpr int ENTROPY_THREADS = 512;
constexpr int ENTROPY_BATCH = 4; // vectors that a thread loads before it uses the first

// e^x for x <= 0 by the hardware's 2^x: the error is at most 2 ulp; a denormal result becomes 0.
__device__ inline float exp_fast(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.4426950408889634f));
    return result;
}

// The sum of e^x over some values, stored as `max`, the largest x, and `sum`, the sum of e^(x - max).
struct ExpSum {
    float max, sum;
};

__device__ inline ExpSum exp_sum_join(ExpSum a, ExpSum b) {
    const float max = fmaxf(a.max, b.max);
    return {max, a.sum * exp_fast(a.max - max) + b.sum * exp_fast(b.max - max)};
}

__device__ inline void exp_sum_add(ExpSum &total, const Floats<8> &values) {
    float max = total.max;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) max = fmaxf(max, values.x[i]);
    float sum = total.sum * exp_fast(total.max - max);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) sum += exp_fast(values.x[i] - max);
    total = {max, sum};
}

// Combines the sums of all threads of the block, within each warp and then the warps in order. All threads
// get the same bits.
__device__ inline ExpSum exp_sum_block(ExpSum mine) {
    __shared__ ExpSum warps[ENTROPY_THREADS / WARP];
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const ExpSum other = {__shfl_down_sync(0xffffffffu, mine.max, distance),
                              __shfl_down_sync(0xffffffffu, mine.sum, distance)};
        mine = exp_sum_join(mine, other);
    }
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = mine;
    __syncthreads();
    ExpSum total = warps[0];
    for (int warp = 1; warp < (int)blockDim.x / WARP; warp++) total = exp_sum_join(total, warps[warp]);
    return total;
}

// A block per row. The first `head` elements of a row lie before its first 16-byte boundary, where its
// vectors begin; the `scalars` elements before and after the vectors are processed one by one. Vector v
// belongs to thread v % blockDim.x. With GRADIENT a second pass reads the row again: the first `cached`
// vectors from shared memory; the others from the last one backwards, because the last ones read are still in
// the L2 cache. So the row is read from memory once and written once: 4 bytes per element (2 without
// gradient); about 16 operations, of which 2 are exponentials.
template <bool GRADIENT>
__global__ void __launch_bounds__(ENTROPY_THREADS, 2)
    cross_entropy_kernel(float *__restrict__ losses, bf16 *__restrict__ logits,
                         const int32_t *__restrict__ targets, int64_t vocab, int cached,
                         float gradient_scale) {
    extern __shared__ uint4 cache[];
    bf16 *row = logits + (int64_t)blockIdx.x * vocab;
    const int64_t to_boundary = (16 - (int64_t)((uintptr_t)row % 16)) % 16 / (int64_t)sizeof(bf16);
    const int64_t head = to_boundary < vocab ? to_boundary : vocab;
    const int vectors = (int)((vocab - head) / WIDTH), threads = blockDim.x, thread = threadIdx.x;
    const int scalars = (int)(vocab - (int64_t)vectors * WIDTH);
    const int64_t scalar = thread < head ? thread : thread + (int64_t)vectors * WIDTH; // if thread < scalars
    bf16 *body = row + head;
    const int32_t target = targets[blockIdx.x];
    const float target_logit = __bfloat162float(row[target]); // before anything is overwritten

    ExpSum mine = {-FLT_MAX, 0};
    if (thread < scalars) mine = {__bfloat162float(row[scalar]), 1};
    for (int first = thread; first < vectors; first += ENTROPY_BATCH * threads) {
        uint4 packed[ENTROPY_BATCH];
#pragma unroll
        for (int k = 0; k < ENTROPY_BATCH; k++)
            if (first + k * threads < vectors)
                packed[k] = load_packed(body + (int64_t)(first + k * threads) * WIDTH);
#pragma unroll
        for (int k = 0; k < ENTROPY_BATCH; k++) {
            const int vector = first + k * threads;
            if (vector >= vectors) break;
            if (GRADIENT && vector < cached) cache[vector] = packed[k];
            exp_sum_add(mine, unpack(packed[k]));
        }
    }
    const ExpSum total = exp_sum_block(mine);
    if (thread == 0) losses[blockIdx.x] = total.max - target_logit + logf(total.sum);
    if (!GRADIENT) return;

    const float factor = gradient_scale / total.sum;
    const int target_in_body = (int)(target - head); // negative if the target is before the vectors
    const int rounds = (vectors - thread + threads - 1) / threads;
    for (int last = rounds - 1; last >= 0; last -= ENTROPY_BATCH) {
        uint4 packed[ENTROPY_BATCH];
#pragma unroll
        for (int k = 0; k < ENTROPY_BATCH; k++) {
            if (last - k < 0) break;
            const int vector = thread + (last - k) * threads;
            packed[k] = vector < cached ? cache[vector] : load_packed(body + (int64_t)vector * WIDTH);
        }
#pragma unroll
        for (int k = 0; k < ENTROPY_BATCH; k++) {
            if (last - k < 0) break;
            const int vector = thread + (last - k) * threads;
            Floats<8> values = unpack(packed[k]);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                values.x[i] = exp_fast(values.x[i] - total.max) * factor;
                if (vector * WIDTH + i == target_in_body) values.x[i] -= gradient_scale;
            }
            __stcs(reinterpret_cast<uint4 *>(body + (int64_t)vector * WIDTH), pack(values));
        }
    }
    if (thread < scalars) {
        float value = exp_fast(__bfloat162float(row[scalar]) - total.max) * factor;
        if (scalar == target) value -= gradient_scale;
        row[scalar] = __float2bfloat16_rn(value);
    }
}

static void cross_entropy(void *losses, void *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                          double gradient_scale, Stream *stream) {
    const bool gradient = gradient_scale != 0;
    OpScope scope(stream, "cross_entropy", (double)rows * ((gradient ? 4.0 : 2.0) * (double)vocab + 8));
    if (rows == 0) return;
    const int64_t vectors = divide_up(vocab, WIDTH);
    const int64_t threads = min_i64(round_up(vectors, WARP), ENTROPY_THREADS);
    if (!gradient) {
        cross_entropy_kernel<false><<<(unsigned)rows, (unsigned)threads, 0, stream->cuda>>>(
            (float *)losses, (bf16 *)logits, targets, vocab, 0, 0);
        return;
    }
    // Two blocks share a multiprocessor. Of its half, a block loses 1 KiB to CUDA, and less than 1 KiB is
    // static.
    const int64_t room = (int64_t)stream->shared_memory / 2 - 2048;
    const int64_t cached = min_i64(vectors, room / (int64_t)sizeof(uint4));
    const int shared = (int)(cached * (int64_t)sizeof(uint4));
    CUDA_CHECK(cudaFuncSetAttribute(cross_entropy_kernel<true>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    shared));
    cross_entropy_kernel<true><<<(unsigned)rows, (unsigned)threads, (size_t)shared, stream->cuda>>>(
        (float *)losses, (bf16 *)logits, targets, vocab, (int)cached, (float)gradient_scale);
}

const LossOps cuda_loss = {.cross_entropy = cross_entropy};
