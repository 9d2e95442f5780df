// Rotary positions, in place, and norms of heads, turned or not.
#include "device/cuda/rope.cuh"
#include "device/cuda/lighthouse.cuh"
#include "device/cuda/operations.cuh"

#include <assert.h>

constexpr int ROPE_HEADS = 8; // heads that a thread goes through; it reads their angles once
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

// A thread's place among those of a token: half/N neighbouring lanes of one warp, whose last lanes may be left
// over. Each has N neighbouring pairs of a head, x_j and x_{j+half} for j from N·member on.
struct RopeTeam {
    int member, members;
    int64_t token;
    bool active;
};

__device__ inline RopeTeam rope_team(int members, int64_t seq_len) {
    const int teams = WARP / members, lane = threadIdx.x % WARP, team = lane / members;
    const int64_t token = grid_thread() / WARP * teams + team;
    return {lane % members, members, token, team < teams && token < seq_len};
}

// The norm of a head as it is stored, in the first lane of its team: the sum over the team by a tree of one
// shape. All lanes of the warp must call it.
template <int N>
__device__ inline float rope_team_norm(const Floats<N> &a, const Floats<N> &b, const RopeTeam &team) {
    float sum = stored_squares(a) + stored_squares(b);
#pragma unroll
    for (int distance = ROPE_TEAM_MAX / 2; distance > 0; distance /= 2) {
        const float other = __shfl_down_sync(0xffffffffu, sum, distance);
        if (team.member + distance < team.members) sum += other;
    }
    return sqrtf(sum);
}

// A thread turns its pairs of ROPE_HEADS heads (blockIdx.y) of a token of a sequence (blockIdx.z). Reads and
// writes the rotated heads once, 4 bytes per element, and the angles once, and writes the norms; 3 operations
// per element, with NORMS 4.
template <int N, bool NORMS>
__global__ void __launch_bounds__(256)
    rope_kernel(bf16 *__restrict__ x, float *__restrict__ norms, int64_t norms_stride,
                const float *__restrict__ angles, int64_t seq_len, int heads, int rotated_heads, int half,
                float direction) {
    const RopeTeam team = rope_team(half / N, seq_len);
    const int j = team.member * N;
    Angles<N> by = {};
    if (team.active) by = load_angles<N>(angles + (team.token * half + j) * 2);
    const int first_head = blockIdx.y * ROPE_HEADS;
    const int64_t batch = blockIdx.z;
    bf16 *token_heads = x + (batch * seq_len + team.token) * heads * 2 * half + j;
    for (int head = first_head; head < first_head + ROPE_HEADS; head += ROPE_BATCH) {
        Floats<N> a[ROPE_BATCH] = {}, b[ROPE_BATCH] = {};
#pragma unroll
        for (int k = 0; k < ROPE_BATCH; k++) {
            if (!team.active || head + k >= rotated_heads) break;
            const bf16 *at = token_heads + (int64_t)(head + k) * 2 * half;
            a[k] = load<N>(at);
            b[k] = load<N>(at + half);
        }
#pragma unroll
        for (int k = 0; k < ROPE_BATCH; k++) {
            if (head + k >= rotated_heads) break;
            turn(a[k], b[k], by, direction);
            bf16 *at = token_heads + (int64_t)(head + k) * 2 * half;
            if (team.active) {
                store(at, a[k]);
                store(at + half, b[k]);
            }
            if (NORMS) {
                const float norm = rope_team_norm(a[k], b[k], team);
                if (team.active && team.member == 0)
                    norms[(batch * rotated_heads + head + k) * norms_stride + team.token] = norm;
            }
        }
    }
}

// The norms alone: a thread has its pairs of ROPE_HEADS heads (blockIdx.y) of a token of a sequence
// (blockIdx.z). Reads those heads once, 2 bytes per element, and writes the norms; 2 operations per element.
template <int N>
__global__ void __launch_bounds__(256)
    norms_kernel(float *__restrict__ norms, int64_t norms_stride, const bf16 *__restrict__ x, int64_t seq_len,
                 int heads, int normed_heads, int half) {
    const RopeTeam team = rope_team(half / N, seq_len);
    const int first_head = blockIdx.y * ROPE_HEADS;
    const int64_t batch = blockIdx.z;
    const bf16 *token_heads = x + (batch * seq_len + team.token) * heads * 2 * half + team.member * N;
    for (int head = first_head; head < first_head + ROPE_HEADS; head += ROPE_BATCH) {
        Floats<N> a[ROPE_BATCH] = {}, b[ROPE_BATCH] = {};
#pragma unroll
        for (int k = 0; k < ROPE_BATCH; k++) {
            if (!team.active || head + k >= normed_heads) break;
            const bf16 *at = token_heads + (int64_t)(head + k) * 2 * half;
            a[k] = load<N>(at);
            b[k] = load<N>(at + half);
        }
#pragma unroll
        for (int k = 0; k < ROPE_BATCH; k++) {
            if (head + k >= normed_heads) break;
            const float norm = rope_team_norm(a[k], b[k], team);
            if (team.active && team.member == 0)
                norms[(batch * normed_heads + head + k) * norms_stride + team.token] = norm;
        }
    }
}

constexpr int ROPE_BLOCK = 256; // threads of a block

// Pairs of a head that a thread has: head_dim is a multiple of 8, half of it perhaps not.
static int pairs_of_thread(int half) {
    const int width = half % 8 == 0 ? 8 : 4;
    assert(half / width <= ROPE_TEAM_MAX);
    return width;
}

