// Lighthouse attention's own operations (arXiv 2605.06554) in plain C: pyramid, selection, gather, scatter
// and their transposes. Written to be read against llmc/device/ops.h: the selection sorts the candidates and
// takes the first, the order comes from comparing sort keys.
#include "device/cpu/ops_lighthouse.h"

#include <math.h>

// The most levels there can be: seq_len is a multiple of 2^(levels - 1).
enum { MAX_LEVELS = 64 };

bool CPU_NAME(lighthouse_supported)(const LighthouseShape *shape, Reason *reason, const Stream *stream) {
    (void)stream;
    return shape->levels <= MAX_LEVELS ||
           fail(reason, "--levels %d: the CPU takes at most %d", shape->levels, MAX_LEVELS);
}

static const accumulator_t *row_of_scores(const void *scores, int64_t batch, int64_t head,
                                          const LighthouseShape *shape) {
    return (const accumulator_t *)scores + (batch * (shape->heads + shape->kv_heads) + head) * shape->pyramid;
}

// Query head `head` takes its keys and values from this head.
static int64_t kv_head_of(int64_t head, const LighthouseShape *shape) {
    return head / (shape->heads / shape->kv_heads);
}

// --- scores of the coarser levels -----------------------------------------------------------------------

void CPU_NAME(lighthouse_pool_scores)(void *scores, const LighthouseShape *shape, Stream *stream) {
    const int64_t pool = 1 << shape->log2_pool, rows = shape->batch * (shape->heads + shape->kv_heads);
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        const accumulator_t *below = (accumulator_t *)scores + row * shape->pyramid;
        for (int level = 1; level < shape->levels; level++) {
            accumulator_t *here = (accumulator_t *)scores + row * shape->pyramid + level_start(shape, level);
            for (int64_t i = 0; i < level_entries(shape, level); i++) {
                here[i] = -INFINITY;
                for (int64_t child = i * pool; child < (i + 1) * pool; child++)
                    if (below[child] > here[i]) here[i] = below[child]; // NaN never is
            }
            below = here;
        }
    }
}

// --- selection ------------------------------------------------------------------------------------------

// What a chunk's positions hold until the order is known.
enum { NOT_SELECTED = -1, LEAF = 0, PARENT = 1 };

// One chunk of one query head: where its entries of each level stand in the row's positions and scores.
typedef struct {
    int32_t *positions[MAX_LEVELS];
    const accumulator_t *query_scores[MAX_LEVELS], *key_scores[MAX_LEVELS];
    int64_t entries[MAX_LEVELS]; // of each level
    const LighthouseShape *shape;
} Chunk;

static Chunk chunk_at(int32_t *positions, const void *scores, int64_t batch, int64_t head, int64_t chunk,
                      const LighthouseShape *shape) {
    int32_t *row = positions + (batch * shape->heads + head) * shape->pyramid;
    const accumulator_t *query_row = row_of_scores(scores, batch, head, shape);
    const accumulator_t *key_row =
        row_of_scores(scores, batch, shape->heads + kv_head_of(head, shape), shape);
    Chunk c = {.shape = shape};
    for (int level = 0; level < shape->levels; level++) {
        c.entries[level] = level_entries(shape, level) / shape->chunks;
        const int64_t first = level_start(shape, level) + chunk * c.entries[level];
        c.positions[level] = row + first;
        c.query_scores[level] = query_row + first;
        c.key_scores[level] = key_row + first;
    }
    return c;
}

// Sorts entries by descending score (of a coarser level, never NaN). Merging keeps equal scores in the order
// they came in: by index. `buffer` is as large as `entries`.
static void sort_by_score(int32_t *entries, int32_t *buffer, int64_t count, const accumulator_t *scores) {
    int32_t *from = entries, *to = buffer;
    for (int64_t run = 1; run < count; run *= 2) {
        for (int64_t first = 0; first < count; first += 2 * run) {
            const int64_t middle = min_i64(first + run, count), end = min_i64(first + 2 * run, count);
            int64_t left = first, right = middle;
            for (int64_t i = first; i < end; i++) {
                const bool take_right =
                    left == middle || (right < end && scores[from[right]] > scores[from[left]]);
                to[i] = from[take_right ? right++ : left++];
            }
        }
        int32_t *sorted = to;
        to = from;
        from = sorted;
    }
    if (from != entries) memcpy(entries, from, (size_t)count * sizeof(*entries));
}

