// From the sequence to the subsequence of the selected entries, whose pyramid is never written, and the
// transpose. Both are gathers in a fixed order.
#include "device/cuda/lighthouse.cuh"
#include "device/cuda/operations.cuh"
#include "device/cuda/rope.cuh"

// 1/pool^level, exactly.
__device__ inline float level_weight(const LighthouseShape &shape, int level) {
    return __uint_as_float((uint32_t)(127 - level * shape.log2_pool) << 23);
}

// The query heads that one of the heads of qkv is for, and where the first of them stands in a gathered row.
struct ServedHeads {
    int first, count, gathered;
};

__device__ inline ServedHeads served_heads(const LighthouseShape &shape, int qkv_head) {
    if (qkv_head < shape.heads) return {qkv_head, 1, qkv_head};
    const int group = shape.heads / shape.kv_heads, key_or_value = qkv_head - shape.heads;
    const int first = key_or_value % shape.kv_heads * group;
    return {first, group, (key_or_value < shape.kv_heads ? 1 : 2) * shape.heads + first};
}

// A thread per walk (grid_row) of a sequence (blockIdx.z) and vector of qkv's columns (grid_vector). Reads
// qkv once and writes each selected entry: 2 bytes per element.
template <int LEVELS>
__global__ void __launch_bounds__(256)
    gather_kernel(bf16 *__restrict__ gathered, const bf16 *__restrict__ qkv,
                  const int32_t *__restrict__ positions, LighthouseShape shape, int rows) {
    const int64_t batch = blockIdx.z;
    const int first = (int)grid_row() * rows, tokens = (int)shape.seq_len;
    const int64_t width = (int64_t)(shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    const int64_t column = grid_vector() * WIDTH;
    if (first >= tokens || column >= width) return;
    const int qkv_head = (int)column / shape.head_dim;
    const ServedHeads heads = served_heads(shape, qkv_head);
    const int64_t gathered_width = (int64_t)3 * shape.heads * shape.head_dim;
    const bf16 *from = qkv + batch * shape.seq_len * width + column;
    bf16 *to = gathered + batch * shape.entries * gathered_width + column +
               (int64_t)(heads.gathered - qkv_head) * shape.head_dim;
    const int32_t *places = positions + (batch * shape.heads + heads.first) * shape.pyramid;

    auto load = [&](int token) { return load_streaming(from + (int64_t)token * width); };
    auto place = [&](int level, int index) { return places[pyramid_start(shape, level) + index]; };
    auto put = [&](int level, int index, int32_t position, const Floats<8> &sum) {
        for (int head = 0;;) {
            if (position >= 0) {
                Floats<8> mean = {};
                add_scaled(mean, level_weight(shape, level), sum);
                store(to + position * gathered_width + head * shape.head_dim, mean);
            }
            if (++head == heads.count) break;
            position = places[head * shape.pyramid + pyramid_start(shape, level) + index];
        }
    };
    walk<LEVELS>(first, min(first + rows, tokens), tokens, shape.log2_pool, load, place, put);
}

static void lighthouse_gather(void *gathered, const void *qkv, const int32_t *positions,
                              const LighthouseShape *shape, Stream *stream) {
    const int heads = shape->heads + 2 * shape->kv_heads;
    OpScope scope(stream, "lighthouse_gather",
                  sequence_bytes(shape, heads) + subsequence_bytes(shape, 3 * shape->heads));
    check_supported(shape, stream);
    static decltype(&gather_kernel<2>) const kernels[] = LEVELS_TABLE(gather_kernel);
    const int rows = walk_rows(shape);
    const RowGrid launch = sequence_grid(shape, divide_up(shape->seq_len, rows), heads);
    auto kernel = kernels[shape->levels - 2];
    kernel<<<launch.grid, launch.block, 0, stream->cuda>>>((bf16 *)gathered, (const bf16 *)qkv, positions,
                                                           *shape, rows);
}

constexpr int TURN_TOKENS = 8; // that a thread of the backward does, so that their common entries are near

// A thread per TURN_TOKENS tokens (grid_row) of a sequence (blockIdx.z) and pair of vectors (grid_vector),
// half a head apart, of grad_qkv's columns. Vector is uint4 where half a head is a whole number of those,
// else uint2. Reads grad_gathered once from memory, mostly from the caches, and writes grad_qkv once: 2 bytes
// per element.
template <int LEVELS, typename Vector>
__device__ inline void gather_backward(bf16 *__restrict__ grad_qkv, const bf16 *__restrict__ grad_gathered,
                                       const int32_t *__restrict__ positions,
                                       const float *__restrict__ angles, const LighthouseShape &shape) {
    constexpr int N = sizeof(Vector) / sizeof(bf16);
    const int qkv_heads = shape.heads + 2 * shape.kv_heads, half = shape.head_dim / 2, pairs = half / N;
    const int64_t batch = blockIdx.z;
    const int first = (int)grid_row() * TURN_TOKENS, tokens = (int)shape.seq_len;
    const int vector = (int)grid_vector(), qkv_head = vector / pairs, j = vector % pairs * N;
    if (first >= tokens || qkv_head >= qkv_heads) return;
    const ServedHeads heads = served_heads(shape, qkv_head);
    const int64_t gathered_width = (int64_t)3 * shape.heads * shape.head_dim;
    const bf16 *from =
        grad_gathered + batch * shape.entries * gathered_width + (int64_t)heads.gathered * shape.head_dim + j;
    const int32_t *places = positions + (batch * shape.heads + heads.first) * shape.pyramid;
    const bool turned = angles && qkv_head < shape.heads + shape.kv_heads;
    const float *angle = angles + ((int64_t)first * half + j) * 2;
    bf16 *to = grad_qkv + ((batch * tokens + first) * qkv_heads + qkv_head) * shape.head_dim + j;

    const int end = min(first + TURN_TOKENS, tokens);
    for (int token = first; token < end; token++, angle += 2 * half, to += qkv_heads * shape.head_dim) {
        Angles<N> by = {};
        if (turned) by = load_angles<N>(angle);
        Floats<N> a = {}, b = {};
        for (int head = 0; head < heads.count; head++) {
            const int32_t *head_places = places + head * shape.pyramid;
            const bf16 *head_from = from + head * shape.head_dim;
            Vector packed_a[LEVELS] = {}, packed_b[LEVELS] = {};
#pragma unroll
            for (int level = 0; level < LEVELS; level++) {
                const int index = token >> (level * shape.log2_pool);
                const int64_t position = head_places[pyramid_start(shape, level) + index];
                if (position < 0) continue;
                packed_a[level] = *reinterpret_cast<const Vector *>(head_from + position * gathered_width);
                packed_b[level] =
                    *reinterpret_cast<const Vector *>(head_from + position * gathered_width + half);
            }
#pragma unroll
            for (int level = 0; level < LEVELS; level++) {
                add_scaled(a, level_weight(shape, level), unpack(packed_a[level]));
                add_scaled(b, level_weight(shape, level), unpack(packed_b[level]));
            }
        }
        if (turned) turn(a, b, by, -1);
        store_streaming(to, a);
        store_streaming(to + half, b);
    }
}

template <int LEVELS>
__global__ void __launch_bounds__(256, LEVELS <= 3 ? 3 : 2)
    gather_backward_kernel(bf16 *__restrict__ grad_qkv, const bf16 *__restrict__ grad_gathered,
                           const int32_t *__restrict__ positions, const float *__restrict__ angles,
                           LighthouseShape shape) {
    if (shape.head_dim / 2 % 8 == 0)
        gather_backward<LEVELS, uint4>(grad_qkv, grad_gathered, positions, angles, shape);
    else
        gather_backward<LEVELS, uint2>(grad_qkv, grad_gathered, positions, angles, shape);
}

static void lighthouse_gather_backward(void *grad_qkv, const void *grad_gathered, const int32_t *positions,
                                       const void *angles, const LighthouseShape *shape, Stream *stream) {
    const int heads = shape->heads + 2 * shape->kv_heads, half = shape->head_dim / 2;
    OpScope scope(stream, "lighthouse_gather_backward",
                  sequence_bytes(shape, heads) + subsequence_bytes(shape, 3 * shape->heads) +
                      (angles ? 8.0 * (double)shape->seq_len * half : 0));
    check_supported(shape, stream);
    static decltype(&gather_backward_kernel<2>) const kernels[] = LEVELS_TABLE(gather_backward_kernel);
    RowGrid launch =
        row_grid(divide_up(shape->seq_len, TURN_TOKENS), (int64_t)heads * (half / (half % 8 == 0 ? 8 : 4)));
    launch.grid.z = (unsigned)shape->batch;
    auto kernel = kernels[shape->levels - 2];
    kernel<<<launch.grid, launch.block, 0, stream->cuda>>>((bf16 *)grad_qkv, (const bf16 *)grad_gathered,
                                                           positions, (const float *)angles, *shape);
}

const GatherOps cuda_gather = {.forward = lighthouse_gather, .backward = lighthouse_gather_backward};
