// Softmax attention, by blocks of queries and blocks of keys (arXiv 2205.14135), so that no array of size
// query_len x key_len is needed. One thread computes each block of results, in a fixed order: the results do
// not depend on the number of threads.
#include "device/cpu/matrix.h"
#include "device/cpu/operations.h"

#include <tgmath.h>

// A block has BLOCK queries or keys; with very wide heads fewer, so that blocks fit the scratch.
enum { BLOCK = 64, BLOCK_ELEMENTS = HEAD_DIM_MAX };
_Static_assert(7 * BLOCK_ELEMENTS + 2 * BLOCK * BLOCK + 2 * BLOCK <= SCRATCH_ELEMENTS,
               "the backward's blocks fit the scratch");

static int64_t block_size(const AttentionShape *shape) {
    return max_i64(1, min_i64(BLOCK, BLOCK_ELEMENTS / shape->head_dim));
}

static int64_t address(AttentionStrides strides, int64_t batch, int64_t token, int64_t head) {
    return batch * strides.batch + token * strides.token + head * strides.head;
}

// Tokens [first, first + count) of one head of one sequence.
typedef struct {
    int64_t batch, head, first, count;
} Block;

static Block block_at(int64_t batch, int64_t head, int64_t first, int64_t len, const AttentionShape *shape) {
    return (Block){batch, head, first, min_i64(block_size(shape), len - first)};
}

// Returns the next `count` elements of the scratch and advances *scratch beyond them.
static accumulator_t *take(accumulator_t **scratch, int64_t count) {
    accumulator_t *taken = *scratch;
    *scratch += count;
    return taken;
}

static Panel load_tokens(accumulator_t *scratch, const storage_t *in, AttentionStrides strides, Block block,
                         const AttentionShape *shape) {
    const storage_t *first = in + address(strides, block.batch, block.first, block.head);
    return load_panel(scratch, first, strides.token, block.count, shape->head_dim);
}

static void store_tokens(storage_t *out, AttentionStrides strides, Block block, const accumulator_t *in,
                         const AttentionShape *shape) {
    for (int64_t i = 0; i < block.count; i++) {
        storage_t *row = out + address(strides, block.batch, block.first + i, block.head);
        for (int64_t d = 0; d < shape->head_dim; d++) store(&row[d], in[i * shape->head_dim + d]);
    }
}

// How many keys of the block the query at position `query` sees. At least one in each block that is visited:
// blocks of queries and of keys begin at the same positions.
static int64_t keys_seen(Block keys, int64_t query, const AttentionShape *shape) {
    return shape->causal ? min_i64(keys.count, query + 1 - keys.first) : keys.count;
}

// --- forward --------------------------------------------------------------------------------------------

// The running softmax of a query over the blocks of keys visited so far.
typedef struct {
    accumulator_t max; // of the scaled scores
    accumulator_t sum; // of exp(score - max)
} Softmax;

// Adds the first `seen` of a row of `count` scores to the softmax and replaces them by exp(score - max), the
// rest by zero. `out` [head_dim], the weighted sum of values so far, is rescaled from the old maximum to the
// new one.
static void softmax_step(Softmax *softmax, accumulator_t *scores, int64_t seen, int64_t count,
                         accumulator_t *out, const AttentionShape *shape) {
    const accumulator_t scale = (accumulator_t)shape->scale;
    accumulator_t max = softmax->max, sum = 0;
    for (int64_t j = 0; j < seen; j++) {
        scores[j] *= scale;
        max = scores[j] > max ? scores[j] : max;
    }
    for (int64_t j = 0; j < seen; j++) {
        scores[j] = exp(scores[j] - max);
        sum += scores[j];
    }
    for (int64_t j = seen; j < count; j++) scores[j] = 0;
    const accumulator_t rescale = exp(softmax->max - max);
    for (int64_t d = 0; d < shape->head_dim; d++) out[d] *= rescale;
    *softmax = (Softmax){max, softmax->sum * rescale + sum};
}