// Turns the `wanted` leaves of the level that have the largest scores into parents. The list of candidates
// and the sort's buffer lie in the chunk's level 0, whose positions come last: it is at least twice as long
// as any other level.
static void pick_parents(const Chunk *c, int level, const accumulator_t *scores, int64_t wanted) {
    int32_t *state = c->positions[level], *candidates = c->positions[0];
    int64_t count = 0;
    for (int64_t i = 0; i < c->entries[level]; i++)
        if (state[i] == LEAF) candidates[count++] = (int32_t)i;
    sort_by_score(candidates, candidates + count, count, scores);
    for (int64_t i = 0; i < wanted; i++) state[candidates[i]] = PARENT;
}

// The children of the level above's parents are this level's candidates.
static void add_children(const Chunk *c, int level) {
    const int64_t pool = 1 << c->shape->log2_pool;
    for (int64_t i = 0; i < c->entries[level]; i++)
        c->positions[level][i] = c->positions[level + 1][i / pool] == PARENT ? LEAF : NOT_SELECTED;
}

// Entry (level, index) sorts at its first token; a parent after its last, and after smaller parents that end
// there.
static double sort_key(const Chunk *c, int level, int64_t index) {
    const bool is_parent = c->positions[level][index] == PARENT;
    return ldexp((double)(is_parent ? index + 1 : index), level * c->shape->log2_pool) -
           (is_parent ? ldexp(1, -level) : 0);
}

static int64_t next_selected(const Chunk *c, int level, int64_t index) {
    while (index < c->entries[level] && c->positions[level][index] == NOT_SELECTED) index++;
    return index;
}

// Gives every selected entry its place, from `position` on, in the order of the sort keys. In a level they
// ascend, so that the levels are merged.
static void number_entries(const Chunk *c, int32_t position) {
    int64_t next[MAX_LEVELS];
    double key[MAX_LEVELS];
    int smallest = 0;
    for (int level = 0; level < c->shape->levels; level++) {
        next[level] = next_selected(c, level, 0);
        key[level] = next[level] < c->entries[level] ? sort_key(c, level, next[level]) : INFINITY;
    }
    for (;;) {
        for (int level = 0; level < c->shape->levels; level++)
            if (key[level] < key[smallest]) smallest = level;
        if (key[smallest] == INFINITY) return;
        c->positions[smallest][next[smallest]] = position++;
        next[smallest] = next_selected(c, smallest, next[smallest] + 1);
        key[smallest] =
            next[smallest] < c->entries[smallest] ? sort_key(c, smallest, next[smallest]) : INFINITY;
    }
}

static void select_in_chunk(const Chunk *c, int32_t first_position) {
    const int coarsest = c->shape->levels - 1;
    for (int64_t i = 0; i < c->entries[coarsest]; i++) c->positions[coarsest][i] = LEAF;
    for (int level = coarsest; level > 0; level--) {
        pick_parents(c, level, c->query_scores[level], c->shape->tile / 2);
        pick_parents(c, level, c->key_scores[level], c->shape->tile / 2);
        add_children(c, level - 1);
    }
    number_entries(c, first_position);
}

void CPU_NAME(lighthouse_select)(int32_t *positions, const void *scores, const LighthouseShape *shape,
                                 Stream *stream) {
    const int64_t chunk_entries = shape->entries / shape->chunks;
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t head = 0; head < shape->heads; head++)
            for (int64_t chunk = 0; chunk < shape->chunks; chunk++) {
                const Chunk c = chunk_at(positions, scores, batch, head, chunk, shape);
                select_in_chunk(&c, (int32_t)(chunk * chunk_entries));
            }
}

// --- sums over tokens and over levels -------------------------------------------------------------------

// sum[head_dim] += scale · from.
static void add_vector(accumulator_t *sum, const storage_t *from, accumulator_t scale,
                       const LighthouseShape *shape) {
    for (int64_t d = 0; d < shape->head_dim; d++) sum[d] += scale * load(&from[d]);
}

static void clear_vector(accumulator_t *sum, const LighthouseShape *shape) {
    memset(sum, 0, (size_t)shape->head_dim * sizeof(*sum));
}

