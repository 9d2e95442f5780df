// Attention with one query per head, which cuDNN does not support: a sequence divided into pieces can have a
// last piece of one token. Such attention is small: a warp per head, not tuned.
#include "device/cuda/attention.cuh"
#include "device/cuda/limits.cuh"

constexpr int LANE_VALUES = HEAD_DIM_MAX / WARP; // elements of a row that a lane holds

// Lane l of a warp holds elements l, l + 32, … of a row; beyond head_dim zeros.
struct LaneRow {
    float x[LANE_VALUES];
};

__device__ inline LaneRow load_row(const bf16 *row, int head_dim) {
    LaneRow values;
#pragma unroll
    for (int i = 0; i < LANE_VALUES; i++) {
        const int d = (int)threadIdx.x + 32 * i;
        values.x[i] = d < head_dim ? __bfloat162float(row[d]) : 0;
    }
    return values;
}

__device__ inline void store_row(bf16 *row, const LaneRow &values, int head_dim) {
#pragma unroll
    for (int i = 0; i < LANE_VALUES; i++) {
        const int d = (int)threadIdx.x + 32 * i;
        if (d < head_dim) row[d] = __float2bfloat16(values.x[i]);
    }
}

__device__ inline void add_scaled(LaneRow &sum, float scale, const LaneRow &row) {
#pragma unroll
    for (int i = 0; i < LANE_VALUES; i++) sum.x[i] += scale * row.x[i];
}

__device__ inline float dot(const LaneRow &a, const LaneRow &b) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < LANE_VALUES; i++) sum += a.x[i] * b.x[i];
    return warp_sum(sum);
}

// A warp per query head (blockIdx.x) and batch (blockIdx.y).
__global__ void single_query_forward_kernel(bf16 *out, float *logsumexp, const bf16 *query, const bf16 *key,
                                            const bf16 *value, AttentionShape s) {
    const int head = blockIdx.x, kv_head = head / (s.heads / s.kv_heads);
    const int64_t batch = blockIdx.y;
    const LaneRow q = load_row(query + row_offset(s.query, batch, 0, head), s.head_dim);
    float max = -INFINITY, sum = 0;
    LaneRow result = {};
    for (int64_t j = 0; j < s.key_len; j++) {
        const LaneRow k = load_row(key + row_offset(s.key, batch, j, kv_head), s.head_dim);
        const LaneRow v = load_row(value + row_offset(s.value, batch, j, kv_head), s.head_dim);
        const float score = (float)s.scale * dot(q, k), new_max = fmaxf(max, score);
        const float shrink = expf(max - new_max), weight = expf(score - new_max);
        sum = sum * shrink + weight;
        LaneRow rescaled = {};
        add_scaled(rescaled, shrink, result);
        add_scaled(rescaled, weight, v);
        result = rescaled;
        max = new_max;
    }
    LaneRow normalized = {};
    add_scaled(normalized, 1 / sum, result);
    store_row(out + row_offset(s.output, batch, 0, head), normalized, s.head_dim);
    if (threadIdx.x == 0) logsumexp[row_offset(s.logsumexp, batch, 0, head)] = max + logf(sum);
}

// The inputs of the backward for one query head.
struct QueryRow {
    LaneRow query, grad_out;
    float logsumexp, grad_dot_out;
};

struct QueryInputs {
    const bf16 *grad_out, *query, *out;
    const float *logsumexp;
};

__device__ inline QueryRow load_query(const QueryInputs &in, const AttentionShape &s, int64_t batch,
                                      int head) {
    QueryRow row;
    const LaneRow out = load_row(in.out + row_offset(s.output, batch, 0, head), s.head_dim);
    row.query = load_row(in.query + row_offset(s.query, batch, 0, head), s.head_dim);
    row.grad_out = load_row(in.grad_out + row_offset(s.output, batch, 0, head), s.head_dim);
    row.logsumexp = in.logsumexp[row_offset(s.logsumexp, batch, 0, head)];
    row.grad_dot_out = dot(row.grad_out, out);
    return row;
}

__device__ inline float probability(const QueryRow &row, const LaneRow &key, float scale) {
    return expf(scale * dot(row.query, key) - row.logsumexp);
}

__device__ inline float grad_score(const QueryRow &row, float probability, const LaneRow &value,
                                   float scale) {
    return scale * probability * (dot(row.grad_out, value) - row.grad_dot_out);
}

// A warp per key/value head (blockIdx.x) and batch (blockIdx.y). It computes the gradients of its query
// heads, then
// those of its keys and values, each summed over the query heads in order.
__global__ void single_query_backward_kernel(bf16 *grad_query, bf16 *grad_key, bf16 *grad_value,
                                             QueryInputs in, const bf16 *key, const bf16 *value,
                                             AttentionShape s) {
    const int kv_head = blockIdx.x, group = s.heads / s.kv_heads, first_head = kv_head * group;
    const int64_t batch = blockIdx.y;
    const float scale = (float)s.scale;
    for (int head = first_head; head < first_head + group; head++) {
        const QueryRow row = load_query(in, s, batch, head);
        LaneRow sum = {};
        for (int64_t j = 0; j < s.key_len; j++) {
            const LaneRow k = load_row(key + row_offset(s.key, batch, j, kv_head), s.head_dim);
            const LaneRow v = load_row(value + row_offset(s.value, batch, j, kv_head), s.head_dim);
            add_scaled(sum, grad_score(row, probability(row, k, scale), v, scale), k);
        }
        store_row(grad_query + row_offset(s.grad_query, batch, 0, head), sum, s.head_dim);
    }
    for (int64_t j = 0; j < s.key_len; j++) {
        const LaneRow k = load_row(key + row_offset(s.key, batch, j, kv_head), s.head_dim);
        const LaneRow v = load_row(value + row_offset(s.value, batch, j, kv_head), s.head_dim);
        LaneRow key_sum = {}, value_sum = {};
        for (int head = first_head; head < first_head + group; head++) {
            const QueryRow row = load_query(in, s, batch, head);
            const float p = probability(row, k, scale);
            add_scaled(key_sum, grad_score(row, p, v, scale), row.query);
            add_scaled(value_sum, p, row.grad_out);
        }
        store_row(grad_key + row_offset(s.grad_key, batch, j, kv_head), key_sum, s.head_dim);
        store_row(grad_value + row_offset(s.grad_value, batch, j, kv_head), value_sum, s.head_dim);
    }
}

void single_query_forward(void *out, void *logsumexp, const void *query, const void *key, const void *value,
                          const AttentionShape *shape, Stream *stream) {
    const dim3 grid((unsigned)shape->heads, (unsigned)shape->batch);
    single_query_forward_kernel<<<grid, 32, 0, stream->cuda>>>(
        (bf16 *)out, (float *)logsumexp, (const bf16 *)query, (const bf16 *)key, (const bf16 *)value, *shape);
}

void single_query_backward(void *grad_query, void *grad_key, void *grad_value, const void *grad_out,
                           const void *query, const void *key, const void *value, const void *out,
                           const void *logsumexp, const AttentionShape *shape, Stream *stream) {
    const dim3 grid((unsigned)shape->kv_heads, (unsigned)shape->batch);
    const QueryInputs in = {(const bf16 *)grad_out, (const bf16 *)query, (const bf16 *)out,
                            (const float *)logsumexp};
    single_query_backward_kernel<<<grid, 32, 0, stream->cuda>>>((bf16 *)grad_query, (bf16 *)grad_key,
                                                                (bf16 *)grad_value, in, (const bf16 *)key,
                                                                (const bf16 *)value, *shape);
}
