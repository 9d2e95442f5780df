// Lighthouse attention around its inner attention: the subsequence from the pyramid that was never written,
// the outputs from the subsequence, and the transposes of both. All are gathers in a fixed order.
#pragma once
#include "device/cuda/rope.cuh"
#include "device/cuda/select.cuh"

// kernels[levels - 2] of a table of kernels for 2 … LEVELS_MAX levels.
#define LEVELS_TABLE(kernel)                                                                                 \
    { kernel<2>, kernel<3>, kernel<4>, kernel<5>, kernel<6>, kernel<7>, kernel<8> }

// What the positions and one array [batch, entries, heads_each, head_dim] of the subsequence take.
static double subsequence_bytes(const LighthouseShape *shape, int heads_each) {
    const double batch = (double)shape->batch;
    return batch * (4.0 * shape->heads * (double)shape->pyramid +
                    2.0 * (double)shape->entries * heads_each * shape->head_dim);
}

// What an array [batch, seq_len, heads_each, head_dim] takes.
static double sequence_bytes(const LighthouseShape *shape, int heads_each) {
    return 2.0 * (double)shape->batch * (double)shape->seq_len * heads_each * shape->head_dim;
}

// A grid of `rows` rows of threads for each sequence (blockIdx.z), a thread per vector of `heads_each` heads.
static RowGrid sequence_grid(const LighthouseShape *shape, int64_t rows, int heads_each) {
    RowGrid launch = row_grid(rows, (int64_t)heads_each * shape->head_dim / WIDTH);
    launch.grid.z = (unsigned)shape->batch;
    return launch;
}

// Where a level starts in a head's pyramid: level_start of ops.h for a level known to the compiler.
__device__ inline int64_t pyramid_start(const LighthouseShape &shape, int level) {
    int64_t start = 0;
#pragma unroll
    for (int below = 0; below < level; below++) start += shape.seq_len >> (below * shape.log2_pool);
    return start;
}

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

// --- sums over a sequence's blocks ----------------------------------------------------------------------

constexpr int WALK_ROWS = 16; // that a thread goes through, unless a block of the coarsest level has more
constexpr int WALK_BATCH = 4; // whose loads are under way together

static int walk_rows(const LighthouseShape *shape) {
    return (int)max_i64(WALK_ROWS, (int64_t)1 << ((shape->levels - 1) * shape->log2_pool));
}

// Goes through rows first … end - 1, load(row) giving 8 columns of one, and hands out the sum of each block
// of pool^level rows as soon as it is complete (at row `last` all are) by put(level, block's index, place,
// sum), with place(level, index) read ahead.
template <int LEVELS, typename Load, typename Place, typename Put>
__device__ inline void walk(int first, int end, int last, int log2_pool, Load load, Place place, Put put) {
    Floats<8> sums[LEVELS - 1] = {}; // of the blocks of levels 1 … LEVELS - 1 so far
    for (int start = first; start < end; start += WALK_BATCH) {
        uint4 packed[WALK_BATCH];
        int32_t places[WALK_BATCH];
#pragma unroll
        for (int k = 0; k < WALK_BATCH; k++) {
            packed[k] = start + k < end ? load(start + k) : make_uint4(0, 0, 0, 0);
            places[k] = start + k < end ? place(0, start + k) : -1;
        }
#pragma unroll
        for (int k = 0; k < WALK_BATCH; k++) {
            const int row = start + k;
            if (row >= end) break;
            Floats<8> block = unpack(packed[k]);
            put(0, row, places[k], block);
#pragma unroll
            for (int level = 1; level < LEVELS; level++) {
                add_scaled(sums[level - 1], 1, block);
                const int rows = 1 << (level * log2_pool), index = row >> (level * log2_pool);
                if (((row + 1) & (rows - 1)) != 0 && row != last) break;
                block = sums[level - 1];
                sums[level - 1] = {};
                put(level, index, place(level, index), block);
            }
        }
    }
}