static void store_vector(storage_t *out, const accumulator_t *sum, const LighthouseShape *shape) {
    for (int64_t d = 0; d < shape->head_dim; d++) store(&out[d], sum[d]);
}

// sum = scale · the sum of the vectors of tokens [first, end), which lie `stride` elements apart from `in`
// on.
static void sum_tokens(accumulator_t *sum, const storage_t *in, int64_t stride, int64_t first, int64_t end,
                       accumulator_t scale, const LighthouseShape *shape) {
    clear_vector(sum, shape);
    for (int64_t token = first; token < end; token++) add_vector(sum, in + token * stride, scale, shape);
}

// 1 / the tokens that an entry of the level covers.
static accumulator_t share_of_token(int level, const LighthouseShape *shape) {
    return (accumulator_t)ldexp(1, -level * shape->log2_pool);
}

// A selected entry: where it is in the pyramid and in the subsequence.
typedef struct {
    int64_t batch, head, index, position;
    int level;
} Entry;

typedef void EntryFunction(void *out, const void *in, Entry entry, const LighthouseShape *shape,
                           accumulator_t *scratch);

// Calls `function` for all selected entries of all heads.
static void for_each_selected(EntryFunction *function, void *out, const void *in, const int32_t *positions,
                              const LighthouseShape *shape, const Stream *stream) {
#pragma omp parallel for collapse(3) schedule(dynamic) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t head = 0; head < shape->heads; head++)
            for (int64_t chunk = 0; chunk < shape->chunks; chunk++)
                for (int level = 0; level < shape->levels; level++) {
                    const int64_t count = level_entries(shape, level) / shape->chunks;
                    const int32_t *row = positions + (batch * shape->heads + head) * shape->pyramid +
                                         level_start(shape, level);
                    for (int64_t i = chunk * count; i < (chunk + 1) * count; i++)
                        if (row[i] >= 0)
                            function(out, in, (Entry){batch, head, i, row[i], level}, shape,
                                     thread_scratch(stream));
                }
}

// The position of (level, index) for this head, or -1.
static int64_t position_of(const int32_t *positions, int64_t batch, int64_t head, int level, int64_t index,
                           const LighthouseShape *shape) {
    return positions[(batch * shape->heads + head) * shape->pyramid + level_start(shape, level) + index];
}

// --- gather ---------------------------------------------------------------------------------------------

// Where query, key and value heads begin among a token's heads: of qkv, where query heads share a key head,
// and of what is gathered, where none do.
static int64_t qkv_head(int part, int64_t head, const LighthouseShape *shape) {
    return part == 0 ? head : shape->heads + (part - 1) * shape->kv_heads + kv_head_of(head, shape);
}
static int64_t gathered_head(int part, int64_t head, const LighthouseShape *shape) {
    return part * shape->heads + head;
}

static void gather_entry(void *gathered, const void *qkv, Entry entry, const LighthouseShape *shape,
                         accumulator_t *scratch) {
    const int64_t head_dim = shape->head_dim, covered = (int64_t)1 << (entry.level * shape->log2_pool);
    const int64_t stride = (shape->heads + 2 * shape->kv_heads) * head_dim;
    const storage_t *in = (const storage_t *)qkv + entry.batch * shape->seq_len * stride;
    storage_t *out =
        (storage_t *)gathered + (entry.batch * shape->entries + entry.position) * 3 * shape->heads * head_dim;
    for (int part = 0; part < 3; part++) {
        sum_tokens(scratch, in + qkv_head(part, entry.head, shape) * head_dim, stride, entry.index * covered,
                   (entry.index + 1) * covered, share_of_token(entry.level, shape), shape);
        store_vector(out + gathered_head(part, entry.head, shape) * head_dim, scratch, shape);
    }
}

void CPU_NAME(lighthouse_gather)(void *gathered, const void *qkv, const int32_t *positions,
                                 const LighthouseShape *shape, Stream *stream) {
    for_each_selected(gather_entry, gathered, qkv, positions, shape, stream);
}

