// RMSNorm: out = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + epsilon).
#include "device/cuda/limits.cuh"
#include "device/cuda/operations.cuh"
#include "device/cuda/vector.cuh"

#include <assert.h>

// A team of blockDim.x threads (whole warps) holds a row in registers, each thread up to TEAM_VECTORS vectors
// (vector v belongs to thread v % blockDim.x). A block has blockDim.y teams.
constexpr int TEAM_VECTORS = 4;
constexpr int TEAM_WARPS_MAX = 16;
constexpr int BLOCK_WARPS = 8; // warps of a block, unless one team needs more
static_assert(TEAM_WARPS_MAX * WARP * TEAM_VECTORS * WIDTH == DIM_MAX, "a team holds the longest row");

static inline dim3 team_block(int64_t dim) {
    assert(dim <= DIM_MAX);
    const int warps = (int)divide_up(dim, (int64_t)WARP * TEAM_VECTORS * WIDTH);
    return dim3((unsigned)(warps * WARP), (unsigned)(warps < BLOCK_WARPS ? BLOCK_WARPS / warps : 1));
}

// The sum over the threads of a team; all get the same bits. All threads of the block must call it.
__device__ inline float team_sum(float value) {
    __shared__ float sums[TEAM_WARPS_MAX];
    value = warp_sum(value);
    const int warps = blockDim.x / WARP;
    if (warps == 1) return value;
    float *team = sums + threadIdx.y * warps;
    if (threadIdx.x % WARP == 0) team[threadIdx.x / WARP] = value;
    __syncthreads();
    float total = 0;
    for (int warp = 0; warp < warps; warp++) total += team[warp];
    __syncthreads(); // before the next call writes
    return total;
}

// Loads the thread's vectors of its team's row, zeros beyond the row's end. All loads are issued before the
// first value is used.
__device__ inline void team_load(uint4 out[TEAM_VECTORS], const bf16 *row, int vectors, bool active) {
#pragma unroll
    for (int k = 0; k < TEAM_VECTORS; k++) {
        const int vector = threadIdx.x + k * blockDim.x;
        out[k] =
            active && vector < vectors ? load_packed(row + (int64_t)vector * WIDTH) : make_uint4(0, 0, 0, 0);
    }
}

// Reads x once and writes out once: 4 bytes per element; 4 operations.
__global__ void __launch_bounds__(TEAM_WARPS_MAX *WARP)
    rmsnorm_forward_kernel(bf16 *__restrict__ out, float *__restrict__ rstd, const bf16 *__restrict__ x,
                           const bf16 *__restrict__ weight, int64_t rows, int vectors, float epsilon) {
    const int64_t row = grid_row();
    const bool active = row < rows;
    const int64_t start = row * vectors * WIDTH;
    uint4 kept[TEAM_VECTORS];
    team_load(kept, x + start, vectors, active);
    float squares = 0;
#pragma unroll
    for (int k = 0; k < TEAM_VECTORS; k++) {
        const Floats<8> values = unpack(kept[k]);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) squares += values.x[i] * values.x[i];
    }
    const float mean = team_sum(squares) / (float)(vectors * WIDTH);
    const float scale = 1.0f / sqrtf(mean + epsilon);
    if (!active) return;
    if (threadIdx.x == 0) rstd[row] = scale;
#pragma unroll
    for (int k = 0; k < TEAM_VECTORS; k++) {
        const int vector = threadIdx.x + k * blockDim.x;
        if (vector >= vectors) break;
        const Floats<8> weights = load<8>(weight + (int64_t)vector * WIDTH);
        Floats<8> values = unpack(kept[k]);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) values.x[i] = values.x[i] * scale * weights.x[i];
        store(out + start + (int64_t)vector * WIDTH, values);
    }
}

static void rmsnorm_forward(void *out, void *rstd, const void *x, const void *weight, int64_t rows,
                            int64_t dim, double epsilon, Stream *stream) {
    OpScope scope(stream, "rmsnorm_forward", (double)rows * (4.0 * (double)dim + 4));
    if (rows == 0) return;
    const dim3 block = team_block(dim);
    rmsnorm_forward_kernel<<<grid_blocks(rows, block.y), block, 0, stream->cuda>>>(
        (bf16 *)out, (float *)rstd, (const bf16 *)x, (const bf16 *)weight, rows, (int)(dim / WIDTH),
        (float)epsilon);
}