// --- gather ---------------------------------------------------------------------------------------------

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

// --- scatter --------------------------------------------------------------------------------------------

// The piece that a block works on, as it would on a whole sequence: blockIdx.z counts the sequences of piece
// 0, then those of piece 1, …
struct Piece {
    int index, batch;
    int first, tokens; // in the sequence
};

__device__ inline Piece block_piece(const LighthouseShape &shape, int tokens) {
    Piece piece = {0, (int)blockIdx.z, 0, tokens};
    while (piece.batch >= (int)shape.batch) { // there are few pieces
        piece.batch -= (int)shape.batch;
        piece.index++;
        piece.first += tokens;
    }
    return piece;
}

// Where the row of level 1 of a piece starts in a halo [pieces, batch, levels-1, width].
__device__ inline int64_t halo_start(const LighthouseShape &shape, const Piece &piece, int64_t width) {
    return (piece.index * shape.batch + piece.batch) * (shape.levels - 1) * width;
}

// Row `row` of rows that lie `bytes` apart: as a 32-bit product it is one instruction.
template <typename T> __device__ inline T *row_at(T *rows, int row, int bytes) {
    return (T *)((const char *)rows + (int64_t)row * bytes);
}

static RowGrid piece_grid(const LighthouseShape *shape, int64_t rows) {
    RowGrid launch = sequence_grid(shape, rows, shape->heads);
    launch.grid.z *= (unsigned)shape->pieces;
    return launch;
}

// Tokens that a thread does, its loads for all of them under way together.
__host__ __device__ constexpr int scatter_tokens(int levels) {
    return levels <= 4 ? 4 : 2;
}

// A thread per scatter_tokens (grid_row) of a piece (block_piece) and vector of out's columns (grid_vector).
// Reads sub_out once from memory, mostly from the caches, and writes out once: 2 bytes per element.
template <int LEVELS>
__global__ void __launch_bounds__(256)
    scatter_kernel(bf16 *__restrict__ out, const bf16 *__restrict__ sub_out,
                   const int32_t *__restrict__ positions, LighthouseShape shape, int piece_tokens) {
    constexpr int TOKENS = scatter_tokens(LEVELS);
    const Piece piece = block_piece(shape, piece_tokens);
    const int first = (int)grid_row() * TOKENS, width = shape.heads * shape.head_dim; // first in the piece
    const int64_t column = grid_vector() * WIDTH;
    if (first >= piece.tokens || column >= width) return;
    const int head = (int)column / shape.head_dim, row_bytes = width * (int)sizeof(bf16);
    const bf16 *from = sub_out + piece.batch * shape.entries * width + column;
    bf16 *to = out + (piece.batch * shape.seq_len + piece.first + first) * width + column;
    const int32_t *places = positions + ((int64_t)piece.batch * shape.heads + head) * shape.pyramid;

    int32_t position[TOKENS][LEVELS];
#pragma unroll
    for (int k = 0; k < TOKENS; k++) {
#pragma unroll
        for (int level = 0; level < LEVELS; level++) {
            const int shift = level * shape.log2_pool;
            const int start = (int)pyramid_start(shape, level) + (piece.first >> shift) - 1;
            const int number = (first + k + 1) >> shift; // of the entry in its piece, from 1
            position[k][level] = first + k < piece.tokens && number > 0 ? places[start + number] : -1;
        }
    }
    uint4 packed[TOKENS][LEVELS];
#pragma unroll
    for (int k = 0; k < TOKENS; k++) {
#pragma unroll
        for (int level = 0; level < LEVELS; level++)
            packed[k][level] = position[k][level] < 0
                                   ? make_uint4(0, 0, 0, 0)
                                   : load_packed(row_at(from, position[k][level], row_bytes));
    }
#pragma unroll
    for (int k = 0; k < TOKENS; k++) {
        if (first + k >= piece.tokens) break;
        Floats<8> sum = {};
#pragma unroll
        for (int level = 0; level < LEVELS; level++) add_scaled(sum, 1, unpack(packed[k][level]));
        store_streaming(to + k * width, sum);
    }
}

