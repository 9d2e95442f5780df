// Scatters the subsequence's outputs to the sequence, computes halos, and the transposes of both. Each thread
// gathers the terms of its result in a fixed order, so that no atomics are needed.
#include "device/cuda/lighthouse.cuh"
#include "device/cuda/operations.cuh"

// The piece that a block works on. blockIdx.z counts first piece 0 of each sequence of the batch, then piece
// 1 of each, and so on.
struct Piece {
    int index, batch;
    int first, tokens; // the piece's first token in the sequence, and its number of tokens
};

__device__ inline Piece block_piece(const LighthouseShape &shape, int tokens) {
    Piece piece = {0, (int)blockIdx.z, 0, tokens};
    while (piece.batch >= (int)shape.batch) { // few pieces: faster than a division
        piece.batch -= (int)shape.batch;
        piece.index++;
        piece.first += tokens;
    }
    return piece;
}

// The index at which a piece's row of level 1 starts in a halo [pieces, batch, levels-1, width].
__device__ inline int64_t halo_start(const LighthouseShape &shape, const Piece &piece, int64_t width) {
    return (piece.index * shape.batch + piece.batch) * (shape.levels - 1) * width;
}

// The address of row `row`, with rows `bytes` bytes apart. A product of two 32-bit numbers is one
// instruction.
template <typename T> __device__ inline T *row_at(T *rows, int row, int bytes) {
    return (T *)((const char *)rows + (int64_t)row * bytes);
}

static RowGrid piece_grid(const LighthouseShape *shape, int64_t rows) {
    RowGrid launch = sequence_grid(shape, rows, shape->heads);
    launch.grid.z *= (unsigned)shape->pieces;
    return launch;
}

// The number of tokens that a thread computes; it issues the loads for all of them before it uses the first.
__host__ __device__ constexpr int scatter_tokens(int levels) {
    return levels <= 4 ? 4 : 2;
}

// A thread per scatter_tokens tokens (grid_row) of a piece (block_piece) and vector of out's columns
// (grid_vector). Reads sub_out from memory once (repeated reads hit the caches) and writes out once: 2 bytes
// per element.
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
            const int number = (first + k + 1) >> shift; // the entry's number in its piece, from 1; 0: none
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

// Computes the first pool^(levels-1) - 1 tokens of a piece again, now with the halo from the piece before. A
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

// The number of blocks for which a multiprocessor has registers.
constexpr int scatter_backward_blocks(int levels) {
    return levels == 2 ? 4 : levels <= 4 ? 3 : 2;
}

// Number the tokens of a piece by u = token + 1. The output of entry (level, index) went to the aligned block
// index + 1 of pool^level u's; the last block of a level has only one u, that of the piece's last token. So
// the sums are those of the gather, over u instead of tokens, by the same walk (lighthouse.cuh). Reads
// grad_out once and writes each selected entry: 2 bytes per element.
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

// The position in the subsequence of the last entry of a level in a piece; -1 if it is not selected.
__device__ inline int64_t last_position(const int32_t *positions, const LighthouseShape &shape,
                                        const Piece &piece, int level, int64_t head) {
    const int64_t index = ((piece.first + piece.tokens) >> (level * shape.log2_pool)) - 1;
    return positions[(piece.batch * shape.heads + head) * shape.pyramid + pyramid_start(shape, level) +
                     index];
}

// Computes the gradients of a piece's last entries at levels from 1 on (grid_row) again, now with the halo's:
// in the piece their outputs went to its last token only, the rest to the piece after it. A thread per level
// and vector of grad_out's columns (grid_vector).
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

// --- halos ----------------------------------------------------------------------------------------------
// Halos are a few vectors, so these kernels are not tuned.

static double halo_elements(const LighthouseShape *shape) {
    return (double)shape->pieces * (double)shape->batch * (shape->levels - 1) * shape->heads *
           shape->head_dim;
}

// A thread per level from 1 on (grid_row) of a piece (block_piece) and vector of columns (grid_vector).
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

// A thread per piece (block_piece) and vector of grad_out's columns (grid_vector). A level's sum includes all
// tokens of the finer levels' sums, so one running sum serves all levels.
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

const ScatterOps cuda_scatter = {.forward = lighthouse_scatter,
                                 .backward = lighthouse_scatter_backward,
                                 .halo = lighthouse_halo,
                                 .halo_backward = lighthouse_halo_backward};