static void forward_block(storage_t *out, accumulator_t *logsumexp, const storage_t *query,
                          const storage_t *key, const storage_t *value, Block queries,
                          const AttentionShape *shape, accumulator_t *scratch) {
    const int64_t block = block_size(shape), panel = block * shape->head_dim, head_dim = shape->head_dim;
    accumulator_t *key_scratch = take(&scratch, panel), *value_scratch = take(&scratch, panel);
    accumulator_t *scores = take(&scratch, block * block), *sums = take(&scratch, panel);
    Panel q = load_tokens(take(&scratch, panel), query, shape->query, queries, shape);
    Softmax softmax[BLOCK];
    for (int64_t i = 0; i < queries.count; i++) softmax[i] = (Softmax){-INFINITY, 0};
    memset(sums, 0, (size_t)panel * sizeof(*sums));

    const int64_t kv_head = queries.head / (shape->heads / shape->kv_heads);
    const int64_t keys_end = shape->causal ? queries.first + queries.count : shape->key_len;
    for (int64_t first = 0; first < keys_end; first += block) {
        Block keys = block_at(queries.batch, kv_head, first, shape->key_len, shape);
        Panel k = load_tokens(key_scratch, key, shape->key, keys, shape);
        Panel v = load_tokens(value_scratch, value, shape->value, keys, shape);
        multiply(scores, q, transpose(k), queries.count, keys.count, head_dim, false);
        for (int64_t i = 0; i < queries.count; i++)
            softmax_step(&softmax[i], scores + i * keys.count, keys_seen(keys, queries.first + i, shape),
                         keys.count, sums + i * head_dim, shape);
        multiply(sums, (Panel){scores, keys.count, false}, v, queries.count, head_dim, keys.count, true);
    }
    for (int64_t i = 0; i < queries.count; i++) {
        for (int64_t d = 0; d < head_dim; d++) sums[i * head_dim + d] /= softmax[i].sum;
        logsumexp[address(shape->logsumexp, queries.batch, queries.first + i, queries.head)] =
            softmax[i].max + log(softmax[i].sum);
    }
    store_tokens(out, shape->output, queries, sums, shape);
}

static size_t attention_workspace(const AttentionShape *shape, bool backward, Stream *stream) {
    (void)shape, (void)backward, (void)stream;
    return 0; // the threads' scratch is enough
}

static void attention_forward(void *out, void *logsumexp, const void *query, const void *key,
                              const void *value, const AttentionShape *shape, void *workspace,
                              Stream *stream) {
    (void)workspace;
    const int64_t block = block_size(shape);
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t head = 0; head < shape->heads; head++)
            for (int64_t first = 0; first < shape->query_len; first += block)
                forward_block(out, logsumexp, query, key, value,
                              block_at(batch, head, first, shape->query_len, shape), shape,
                              thread_scratch(stream));
}

// --- backward -------------------------------------------------------------------------------------------
// With P = exp(scale·q·k - logsumexp) and the gradient of a score dS = scale·P·(grad_out·v - grad_out·out):
// dq = Σ_keys dS·k,  dk = Σ_queries dS·q,  dv = Σ_queries P·grad_out.
// One pass computes the blocks of dq, a second those of dk and dv. P is computed in both, so that no two
// threads add to the same block.

typedef struct {
    const storage_t *grad_out, *query, *key, *value, *out;
    const accumulator_t *logsumexp;
    const AttentionShape *shape;
} Inputs;

// The inputs of a block of queries, and of a block of keys.
typedef struct {
    Block block;
    Panel query, grad_out;
    accumulator_t *logsumexp, *grad_dot_out; // [count]
} QueryBlock;

typedef struct {
    Block block;
    Panel key, value;
} KeyBlock;

// A thread's scratch: the rows of a QueryBlock and a KeyBlock, and P and dS of the pair.
typedef struct {
    accumulator_t *query, *grad_out, *out, *logsumexp, *grad_dot_out, *key, *value, *probabilities,
        *grad_scores;
} Scratch;

static Scratch cut_scratch(accumulator_t **scratch, const AttentionShape *shape) {
    const int64_t block = block_size(shape), panel = block * shape->head_dim;
    return (Scratch){.query = take(scratch, panel),
                     .grad_out = take(scratch, panel),
                     .out = take(scratch, panel),
                     .key = take(scratch, panel),
                     .value = take(scratch, panel),
                     .logsumexp = take(scratch, block),
                     .grad_dot_out = take(scratch, block),
                     .probabilities = take(scratch, block * block),
                     .grad_scores = take(scratch, block * block)};
}