// The first pool^(levels-1) - 1 tokens of a piece once more, with what they get from the piece before: a
// thread per token (grid_row) of a piece (block_piece) and vector of out's columns (grid_vector).
__global__ void __launch_bounds__(256)
    scatter_first_kernel(bf16 *__restrict__ out, const bf16 *__restrict__ sub_out,
                         const bf16 *__restrict__ halo, const int32_t *__restrict__ positions,
                         LighthouseShape shape, int piece_tokens) {
    const Piece piece = block_piece(shape, piece_tokens);
    const int token = (int)grid_row(), width = shape.heads * shape.head_dim; // token in the piece
    const int64_t column = grid_vector() * WIDTH;
    if (token + 1 >= 1 << ((shape.levels - 1) * shape.log2_pool) || column >= width) return;
    const int64_t head = column / shape.head_dim;
    const int32_t *places = positions + (piece.batch * shape.heads + head) * shape.pyramid;
    Floats<8> sum = {};
    for (int level = 0; level < shape.levels; level++) {
        const int shift = level * shape.log2_pool, number = (token + 1) >> shift;
        const int64_t start = pyramid_start(shape, level) + (piece.first >> shift) - 1;
        const int64_t position = number > 0 ? places[start + number] : -1;
        if (number == 0)
            add_scaled(sum, 1,
                       load<8>(halo + halo_start(shape, piece, width) + (level - 1) * width + column));
        else if (position >= 0)
            add_scaled(sum, 1, load<8>(sub_out + (piece.batch * shape.entries + position) * width + column));
    }
    store(out + (piece.batch * shape.seq_len + piece.first + token) * width + column, sum);
}

static void lighthouse_scatter(void *out, const void *sub_out, const void *halo, const int32_t *positions,
                               const LighthouseShape *shape, Stream *stream) {
    OpScope scope(stream, "lighthouse_scatter",
                  sequence_bytes(shape, shape->heads) + subsequence_bytes(shape, shape->heads));
    check_supported(shape, stream);
    static decltype(&scatter_kernel<2>) const kernels[] = LEVELS_TABLE(scatter_kernel);
    const int64_t tokens = shape->seq_len / shape->pieces;
    const RowGrid launch = piece_grid(shape, divide_up(tokens, scatter_tokens(shape->levels)));
    auto kernel = kernels[shape->levels - 2];
    kernel<<<launch.grid, launch.block, 0, stream->cuda>>>((bf16 *)out, (const bf16 *)sub_out, positions,
                                                           *shape, (int)tokens);
    if (!halo) return;
    const RowGrid first = piece_grid(shape, (1 << ((shape->levels - 1) * shape->log2_pool)) - 1);
    scatter_first_kernel<<<first.grid, first.block, 0, stream->cuda>>>(
        (bf16 *)out, (const bf16 *)sub_out, (const bf16 *)halo, positions, *shape, (int)tokens);
}

// Blocks that a multiprocessor's registers have room for.
constexpr int scatter_backward_blocks(int levels) {
    return levels == 2 ? 4 : levels <= 4 ? 3 : 2;
}

