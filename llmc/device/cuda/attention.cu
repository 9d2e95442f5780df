// The attention operations, by cuDNN (cudnn_attention.h). cuDNN always gets a log-sum-exp without gaps, the
// only layout that all its engines support. If the caller's has gaps it is copied to or from the end of the
// workspace: a copy moves 8 bytes per query and head, the attention itself at least 8·head_dim.
#include "device/cuda/attention.cuh"
#include "device/cuda/limits.cuh"
#include "device/cuda/operations.cuh"

#include <assert.h>

static bool logsumexp_has_gaps(const AttentionShape *shape) {
    const AttentionStrides *strides = &shape->logsumexp;
    return (shape->query_len > 1 && strides->token != 1) ||
           (shape->heads > 1 && strides->head != shape->query_len) ||
           (shape->batch > 1 && strides->batch != shape->heads * shape->query_len);
}

// A thread per query (blockIdx.x) of each batch and head (blockIdx.y, blockIdx.z).
template <bool GATHER>
__global__ void logsumexp_copy_kernel(float *__restrict__ to, const float *__restrict__ from,
                                      int64_t query_len, AttentionStrides strides) {
    const int64_t query = grid_thread(), batch = blockIdx.y, head = blockIdx.z;
    if (query >= query_len) return;
    const int64_t dense = (batch * gridDim.z + head) * query_len + query;
    const int64_t strided = batch * strides.batch + query * strides.token + head * strides.head;
    if (GATHER)
        to[dense] = from[strided];
    else
        to[strided] = from[dense];
}

// Copies a log-sum-exp between the shape's layout and one without gaps: with `gather` to the one without
// gaps, else from it.
static void logsumexp_copy(float *to, const float *from, bool gather, const AttentionShape *shape,
                           Stream *stream) {
    const int block = 256;
    const dim3 grid(grid_blocks(shape->query_len, block), (unsigned)shape->batch, (unsigned)shape->heads);
    auto kernel = gather ? logsumexp_copy_kernel<true> : logsumexp_copy_kernel<false>;
    kernel<<<grid, block, 0, stream->cuda>>>(to, from, shape->query_len, shape->logsumexp);
}

// Bytes of cuDNN's own workspace, after which the copy of the log-sum-exp begins.
static size_t cudnn_workspace(const AttentionShape *shape, bool backward, Stream *stream) {
    return (size_t)round_up((int64_t)cudnn_attention_workspace(stream->attention, shape, backward), 256);
}

static size_t attention_workspace(const AttentionShape *shape, bool backward, Stream *stream) {
    if (shape->query_len == 1) return 0;
    const size_t logsumexp = (size_t)(shape->batch * shape->heads * shape->query_len) * sizeof(float);
    return cudnn_workspace(shape, backward, stream) + (logsumexp_has_gaps(shape) ? logsumexp : 0);
}

// The number of pairs of a query and a key that it sees, over batch and heads.
static double attention_pairs(const AttentionShape *shape) {
    const double rows = (double)shape->batch * shape->heads * (double)shape->query_len;
    return rows * (shape->causal ? ((double)shape->query_len + 1) / 2 : (double)shape->key_len);
}

// Bytes of the log-sum-exp and of several tensors, `queries` of the queries' shape and `keys` of the keys'.
static double attention_bytes(const AttentionShape *shape, double queries, double keys) {
    const double query_rows = (double)shape->batch * shape->heads * (double)shape->query_len;
    const double key_rows = (double)shape->batch * shape->kv_heads * (double)shape->key_len;
    return 2.0 * shape->head_dim * (queries * query_rows + keys * key_rows) + 4.0 * query_rows;
}

// Two matrix products of head_dim multiplications and additions per pair.
static void attention_forward(void *out, void *logsumexp, const void *query, const void *key,
                              const void *value, const AttentionShape *shape, void *workspace,
                              Stream *stream) {
    OpScope scope(stream, shape->causal ? "attention_forward causal" : "attention_forward full",
                  attention_bytes(shape, 2, 2), 4.0 * shape->head_dim * attention_pairs(shape),
                  {shape->batch * shape->heads, shape->query_len, shape->key_len});
    if (shape->query_len == 1) {
        single_query_forward(out, logsumexp, query, key, value, shape, stream);
        return;
    }
    const bool gaps = logsumexp_has_gaps(shape);
    float *dense =
        gaps ? (float *)((char *)workspace + cudnn_workspace(shape, false, stream)) : (float *)logsumexp;
    cudnn_attention_forward(stream->attention, out, dense, query, key, value, shape, workspace);
    if (gaps) logsumexp_copy((float *)logsumexp, dense, false, shape, stream);
}

