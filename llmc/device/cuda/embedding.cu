// Token embedding: rows of a table, and the gradient of that table.
#include "device/cuda/operations.cuh"
#include "device/cuda/vector.cuh"

#include <cub/device/device_radix_sort.cuh>

// Reads a row of the table for each token and writes it: 4 bytes per element.
__global__ void embedding_forward_kernel(bf16 *__restrict__ out, const bf16 *__restrict__ weight,
                                         const int32_t *__restrict__ tokens, int64_t rows, int64_t vectors) {
    const int64_t row = grid_row(), vector = grid_vector();
    if (row >= rows || vector >= vectors) return;
    const uint4 packed = load_packed(weight + ((int64_t)tokens[row] * vectors + vector) * WIDTH);
    store_packed(out + (row * vectors + vector) * WIDTH, packed);
}

static void embedding_forward(void *out, const void *weight, const int32_t *tokens, int64_t rows, int64_t dim,
                              int64_t, Stream *stream) {
    OpScope scope(stream, "embedding_forward", (double)rows * (4.0 * (double)dim + 4));
    if (rows == 0) return;
    const RowGrid shape = row_grid(rows, dim / WIDTH);
    embedding_forward_kernel<<<shape.grid, shape.block, 0, stream->cuda>>>((bf16 *)out, (const bf16 *)weight,
                                                                           tokens, rows, dim / WIDTH);
}

// --- backward -------------------------------------------------------------------------------------------
//
// The rows of grad_out are sorted by token (stably: rows of the same token stay in order) and divided into
// chunks of SORTED_CHUNK rows. A run is the rows of one token. The first kernel sums runs within each chunk:
// the sum of a run that lies inside the chunk is added to the table; of a run that crosses the chunk's
// border, the chunk's part is stored in partials[chunk][side], side 0 if the run began before the chunk, else
// side 1. The second kernel adds up, for the chunk in which such a run began, all its partial sums in order.

constexpr int SORTED_CHUNK = 64;
constexpr int SORTED_BATCH = 8; // rows that a thread loads before it uses the first
constexpr int EMBEDDING_THREADS = 128;

__global__ void row_numbers_kernel(int32_t *out, int32_t count) {
    const int64_t i = grid_thread();
    if (i < count) out[i] = (int32_t)i;
}

// A block per chunk (blockIdx.x) and slab of columns (blockIdx.y), a thread per vector of columns.
// Reads grad_out once, 2 bytes per element, and reads and writes 8 bytes per column of each run.
__global__ void __launch_bounds__(EMBEDDING_THREADS)
    embedding_backward_chunk_kernel(float *__restrict__ grad_weight, float *__restrict__ partials,
                                    const bf16 *__restrict__ grad_out,
                                    const int32_t *__restrict__ sorted_tokens,
                                    const int32_t *__restrict__ sorted_rows, int64_t rows, int64_t dim) {
    __shared__ int32_t tokens[SORTED_CHUNK], numbers[SORTED_CHUNK];
    const int64_t start = (int64_t)blockIdx.x * SORTED_CHUNK;
    const int count = (int)(rows - start < SORTED_CHUNK ? rows - start : SORTED_CHUNK);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        tokens[i] = sorted_tokens[start + i];
        numbers[i] = sorted_rows[start + i];
    }
    __syncthreads();
    const int64_t column = grid_vector() * WIDTH;
    if (column >= dim) return;
    const int32_t before = start > 0 ? sorted_tokens[start - 1] : -1;
    const int32_t after = start + count < rows ? sorted_tokens[start + count] : -1;

    bool began_before = tokens[0] == before; // the current run began before this chunk
    Floats<8> sum = {};
    for (int first = 0; first < count; first += SORTED_BATCH) {
        uint4 packed[SORTED_BATCH];
#pragma unroll
        for (int k = 0; k < SORTED_BATCH; k++)
            packed[k] = first + k < count ? load_packed(grad_out + (int64_t)numbers[first + k] * dim + column)
                                          : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int k = 0; k < SORTED_BATCH; k++) {
            const int i = first + k;
            if (i >= count) break;
            const Floats<8> values = unpack(packed[k]);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) sum.x[j] += values.x[j];
            const bool last = i + 1 == count;
            if (!last && tokens[i + 1] == tokens[i]) continue;
            // The end of a run or of the chunk.
            if (began_before || (last && tokens[i] == after)) {
                const int side = began_before ? 0 : 1;
                store(partials + ((int64_t)blockIdx.x * 2 + side) * dim + column, sum);
            } else {
                float *to = grad_weight + (int64_t)tokens[i] * dim + column;
                Floats<8> total = load<8>(to);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) total.x[j] += sum.x[j];
                store(to, total);
            }
            began_before = false;
            sum = {};
        }
    }
}