static QueryBlock load_queries(const Scratch *scratch, const Inputs *in, Block block) {
    const AttentionShape *shape = in->shape;
    QueryBlock queries = {.block = block,
                          .query = load_tokens(scratch->query, in->query, shape->query, block, shape),
                          .grad_out =
                              load_tokens(scratch->grad_out, in->grad_out, shape->output, block, shape),
                          .logsumexp = scratch->logsumexp,
                          .grad_dot_out = scratch->grad_dot_out};
    Panel out = load_tokens(scratch->out, in->out, shape->output, block, shape);
    for (int64_t i = 0; i < block.count; i++) {
        const accumulator_t *a = queries.grad_out.data + i * queries.grad_out.stride;
        const accumulator_t *b = out.data + i * out.stride;
        accumulator_t dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t d = 0; d < shape->head_dim; d++) dot += a[d] * b[d];
        queries.grad_dot_out[i] = dot;
        queries.logsumexp[i] =
            in->logsumexp[address(shape->logsumexp, block.batch, block.first + i, block.head)];
    }
    return queries;
}

static KeyBlock load_keys(const Scratch *scratch, const Inputs *in, Block block) {
    return (KeyBlock){.block = block,
                      .key = load_tokens(scratch->key, in->key, in->shape->key, block, in->shape),
                      .value = load_tokens(scratch->value, in->value, in->shape->value, block, in->shape)};
}

// Writes P and dS of a block of queries and a block of keys, [queries, keys] each, to the scratch.
static void make_grad_scores(const Scratch *scratch, const QueryBlock *queries, const KeyBlock *keys,
                             const AttentionShape *shape) {
    const int64_t columns = keys->block.count;
    const accumulator_t scale = (accumulator_t)shape->scale;
    multiply(scratch->probabilities, queries->query, transpose(keys->key), queries->block.count, columns,
             shape->head_dim, false);
    multiply(scratch->grad_scores, queries->grad_out, transpose(keys->value), queries->block.count, columns,
             shape->head_dim, false);
    for (int64_t i = 0; i < queries->block.count; i++) {
        accumulator_t *p = scratch->probabilities + i * columns, *ds = scratch->grad_scores + i * columns;
        const int64_t seen = keys_seen(keys->block, queries->block.first + i, shape);
        for (int64_t j = 0; j < seen; j++) {
            p[j] = exp(scale * p[j] - queries->logsumexp[i]);
            ds[j] = scale * p[j] * (ds[j] - queries->grad_dot_out[i]);
        }
        for (int64_t j = seen; j < columns; j++) p[j] = ds[j] = 0;
    }
}

static void grad_query_block(storage_t *grad_query, const Inputs *in, Block block, accumulator_t *memory) {
    const AttentionShape *shape = in->shape;
    const Scratch scratch = cut_scratch(&memory, shape);
    accumulator_t *sums = take(&memory, block.count * shape->head_dim);
    const QueryBlock queries = load_queries(&scratch, in, block);
    const int64_t kv_head = block.head / (shape->heads / shape->kv_heads);
    const int64_t keys_end = shape->causal ? block.first + block.count : shape->key_len;
    for (int64_t first = 0; first < keys_end; first += block_size(shape)) {
        KeyBlock keys = load_keys(&scratch, in, block_at(block.batch, kv_head, first, shape->key_len, shape));
        make_grad_scores(&scratch, &queries, &keys, shape);
        multiply(sums, (Panel){scratch.grad_scores, keys.block.count, false}, keys.key, block.count,
                 shape->head_dim, keys.block.count, first > 0);
    }
    store_tokens(grad_query, shape->grad_query, block, sums, shape);
}