// With u = token + 1, of tokens numbered in their piece, an entry's output went to a block of u's: block
// index + 1 of its level, of which the last, at u = the piece's tokens, is cut off after its first. So this
// is a walk as gather's, over u's. Reads grad_out once and writes each selected entry: 2 bytes per element.
template <int LEVELS>
__global__ void __launch_bounds__(256, scatter_backward_blocks(LEVELS))
    scatter_backward_kernel(bf16 *__restrict__ grad_sub_out, const bf16 *__restrict__ grad_out,
                            const int32_t *__restrict__ positions, LighthouseShape shape, int piece_tokens,
                            int rows) {
    const Piece piece = block_piece(shape, piece_tokens);
    const int first = (int)grid_row() * rows, width = shape.heads * shape.head_dim;
    const int64_t column = grid_vector() * WIDTH;
    if (first > piece.tokens || column >= width) return;
    const int head = (int)column / shape.head_dim, row_bytes = width * (int)sizeof(bf16);
    const bf16 *from = grad_out + (piece.batch * shape.seq_len + piece.first - 1) * width + column;
    bf16 *to = grad_sub_out + piece.batch * shape.entries * width + column;
    const int32_t *places = positions + ((int64_t)piece.batch * shape.heads + head) * shape.pyramid;

    auto load = [&](int u) {
        return u > 0 ? load_streaming(row_at(from, u, row_bytes)) : make_uint4(0, 0, 0, 0);
    };
    auto place = [&](int level, int block) {
        const int start = (int)pyramid_start(shape, level) + (piece.first >> (level * shape.log2_pool)) - 1;
        return block > 0 ? places[start + block] : -1;
    };
    auto put = [&](int, int, int32_t position, const Floats<8> &sum) {
        if (position >= 0) store(row_at(to, position, row_bytes), sum);
    };
    walk<LEVELS>(first, min(first + rows, piece.tokens + 1), piece.tokens, shape.log2_pool, load, place, put);
}

// A level's last entry of a piece (block_piece): where it stands in the subsequence, or -1.
__device__ inline int64_t last_position(const int32_t *positions, const LighthouseShape &shape,
                                        const Piece &piece, int level, int64_t head) {
    const int64_t index = ((piece.first + piece.tokens) >> (level * shape.log2_pool)) - 1;
    return positions[(piece.batch * shape.heads + head) * shape.pyramid + pyramid_start(shape, level) +
                     index];
}

// The last entries of the levels from 1 on (grid_row) of a piece once more, with what the tokens after it
// hand back: in the piece their outputs went to its last token alone. A thread per vector of grad_out's
// columns (grid_vector).
__global__ void __launch_bounds__(256)
    scatter_last_backward_kernel(bf16 *__restrict__ grad_sub_out, const bf16 *__restrict__ grad_out,
                                 const float *__restrict__ grad_halo, const int32_t *__restrict__ positions,
                                 LighthouseShape shape, int piece_tokens) {
    const Piece piece = block_piece(shape, piece_tokens);
    const int level = 1 + (int)grid_row(), width = shape.heads * shape.head_dim;
    const int64_t column = grid_vector() * WIDTH;
    if (level >= shape.levels || column >= width) return;
    const int64_t position = last_position(positions, shape, piece, level, column / shape.head_dim);
    if (position < 0) return;
    const int64_t last_token = piece.batch * shape.seq_len + piece.first + piece.tokens - 1;
    Floats<8> sum = load<8>(grad_out + last_token * width + column);
    add_scaled(sum, 1, load<8>(grad_halo + halo_start(shape, piece, width) + (level - 1) * width + column));
    store(grad_sub_out + (piece.batch * shape.entries + position) * width + column, sum);
}

static void lighthouse_scatter_backward(void *grad_sub_out, const void *grad_out, const void *grad_halo,
                                        const int32_t *positions, const LighthouseShape *shape,
                                        Stream *stream) {
    OpScope scope(stream, "lighthouse_scatter_backward",
                  sequence_bytes(shape, shape->heads) + subsequence_bytes(shape, shape->heads));
    check_supported(shape, stream);
    static decltype(&scatter_backward_kernel<2>) const kernels[] = LEVELS_TABLE(scatter_backward_kernel);
    const int rows = walk_rows(shape);
    const int64_t tokens = shape->seq_len / shape->pieces;
    const RowGrid launch = piece_grid(shape, divide_up(tokens + 1, rows));
    auto kernel = kernels[shape->levels - 2];
    kernel<<<launch.grid, launch.block, 0, stream->cuda>>>((bf16 *)grad_sub_out, (const bf16 *)grad_out,
                                                           positions, *shape, (int)tokens, rows);
    if (!grad_halo) return;
    const RowGrid last = piece_grid(shape, shape->levels - 1);
    scatter_last_backward_kernel<<<last.grid, last.block, 0, stream->cuda>>>(
        (bf16 *)grad_sub_out, (const bf16 *)grad_out, (const float *)grad_halo, positions, *shape,
        (int)tokens);
}