// The position after the last `token` among the sorted tokens; sorted_tokens[from] must be one.
__device__ inline int64_t run_end(const int32_t *sorted_tokens, int64_t from, int64_t rows, int32_t token) {
    int64_t inside = from, outside = rows;
    while (outside - inside > 1) {
        const int64_t middle = (inside + outside) / 2;
        if (sorted_tokens[middle] == token)
            inside = middle;
        else
            outside = middle;
    }
    return outside;
}

constexpr int BORDER_SPLITS = 8;         // threads that share the partial sums of a column
constexpr int BORDER_COLUMNS = WARP * 4; // columns of a block

// A block per chunk (blockIdx.x) and BORDER_COLUMNS columns (blockIdx.y). If a run begins in the chunk and
// crosses its end, thread (x, y) adds up, for four columns, the partial sums of every BORDER_SPLITS-th chunk
// of the run, beginning with the y-th; then the sums of all y are added in order. Moves 4 bytes per column
// and partial sum.
__global__ void __launch_bounds__(WARP *BORDER_SPLITS)
    embedding_backward_border_kernel(float *__restrict__ grad_weight, const float *__restrict__ partials,
                                     const int32_t *__restrict__ sorted_tokens, int64_t rows, int64_t dim) {
    __shared__ Floats<4> sums[BORDER_SPLITS][WARP];
    const int64_t chunk = blockIdx.x, start = chunk * SORTED_CHUNK, border = start + SORTED_CHUNK;
    const int32_t token = sorted_tokens[border - 1];
    const bool crosses = sorted_tokens[border] == token;
    const bool began_before = start > 0 && sorted_tokens[start - 1] == token;
    if (!crosses || began_before) return; // the same for all threads of the block
    const int64_t last = (run_end(sorted_tokens, border, rows, token) - 1) / SORTED_CHUNK; // chunk it ends in

    const int64_t column = (int64_t)blockIdx.y * BORDER_COLUMNS + threadIdx.x * 4;
    Floats<4> sum = {};
    if (column < dim)
#pragma unroll 4
        for (int64_t c = chunk + threadIdx.y; c <= last; c += BORDER_SPLITS) {
            const Floats<4> part = load<4>(partials + (c * 2 + (c == chunk ? 1 : 0)) * dim + column);
            for (int i = 0; i < 4; i++) sum.x[i] += part.x[i];
        }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= dim) return;
    float *to = grad_weight + (int64_t)token * dim + column;
    Floats<4> total = {};
    for (int y = 0; y < BORDER_SPLITS; y++)
        for (int i = 0; i < 4; i++) total.x[i] += sums[y][threadIdx.x].x[i];
    const Floats<4> old = load<4>((const float *)to);
    for (int i = 0; i < 4; i++) total.x[i] += old.x[i];
    store(to, total);
}

// The parts of the workspace, for a slice of `rows` rows.
struct EmbeddingScratch {
    int32_t *row_numbers, *sorted_tokens, *sorted_rows; // [rows]
    float *partials;                                    // [chunks, 2, dim]
    void *sort;                                         // the rest of the workspace, for the sort
    size_t sort_bytes;
};