// Adds what a token's query, key or value (part 0, 1, 2) gets from one query head's entries, finest first.
static void add_from_levels(accumulator_t *sum, const storage_t *grad_gathered, const int32_t *positions,
                            int part, int64_t batch, int64_t head, int64_t token,
                            const LighthouseShape *shape) {
    for (int level = 0; level < shape->levels; level++) {
        const int64_t position =
            position_of(positions, batch, head, level, token >> (level * shape->log2_pool), shape);
        if (position < 0) continue;
        const int64_t row = (batch * shape->entries + position) * 3 * shape->heads;
        add_vector(sum, grad_gathered + (row + gathered_head(part, head, shape)) * shape->head_dim,
                   share_of_token(level, shape), shape);
    }
}

// The inverse of rope on one head; angle is the token's A[head_dim/2, 2].
static void turn_back(accumulator_t *x, const accumulator_t *angle, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t j = 0; j < half; j++) {
        const accumulator_t cosine = angle[2 * j], sine = angle[2 * j + 1], a = x[j], b = x[j + half];
        x[j] = a * cosine + b * sine;
        x[j + half] = b * cosine - a * sine;
    }
}

static void gather_backward_token(storage_t *grad_qkv, const storage_t *grad_gathered,
                                  const int32_t *positions, const accumulator_t *angles, int64_t batch,
                                  int64_t token, const LighthouseShape *shape, accumulator_t *sum) {
    const int64_t group = shape->heads / shape->kv_heads;
    storage_t *out =
        grad_qkv + (batch * shape->seq_len + token) * (shape->heads + 2 * shape->kv_heads) * shape->head_dim;
    for (int part = 0; part < 3; part++) {
        const int64_t readers = part == 0 ? 1 : group; // query heads that use one head of this part
        for (int64_t head = 0; head < shape->heads; head += readers) {
            clear_vector(sum, shape);
            for (int64_t reader = head; reader < head + readers; reader++)
                add_from_levels(sum, grad_gathered, positions, part, batch, reader, token, shape);
            if (angles && part < 2) turn_back(sum, angles + token * shape->head_dim, shape->head_dim);
            store_vector(out + qkv_head(part, head, shape) * shape->head_dim, sum, shape);
        }
    }
}

void CPU_NAME(lighthouse_gather_backward)(void *grad_qkv, const void *grad_gathered, const int32_t *positions,
                                          const void *angles, const LighthouseShape *shape, Stream *stream) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t token = 0; token < shape->seq_len; token++)
            gather_backward_token(grad_qkv, grad_gathered, positions, angles, batch, token, shape,
                                  thread_scratch(stream));
}

// --- scatter --------------------------------------------------------------------------------------------

// Where the vector of a piece, level and head starts in a halo [pieces, batch, levels-1, heads, head_dim].
static int64_t halo_at(int64_t piece, int64_t batch, int level, int64_t head, const LighthouseShape *shape) {
    const int64_t row = (piece * shape->batch + batch) * (shape->levels - 1) + level - 1;
    return (row * shape->heads + head) * shape->head_dim;
}

// The output that a token gets from one level; NULL if there is none.
static const storage_t *output_for(const storage_t *sub_out, const storage_t *halo, const int32_t *positions,
                                   int64_t batch, int64_t head, int level, int64_t token,
                                   const LighthouseShape *shape) {
    const int64_t piece_len = shape->seq_len / shape->pieces, piece = token / piece_len;
    const int64_t covered = (int64_t)1 << (level * shape->log2_pool);
    const int64_t index = (token + 1) / covered - 1;
    if (index < piece * piece_len / covered) // it belongs to the piece before
        return halo ? halo + halo_at(piece, batch, level, head, shape) : NULL;
    const int64_t position = position_of(positions, batch, head, level, index, shape);
    const int64_t row = (batch * shape->entries + position) * shape->heads + head;
    return position >= 0 ? sub_out + row * shape->head_dim : NULL;
}

void CPU_NAME(lighthouse_scatter)(void *out, const void *sub_out, const void *halo, const int32_t *positions,
                                  const LighthouseShape *shape, Stream *stream) {
#pragma omp parallel for collapse(3) schedule(static) num_threads(stream->threads)
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t token = 0; token < shape->seq_len; token++)
            for (int64_t head = 0; head < shape->heads; head++) {
                accumulator_t *sum = thread_scratch(stream);
                clear_vector(sum, shape);
                for (int level = 0; level < shape->levels; level++) {
                    const storage_t *from =
                        output_for(sub_out, halo, positions, batch, head, level, token, shape);
                    if (from) add_vector(sum, from, 1, shape);
                }
                const int64_t row = (batch * shape->seq_len + token) * shape->heads + head;
                store_vector((storage_t *)out + row * shape->head_dim, sum, shape);
            }
}