static void grad_key_block(storage_t *grad_key, storage_t *grad_value, const Inputs *in, Block block,
                           accumulator_t *memory) {
    const AttentionShape *shape = in->shape;
    const Scratch scratch = cut_scratch(&memory, shape);
    const int64_t elements = block.count * shape->head_dim;
    accumulator_t *key_sums = take(&memory, elements), *value_sums = take(&memory, elements);
    memset(key_sums, 0, (size_t)elements * sizeof(*key_sums));
    memset(value_sums, 0, (size_t)elements * sizeof(*value_sums));
    const KeyBlock keys = load_keys(&scratch, in, block);
    const int64_t group = shape->heads / shape->kv_heads;
    for (int64_t head = block.head * group; head < (block.head + 1) * group; head++)
        for (int64_t first = shape->causal ? block.first : 0; first < shape->query_len;
             first += block_size(shape)) {
            QueryBlock queries =
                load_queries(&scratch, in, block_at(block.batch, head, first, shape->query_len, shape));
            make_grad_scores(&scratch, &queries, &keys, shape);
            Panel grad_scores = {scratch.grad_scores, block.count, true};
            Panel probabilities = {scratch.probabilities, block.count, true};
            multiply(key_sums, grad_scores, queries.query, block.count, shape->head_dim, queries.block.count,
                     true);
            multiply(value_sums, probabilities, queries.grad_out, block.count, shape->head_dim,
                     queries.block.count, true);
        }
    store_tokens(grad_key, shape->grad_key, block, key_sums, shape);
    store_tokens(grad_value, shape->grad_value, block, value_sums, shape);
}

static void attention_backward(void *grad_query, void *grad_key, void *grad_value, const void *grad_out,
                               const void *query, const void *key, const void *value, const void *out,
                               const void *logsumexp, const AttentionShape *shape, void *workspace,
                               Stream *stream) {
    (void)workspace;
    const Inputs in = {grad_out, query, key, value, out, logsumexp, shape};
    const int64_t block = block_size(shape);
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t head = 0; head < shape->heads; head++)
            for (int64_t first = 0; first < shape->query_len; first += block)
                grad_query_block(grad_query, &in, block_at(batch, head, first, shape->query_len, shape),
                                 thread_scratch(stream));
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t head = 0; head < shape->kv_heads; head++)
            for (int64_t first = 0; first < shape->key_len; first += block)
                grad_key_block(grad_key, grad_value, &in, block_at(batch, head, first, shape->key_len, shape),
                               thread_scratch(stream));
}

// --- merge ----------------------------------------------------------------------------------------------

// Merges one query of one head; a and b are the two log-sum-exps. With ratio = exp(-|a-b|) the side with the
// larger one has weight 1/(1+ratio), the other ratio/(1+ratio); the result's is max(a, b) + log(1+ratio).
static void merge_query(accumulator_t *sum, accumulator_t *logsumexp, const storage_t *part, accumulator_t b,
                        int64_t head_dim, bool first) {
    const accumulator_t a = first ? -INFINITY : *logsumexp;
    const accumulator_t ratio = a == b ? 1 : exp(-fabs(a - b)); // also if both are -infinity
    const accumulator_t larger = 1 / (1 + ratio), smaller = ratio * larger;
    const accumulator_t keep = a > b ? larger : smaller, add = a > b ? smaller : larger;
    for (int64_t d = 0; d < head_dim; d++) {
        const accumulator_t before = a == -INFINITY ? 0 : keep * sum[d];
        sum[d] = b == -INFINITY ? before : before + add * load(&part[d]);
    }
    *logsumexp = (a > b ? a : b) + log1p(ratio);
}

static void attention_merge(void *sum, void *logsumexp, const void *part, const void *part_logsumexp,
                            const AttentionShape *shape, bool first, Stream *stream) {
    const int64_t heads = shape->heads, head_dim = shape->head_dim, query_len = shape->query_len;
#pragma omp parallel for collapse(3) schedule(static) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t query = 0; query < query_len; query++)
            for (int64_t head = 0; head < heads; head++)
                merge_query(
                    (accumulator_t *)sum + address(shape->output, batch, query, head),
                    (accumulator_t *)logsumexp + address(shape->logsumexp, batch, query, head),
                    (const storage_t *)part + ((batch * query_len + query) * heads + head) * head_dim,
                    ((const accumulator_t *)part_logsumexp)[(batch * heads + head) * query_len + query],
                    head_dim, first);
}

const AttentionOps CPU_NAME(attention) = {.workspace = attention_workspace,
                                          .forward = attention_forward,
                                          .backward = attention_backward,
                                          .merge = attention_merge};