// --- what crosses from piece to piece -------------------------------------------------------------------
// A few vectors: nothing is tuned.

static double halo_elements(const LighthouseShape *shape) {
    return (double)shape->pieces * (double)shape->batch * (shape->levels - 1) * shape->heads *
           shape->head_dim;
}

// A thread per vector of a level's columns (grid_vector), for the levels from 1 on (grid_row) of a piece
// (block_piece).
__global__ void halo_kernel(bf16 *__restrict__ halo, const bf16 *__restrict__ sub_out,
                            const int32_t *__restrict__ positions, LighthouseShape shape, int piece_tokens) {
    const Piece piece = block_piece(shape, piece_tokens);
    const int level = 1 + (int)grid_row(), width = shape.heads * shape.head_dim;
    const int64_t column = grid_vector() * WIDTH;
    if (level >= shape.levels || column >= width) return;
    const int64_t position = last_position(positions, shape, piece, level, column / shape.head_dim);
    const int64_t row = piece.batch * shape.entries + position;
    store_packed(halo + halo_start(shape, piece, width) + (level - 1) * width + column,
                 position < 0 ? make_uint4(0, 0, 0, 0) : load_packed(sub_out + row * width + column));
}

static void lighthouse_halo(void *halo, const void *sub_out, const int32_t *positions,
                            const LighthouseShape *shape, Stream *stream) {
    OpScope scope(stream, "lighthouse_halo", 4.0 * halo_elements(shape));
    const RowGrid launch = piece_grid(shape, shape->levels - 1);
    halo_kernel<<<launch.grid, launch.block, 0, stream->cuda>>>(
        (bf16 *)halo, (const bf16 *)sub_out, positions, *shape, (int)(shape->seq_len / shape->pieces));
}

// A thread per vector of grad_out's columns (grid_vector) of a piece (block_piece): each level's sum goes on
// where that of the level before ends.
__global__ void halo_backward_kernel(float *__restrict__ grad_halo, const bf16 *__restrict__ grad_out,
                                     LighthouseShape shape, int piece_tokens) {
    const Piece piece = block_piece(shape, piece_tokens);
    const int64_t width = (int64_t)shape.heads * shape.head_dim, column = grid_vector() * WIDTH;
    if (grid_row() > 0 || column >= width) return;
    const bf16 *from = grad_out + (piece.batch * shape.seq_len + piece.first) * width + column;
    float *to = grad_halo + halo_start(shape, piece, width) + column;
    Floats<8> sum = {};
    for (int level = 1, token = 0; level < shape.levels; level++) {
        const int end = (1 << (level * shape.log2_pool)) - 1;
#pragma unroll 8
        for (; token < end; token++) add_scaled(sum, 1, load<8>(from + token * width));
        store(to + (level - 1) * width, sum);
    }
}

static void lighthouse_halo_backward(void *grad_halo, const void *grad_out, const LighthouseShape *shape,
                                     Stream *stream) {
    const double tokens = (double)((int64_t)1 << ((shape->levels - 1) * shape->log2_pool));
    OpScope scope(stream, "lighthouse_halo_backward",
                  halo_elements(shape) * (4 + 2 * tokens / (shape->levels - 1)));
    const RowGrid launch = piece_grid(shape, 1);
    halo_backward_kernel<<<launch.grid, launch.block, 0, stream->cuda>>>(
        (float *)grad_halo, (const bf16 *)grad_out, *shape, (int)(shape->seq_len / shape->pieces));
}