typedef struct {
    const storage_t *out;
    const accumulator_t *halo; // or NULL
} ScatterGradients;

static void scatter_backward_entry(void *grad_sub_out, const void *gradients, Entry entry,
                                   const LighthouseShape *shape, accumulator_t *scratch) {
    const ScatterGradients *grad = gradients;
    const int64_t head_dim = shape->head_dim, stride = shape->heads * head_dim;
    const int64_t covered = (int64_t)1 << (entry.level * shape->log2_pool);
    const int64_t piece_len = shape->seq_len / shape->pieces, piece = entry.index * covered / piece_len;
    const int64_t first = (entry.index + 1) * covered - 1, piece_end = (piece + 1) * piece_len;
    const storage_t *in = grad->out + entry.batch * shape->seq_len * stride + entry.head * head_dim;
    storage_t *out = (storage_t *)grad_sub_out + (entry.batch * shape->entries + entry.position) * stride +
                     entry.head * head_dim;
    sum_tokens(scratch, in, stride, first, min_i64(first + covered, piece_end), 1, shape);
    if (grad->halo && entry.level > 0 && first == piece_end - 1) {
        const accumulator_t *beyond =
            grad->halo + halo_at(piece, entry.batch, entry.level, entry.head, shape);
        for (int64_t d = 0; d < head_dim; d++) scratch[d] += beyond[d];
    }
    store_vector(out, scratch, shape);
}

void CPU_NAME(lighthouse_scatter_backward)(void *grad_sub_out, const void *grad_out, const void *grad_halo,
                                           const int32_t *positions, const LighthouseShape *shape,
                                           Stream *stream) {
    const ScatterGradients gradients = {grad_out, grad_halo};
    for_each_selected(scatter_backward_entry, grad_sub_out, &gradients, positions, shape, stream);
}

// --- what crosses from piece to piece -------------------------------------------------------------------

void CPU_NAME(lighthouse_halo)(void *halo, const void *sub_out, const int32_t *positions,
                               const LighthouseShape *shape, Stream *stream) {
    const size_t bytes = (size_t)shape->head_dim * sizeof(storage_t);
#pragma omp parallel for collapse(4) schedule(static) num_threads(stream->threads)
    for (int64_t piece = 0; piece < shape->pieces; piece++)
        for (int64_t batch = 0; batch < shape->batch; batch++)
            for (int level = 1; level < shape->levels; level++)
                for (int64_t head = 0; head < shape->heads; head++) {
                    const int64_t last = (piece + 1) * (level_entries(shape, level) / shape->pieces) - 1;
                    const int64_t position = position_of(positions, batch, head, level, last, shape);
                    const int64_t row = (batch * shape->entries + position) * shape->heads + head;
                    storage_t *out = (storage_t *)halo + halo_at(piece, batch, level, head, shape);
                    if (position >= 0)
                        memcpy(out, (const storage_t *)sub_out + row * shape->head_dim, bytes);
                    else
                        memset(out, 0, bytes);
                }
}

void CPU_NAME(lighthouse_halo_backward)(void *grad_halo, const void *grad_out, const LighthouseShape *shape,
                                        Stream *stream) {
    const int64_t head_dim = shape->head_dim, stride = shape->heads * head_dim;
    const int64_t piece_len = shape->seq_len / shape->pieces;
#pragma omp parallel for collapse(4) schedule(static) num_threads(stream->threads)
    for (int64_t piece = 0; piece < shape->pieces; piece++)
        for (int64_t batch = 0; batch < shape->batch; batch++)
            for (int level = 1; level < shape->levels; level++)
                for (int64_t head = 0; head < shape->heads; head++) {
                    const int64_t count = ((int64_t)1 << (level * shape->log2_pool)) - 1;
                    const storage_t *in = (const storage_t *)grad_out + head * head_dim +
                                          (batch * shape->seq_len + piece * piece_len) * stride;
                    sum_tokens((accumulator_t *)grad_halo + halo_at(piece, batch, level, head, shape), in,
                               stride, 0, count, 1, shape);
                }
}