// The most rows for which the workspace suffices. A row needs three int32 (EmbeddingScratch), two more and
// some tables in the sort (4 MiB and an int32 per row are spare for tables and alignment), and its partial
// sums.
static int64_t embedding_slice(int64_t dim) {
    const int64_t room = (int64_t)WORKSPACE_BYTES - ((int64_t)4 << 20);
    const int64_t chunk_bytes =
        SORTED_CHUNK * (3 + 2 + 1) * (int64_t)sizeof(int32_t) + 2 * dim * (int64_t)sizeof(float);
    return room / chunk_bytes * SORTED_CHUNK;
}

static EmbeddingScratch embedding_scratch(void *workspace, int64_t rows, int64_t dim) {
    const size_t ints = (size_t)round_up(rows, 64) * sizeof(int32_t); // a multiple of 256 bytes
    const size_t sums = (size_t)divide_up(rows, SORTED_CHUNK) * 2 * (size_t)dim * sizeof(float);
    char *at = (char *)workspace;
    EmbeddingScratch scratch;
    scratch.row_numbers = (int32_t *)at;
    scratch.sorted_tokens = (int32_t *)(at + ints);
    scratch.sorted_rows = (int32_t *)(at + 2 * ints);
    scratch.partials = (float *)(at + 3 * ints);
    const size_t used = 3 * ints + (size_t)round_up((int64_t)sums, 256);
    scratch.sort = at + used;
    scratch.sort_bytes = WORKSPACE_BYTES - used;
    return scratch;
}

static void embedding_backward_slice(float *grad_weight, const bf16 *grad_out, const int32_t *tokens,
                                     int64_t rows, int64_t dim, int64_t vocab, Stream *stream) {
    const EmbeddingScratch scratch = embedding_scratch(stream->workspace, rows, dim);
    row_numbers_kernel<<<grid_blocks(rows, 256), 256, 0, stream->cuda>>>(scratch.row_numbers, (int32_t)rows);
    int token_bits = 1;
    while (((int64_t)1 << token_bits) < vocab) token_bits++;
    size_t sort_bytes = scratch.sort_bytes;
    CUDA_CHECK(cub::DeviceRadixSort::SortPairs(scratch.sort, sort_bytes, tokens, scratch.sorted_tokens,
                                               scratch.row_numbers, scratch.sorted_rows, (int)rows, 0,
                                               token_bits, stream->cuda));
    const int64_t chunks = divide_up(rows, SORTED_CHUNK);
    const dim3 chunk_grid((unsigned)chunks, grid_blocks(dim / WIDTH, EMBEDDING_THREADS));
    embedding_backward_chunk_kernel<<<chunk_grid, EMBEDDING_THREADS, 0, stream->cuda>>>(
        grad_weight, scratch.partials, grad_out, scratch.sorted_tokens, scratch.sorted_rows, rows, dim);
    if (chunks == 1) return;
    const dim3 border_grid((unsigned)(chunks - 1), grid_blocks(dim, BORDER_COLUMNS));
    embedding_backward_border_kernel<<<border_grid, dim3(WARP, BORDER_SPLITS), 0, stream->cuda>>>(
        grad_weight, scratch.partials, scratch.sorted_tokens, rows, dim);
}

static void embedding_backward(void *grad_weight, const void *grad_out, const int32_t *tokens, int64_t rows,
                               int64_t dim, int64_t vocab, Stream *stream) {
    OpScope scope(stream, "embedding_backward", (double)rows * (2.0 * (double)dim + 4));
    const int64_t slice = embedding_slice(dim);
    for (int64_t first = 0; first < rows; first += slice)
        embedding_backward_slice((float *)grad_weight, (const bf16 *)grad_out + first * dim, tokens + first,
                                 min_i64(slice, rows - first), dim, vocab, stream);
}

const EmbeddingOps cuda_embedding = {.forward = embedding_forward, .backward = embedding_backward};