// With h = grad_out * weight and n the row's length:
//   grad_x = grad_residual + rstd * h - x * rstd^3 / n * sum(h * x)
//   grad_weight += sum over rows of grad_out * x * rstd
// Each team of a block processes one row at a time; the blocks take groups of `teams` rows in turn. A block
// sums its rows' grad_weight in registers, adds its teams in order, and stores the sum in partials[block,
// dim]. Reads grad_out, x and grad_residual once and writes grad_x once: 8 bytes per element; 12 operations.
__global__ void __launch_bounds__(TEAM_WARPS_MAX *WARP)
    rmsnorm_backward_kernel(bf16 *grad_x, float *__restrict__ partials, const bf16 *grad_residual,
                            const bf16 *__restrict__ grad_out, const bf16 *__restrict__ x,
                            const bf16 *__restrict__ weight, const float *__restrict__ rstd, int64_t rows,
                            int vectors) {
    extern __shared__ float team_sums[]; // [dim]: grad_weight of the teams added so far
    float grad_weight[TEAM_VECTORS][WIDTH] = {};
    uint4 weights[TEAM_VECTORS];
    team_load(weights, weight, vectors, true);

    for (int64_t first = (int64_t)blockIdx.x * blockDim.y; first < rows;
         first += (int64_t)gridDim.x * blockDim.y) {
        const int64_t row = first + threadIdx.y;
        const bool active = row < rows;
        const int64_t start = row * vectors * WIDTH;
        uint4 xs[TEAM_VECTORS], grads[TEAM_VECTORS], residuals[TEAM_VECTORS];
        team_load(xs, x + start, vectors, active);
        team_load(grads, grad_out + start, vectors, active);
        team_load(residuals, grad_residual + start, vectors, active && grad_residual);
        const float scale = active ? rstd[row] : 0;
        float dot = 0;
#pragma unroll
        for (int k = 0; k < TEAM_VECTORS; k++) {
            const Floats<8> xv = unpack(xs[k]), gv = unpack(grads[k]), wv = unpack(weights[k]);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) dot += gv.x[i] * wv.x[i] * xv.x[i];
        }
        const float pull = team_sum(dot) * scale * scale * scale / (float)(vectors * WIDTH);
#pragma unroll
        for (int k = 0; k < TEAM_VECTORS; k++) {
            stay_packed(xs[k]);
            stay_packed(grads[k]);
            stay_packed(weights[k]);
        }
#pragma unroll
        for (int k = 0; k < TEAM_VECTORS; k++) {
            const int vector = threadIdx.x + k * blockDim.x;
            if (!active || vector >= vectors) break;
            const int64_t at = start + (int64_t)vector * WIDTH;
            const Floats<8> xv = unpack(xs[k]), gv = unpack(grads[k]), wv = unpack(weights[k]);
            Floats<8> out = unpack(residuals[k]);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                grad_weight[k][i] += gv.x[i] * xv.x[i] * scale;
                out.x[i] += gv.x[i] * wv.x[i] * scale - xv.x[i] * pull;
            }
            store(grad_x + at, out);
        }
    }

    for (int team = 0; team < (int)blockDim.y; team++) {
        if ((int)threadIdx.y == team) {
            float *to =
                team + 1 < (int)blockDim.y ? team_sums : partials + (int64_t)blockIdx.x * vectors * WIDTH;
#pragma unroll
            for (int k = 0; k < TEAM_VECTORS; k++) {
                const int vector = threadIdx.x + k * blockDim.x;
                if (vector >= vectors) break;
                Floats<8> sum = {};
                if (team > 0) sum = load<8>(team_sums + vector * WIDTH);
#pragma unroll
                for (int i = 0; i < WIDTH; i++) sum.x[i] += grad_weight[k][i];
                store(to + vector * WIDTH, sum);
            }
        }
        __syncthreads();
    }
}

// out[columns] += the sum of in[rows, columns] over its rows. In a block of WARP x WARP, thread (x, y) sums
// column x over every WARP-th row, beginning with row y; then the sums of all y are added in order.
__global__ void __launch_bounds__(WARP *WARP)
    add_column_sums_kernel(float *__restrict__ out, const float *__restrict__ in, int rows, int64_t columns) {
    __shared__ float sums[WARP][WARP + 1];
    const int64_t column = (int64_t)blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    if (column < columns)
        for (int row = threadIdx.y; row < rows; row += WARP) sum += in[(int64_t)row * columns + column];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    float total = 0;
    for (int y = 0; y < WARP; y++) total += sums[y][threadIdx.x];
    out[column] += total;
}

static void rmsnorm_backward(void *grad_x, void *grad_weight, const void *grad_residual, const void *grad_out,
                             const void *x, const void *weight, const void *rstd, int64_t rows, int64_t dim,
                             Stream *stream) {
    OpScope scope(stream, "rmsnorm_backward",
                  (double)rows * ((grad_residual ? 8.0 : 6.0) * (double)dim + 4) + 8.0 * (double)dim);
    if (rows == 0) return;
    const dim3 block = team_block(dim);
    // As many blocks as can be resident (at most 128 registers a thread), and as the workspace has partials
    // for.
    int64_t blocks = min_i64(divide_up(rows, block.y), 2 * (int64_t)stream->multiprocessors);
    blocks = min_i64(blocks, (int64_t)(WORKSPACE_BYTES / ((size_t)dim * sizeof(float))));
    const size_t shared = block.y > 1 ? (size_t)dim * sizeof(float) : 0;
    float *partials = (float *)stream->workspace;
    rmsnorm_backward_kernel<<<(unsigned)blocks, block, shared, stream->cuda>>>(
        (bf16 *)grad_x, partials, (const bf16 *)grad_residual, (const bf16 *)grad_out, (const bf16 *)x,
        (const bf16 *)weight, (const float *)rstd, rows, (int)(dim / WIDTH));
    add_column_sums_kernel<<<grid_blocks(dim, WARP), dim3(WARP, WARP), 0, stream->cuda>>>(
        (float *)grad_weight, partials, (int)blocks, dim);
}

const RmsnormOps cuda_rmsnorm = {.forward = rmsnorm_forward, .backward = rmsnorm_backward};