// Five matrix products of head_dim multiplications and additions per pair.
static void attention_backward(void *grad_query, void *grad_key, void *grad_value, const void *grad_out,
                               const void *query, const void *key, const void *value, const void *out,
                               const void *logsumexp, const AttentionShape *shape, void *workspace,
                               Stream *stream) {
    OpScope scope(stream, shape->causal ? "attention_backward causal" : "attention_backward full",
                  attention_bytes(shape, 4, 4), 10.0 * shape->head_dim * attention_pairs(shape),
                  {shape->batch * shape->heads, shape->query_len, shape->key_len});
    if (shape->query_len == 1) {
        single_query_backward(grad_query, grad_key, grad_value, grad_out, query, key, value, out, logsumexp,
                              shape, stream);
        return;
    }
    const bool gaps = logsumexp_has_gaps(shape);
    float *copy = (float *)((char *)workspace + cudnn_workspace(shape, true, stream));
    if (gaps) logsumexp_copy(copy, (const float *)logsumexp, true, shape, stream);
    const float *dense = gaps ? copy : (const float *)logsumexp;
    cudnn_attention_backward(stream->attention, grad_query, grad_key, grad_value, grad_out, query, key, value,
                             out, dense, shape, workspace);
}

// --- merge ----------------------------------------------------------------------------------------------

constexpr int MERGE_THREADS = 256;
static_assert(WARP * WIDTH >= HEAD_DIM_MAX, "a warp holds the widest head");

// A team of `members` neighbouring lanes of a warp, a vector each, merges one query of one head of a sequence
// (blockIdx.z). A block merges neighbouring queries of one head; consecutive blocks go through the heads,
// then to the next queries. The last lanes of a warp may be idle. __syncwarp: the whole team reads the
// log-sum-exp before its first lane overwrites it. Weights as in merge_query (device/cpu/attention.c). Reads
// and writes sum once and reads part once: 10 bytes per element, or 6 if `first`; 3 operations.
__global__ void __launch_bounds__(MERGE_THREADS)
    attention_merge_kernel(float *__restrict__ sum, float *logsumexp, const bf16 *__restrict__ part,
                           const float *__restrict__ part_logsumexp, int64_t query_len, int heads,
                           int members, int teams, AttentionStrides sum_strides,
                           AttentionStrides logsumexp_strides, bool first) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, team = lane / members;
    const int column = (lane - team * members) * WIDTH, head = (int)(blockIdx.x % heads);
    const int64_t block = blockIdx.x / heads, batch = blockIdx.z;
    const int64_t query = (block * (MERGE_THREADS / WARP) + warp) * teams + team;
    const bool active = team < teams && query < query_len;
    float *total = logsumexp + row_offset(logsumexp_strides, batch, query, head);
    float a = -INFINITY, b = -INFINITY;
    Floats<8> before = {}, values = {};
    float *to = sum + row_offset(sum_strides, batch, query, head) + column;
    if (active) {
        values = load<8>(part + ((batch * query_len + query) * heads + head) * members * WIDTH + column);
        b = part_logsumexp[(batch * heads + head) * query_len + query];
        if (!first) {
            before = load<8>(to);
            a = *total;
        }
    }
    const float ratio = a == b ? 1 : expf(-fabsf(a - b)), larger = 1 / (1 + ratio), smaller = ratio * larger;
    if (a == -INFINITY) before = {};
    if (b == -INFINITY) values = {};
    Floats<8> merged = {};
    add_scaled(merged, a > b ? larger : smaller, before);
    add_scaled(merged, a > b ? smaller : larger, values);
    if (active) store(to, merged);
    __syncwarp();
    if (active && column == 0) *total = (a > b ? a : b) + log1pf(ratio);
}

static void attention_merge(void *sum, void *logsumexp, const void *part, const void *part_logsumexp,
                            const AttentionShape *shape, bool first, Stream *stream) {
    const double queries = (double)shape->batch * (double)shape->query_len * shape->heads;
    OpScope scope(stream, "attention_merge",
                  queries * ((first ? 6.0 : 10.0) * shape->head_dim + (first ? 8 : 12)));
    assert(shape->head_dim <= HEAD_DIM_MAX);
    const int members = shape->head_dim / WIDTH, teams = WARP / members;
    const int64_t blocks = divide_up(shape->query_len, (int64_t)MERGE_THREADS / WARP * teams);
    const dim3 grid((unsigned)(blocks * shape->heads), 1, (unsigned)shape->batch);
    attention_merge_kernel<<<grid, MERGE_THREADS, 0, stream->cuda>>>(
        (float *)sum, (float *)logsumexp, (const bf16 *)part, (const float *)part_logsumexp, shape->query_len,
        shape->heads, members, teams, shape->output, shape->logsumexp, first);
}

const AttentionOps cuda_attention = {.workspace = attention_workspace,
                                     .forward = attention_forward,
                                     .backward = attention_backward,
                                     .merge = attention_merge};