static dim3 rope_grid(int64_t batch, int64_t seq_len, int heads, int half) {
    const int64_t warps = divide_up(seq_len, WARP / (half / pairs_of_thread(half)));
    return dim3(grid_blocks(warps * WARP, ROPE_BLOCK), grid_blocks(heads, ROPE_HEADS), (unsigned)batch);
}

static void rotate(void *x, void *norms, int64_t norms_stride, const void *angles, int64_t batch,
                   int64_t seq_len, int heads, int rotated_heads, int head_dim, bool inverse,
                   Stream *stream) {
    const double turned_heads = (double)batch * (double)seq_len * rotated_heads;
    OpScope scope(stream, norms ? "rope with norms" : "rope",
                  turned_heads * (4.0 * head_dim + (norms ? 4 : 0)) + 4.0 * (double)seq_len * head_dim);
    if (turned_heads == 0) return;
    const int half = head_dim / 2;
    auto kernel = pairs_of_thread(half) == 8 ? (norms ? rope_kernel<8, true> : rope_kernel<8, false>)
                                             : (norms ? rope_kernel<4, true> : rope_kernel<4, false>);
    kernel<<<rope_grid(batch, seq_len, rotated_heads, half), ROPE_BLOCK, 0, stream->cuda>>>(
        (bf16 *)x, (float *)norms, norms_stride, (const float *)angles, seq_len, heads, rotated_heads, half,
        inverse ? -1.0f : 1.0f);
}

static void head_norms(void *norms, int64_t norms_stride, const void *x, int64_t batch, int64_t seq_len,
                       int heads, int normed_heads, int head_dim, Stream *stream) {
    const double all_heads = (double)batch * (double)seq_len * normed_heads;
    OpScope scope(stream, "norms of heads", all_heads * (2.0 * head_dim + 4));
    if (all_heads == 0) return;
    const int half = head_dim / 2;
    auto kernel = pairs_of_thread(half) == 8 ? norms_kernel<8> : norms_kernel<4>;
    kernel<<<rope_grid(batch, seq_len, normed_heads, half), ROPE_BLOCK, 0, stream->cuda>>>(
        (float *)norms, norms_stride, (const bf16 *)x, seq_len, heads, normed_heads, half);
}

// --- entries of a pyramid -------------------------------------------------------------------------------

// A thread per N neighbouring pairs of the query and of the key of an entry of a head's pyramid (blockIdx.y) of
// a sequence (blockIdx.z); those of entries that are not selected have nothing to do. Reads and writes the
// subsequence's queries and keys once, 4 bytes per element, and reads the positions once and the angles of each
// entry; 3 operations per element.
template <int N>
__global__ void __launch_bounds__(256)
    rotate_entries_kernel(bf16 *__restrict__ gathered, const int32_t *__restrict__ positions,
                          const float *__restrict__ angles, LighthouseShape shape, float direction) {
    const int half = shape.head_dim / 2, members = half / N;
    const int64_t thread = grid_thread(), place = thread / members, batch = blockIdx.z;
    const int head = (int)blockIdx.y, j = (int)(thread % members) * N;
    if (place >= shape.pyramid) return;
    const int64_t position = positions[(batch * shape.heads + head) * shape.pyramid + place];
    if (position < 0) return;
    int shift = 0; // the entry covers 1 << shift tokens
    int64_t index = place;
    for (; index >= shape.seq_len >> shift; shift += shape.log2_pool) index -= shape.seq_len >> shift;
    const int64_t last_token = ((index + 1) << shift) - 1;
    const Angles<N> by = load_angles<N>(angles + (last_token * half + j) * 2);
    bf16 *entry = gathered + (batch * shape.entries + position) * 3 * shape.heads * shape.head_dim;
    bf16 *query = entry + (int64_t)head * shape.head_dim + j;
    bf16 *key = query + (int64_t)shape.heads * shape.head_dim;
    Floats<N> query_a = load<N>(query), query_b = load<N>(query + half);
    Floats<N> key_a = load<N>(key), key_b = load<N>(key + half);
    turn(query_a, query_b, by, direction);
    turn(key_a, key_b, by, direction);
    store(query, query_a);
    store(query + half, query_b);
    store(key, key_a);
    store(key + half, key_b);
}

static void rotate_entries(void *gathered, const int32_t *positions, const void *angles,
                           const LighthouseShape *shape, bool inverse, Stream *stream) {
    // Heads that pick the same entries share the angles.
    OpScope scope(stream, "rope of entries",
                  subsequence_bytes(shape, 4 * shape->heads) +
                      4.0 * (double)shape->entries * shape->head_dim);
    check_supported(shape, stream);
    const int half = shape->head_dim / 2, width = pairs_of_thread(half);
    const dim3 grid(grid_blocks(shape->pyramid * (half / width), ROPE_BLOCK), (unsigned)shape->heads,
                    (unsigned)shape->batch);
    auto kernel = width == 8 ? rotate_entries_kernel<8> : rotate_entries_kernel<4>;
    kernel<<<grid, ROPE_BLOCK, 0, stream->cuda>>>((bf16 *)gathered, positions, (const float *)angles, *shape,
                                                  inverse ? -1.0f : 1.0f);
}

const RopeOps cuda_rope = {.rotate = rotate, .norms = head_norms, .rotate_entries = rotate_entries};
