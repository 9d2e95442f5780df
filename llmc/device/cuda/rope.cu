// Rotary positions, in place, and the norms of what was turned.
#include "device/cuda/rope.cuh"
#include "device/cuda/limits.cuh"
#include "device/cuda/operations.cuh"

#include <assert.h>

constexpr int ROPE_HEADS = 8; // heads that a thread turns by the angles it has read
constexpr int ROPE_BATCH = 4; // heads whose loads are under way together

// The sum of squares of the values as they are stored.
template <int N> __device__ inline float stored_squares(const Floats<N> &values) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        float stored[2];
        unpack2(stored, pack2(values.x + i));
        sum += stored[0] * stored[0] + stored[1] * stored[1];
    }
    return sum;
}

constexpr int ROPE_TEAM_MAX = 16; // threads of a token, each with a vector of either half of a head
static_assert(2 * 8 * ROPE_TEAM_MAX == HEAD_DIM_MAX && 2 * 4 * ROPE_TEAM_MAX == UNEVEN_HEAD_DIM_MAX,
              "vectors of 8, or of 4 where half a head is no whole number of those");

// Sum over a team of neighbouring lanes of one warp, in the team's first lane, by a tree of one shape. All
// lanes of the warp must call it.
__device__ inline float rope_team_sum(float value, int member, int members) {
#pragma unroll
    for (int distance = ROPE_TEAM_MAX / 2; distance > 0; distance /= 2) {
        const float other = __shfl_down_sync(0xffffffffu, value, distance);
        if (member + distance < members) value += other;
    }
    return value;
}

// A thread turns N neighbouring pairs of ROPE_HEADS heads (blockIdx.y) of a token of a sequence (blockIdx.z):
// x_j and x_{j+half} for j from a multiple of N. The half/N threads of a token are lanes of one warp, whose
// last lanes may be left over. Reads and writes the rotated heads once, 4 bytes per element, and the angles
// once, and writes the norms; 3 operations per element, with NORMS 4.
template <int N, bool NORMS>
__global__ void __launch_bounds__(256)
    rope_kernel(bf16 *__restrict__ x, float *__restrict__ norms, int64_t norms_stride,
                const float *__restrict__ angles, int64_t seq_len, int heads, int rotated_heads, int half,
                float direction) {
    const int members = half / N, teams = WARP / members, lane = threadIdx.x % WARP;
    const int team = lane / members, member = lane % members;
    const int64_t token = grid_thread() / WARP * teams + team;
    const bool active = team < teams && token < seq_len;
    const int j = member * N;
    Angles<N> by = {};
    if (active) by = load_angles<N>(angles + (token * half + j) * 2);
    const int first_head = blockIdx.y * ROPE_HEADS;
    const int64_t batch = blockIdx.z;
    bf16 *token_heads = x + (batch * seq_len + token) * heads * 2 * half + j;
    for (int head = first_head; head < first_head + ROPE_HEADS; head += ROPE_BATCH) {
        Floats<N> a[ROPE_BATCH] = {}, b[ROPE_BATCH] = {};
#pragma unroll
        for (int k = 0; k < ROPE_BATCH; k++) {
            if (!active || head + k >= rotated_heads) break;
            const bf16 *at = token_heads + (int64_t)(head + k) * 2 * half;
            a[k] = load<N>(at);
            b[k] = load<N>(at + half);
        }
#pragma unroll
        for (int k = 0; k < ROPE_BATCH; k++) {
            if (head + k >= rotated_heads) break;
            turn(a[k], b[k], by, direction);
            bf16 *at = token_heads + (int64_t)(head + k) * 2 * half;
            if (active) {
                store(at, a[k]);
                store(at + half, b[k]);
            }
            if (NORMS) {
                const float squares = stored_squares(a[k]) + stored_squares(b[k]);
                const float sum = rope_team_sum(squares, member, members);
                if (active && member == 0)
                    norms[(batch * rotated_heads + head + k) * norms_stride + token] = sqrtf(sum);
            }
        }
    }
}

static void rotate(void *x, void *norms, int64_t norms_stride, const void *angles, int64_t batch,
                   int64_t seq_len, int heads, int rotated_heads, int head_dim, bool inverse,
                   Stream *stream) {
    const double turned_heads = (double)batch * (double)seq_len * rotated_heads;
    OpScope scope(stream, norms ? "rope with norms" : "rope",
                  turned_heads * (4.0 * head_dim + (norms ? 4 : 0)) + 4.0 * (double)seq_len * head_dim);
    if (turned_heads == 0) return;
    const int half = head_dim / 2, block = 256;
    const int width = half % 8 == 0 ? 8 : 4; // head_dim is a multiple of 8, half of it perhaps not
    assert(half / width <= ROPE_TEAM_MAX);
    const int64_t warps = divide_up(seq_len, WARP / (half / width));
    const dim3 grid(grid_blocks(warps * WARP, block), grid_blocks(rotated_heads, ROPE_HEADS),
                    (unsigned)batch);
    auto kernel = width == 8 ? (norms ? rope_kernel<8, true> : rope_kernel<8, false>)
                             : (norms ? rope_kernel<4, true> : rope_kernel<4, false>);
    kernel<<<grid, block, 0, stream->cuda>>>((bf16 *)x, (float *)norms, norms_stride, (const float *)angles,
                                             seq_len, heads, rotated_heads, half, inverse ? -1.0f : 1.0f);
}

const RopeOps cuda_rope = {.rotate = rotate};
