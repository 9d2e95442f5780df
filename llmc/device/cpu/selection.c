// Selects entries of the pyramid for Lighthouse attention, and numbers them in the order of the subsequence.
// Follows llmc/device/ops.h literally rather than fast: it sorts all candidates to find the best, and orders
// the selected entries by explicit sort keys.
#include "device/cpu/lighthouse.h"
#include "device/cpu/operations.h"

#include <math.h>

// An upper bound on levels: seq_len, an int64, is a multiple of 2^(levels - 1).
enum { MAX_LEVELS = 64 };

static bool supported(const LighthouseShape *shape, Reason *reason, const Stream *stream) {
    (void)stream;
    return shape->levels <= MAX_LEVELS ||
           fail(reason, "--levels %d: the CPU takes at most %d", shape->levels, MAX_LEVELS);
}

static const accumulator_t *row_of_scores(const void *scores, int64_t batch, int64_t head,
                                          const LighthouseShape *shape) {
    return (const accumulator_t *)scores + (batch * score_rows(shape) + head) * shape->pyramid;
}

// --- scores of the coarser levels -----------------------------------------------------------------------

static void pool_scores(void *scores, const LighthouseShape *shape, Stream *stream) {
    const int64_t pool = 1 << shape->log2_pool, rows = shape->batch * score_rows(shape);
#pragma omp parallel for schedule(static) num_threads(stream->threads)
    for (int64_t row = 0; row < rows; row++) {
        const accumulator_t *below = (accumulator_t *)scores + row * shape->pyramid;
        for (int level = 1; level < shape->levels; level++) {
            accumulator_t *here = (accumulator_t *)scores + row * shape->pyramid + level_start(shape, level);
            for (int64_t i = 0; i < level_entries(shape, level); i++) {
                here[i] = -INFINITY;
                for (int64_t child = i * pool; child < (i + 1) * pool; child++)
                    if (below[child] > here[i]) here[i] = below[child]; // false for NaN
            }
            below = here;
        }
    }
}

// --- selection ------------------------------------------------------------------------------------------

// Until the order is known, `positions` holds one of these states for each entry: not selected, selected, or
// selected and chosen as a parent, whose children are selected too.
enum { NOT_SELECTED = -1, LEAF = 0, PARENT = 1 };

// One chunk of one query head: pointers to the positions and scores of its entries, for each level.
typedef struct {
    int32_t *positions[MAX_LEVELS];
    const accumulator_t *query_scores[MAX_LEVELS], *key_scores[MAX_LEVELS];
    int64_t entries[MAX_LEVELS]; // the chunk's number of entries at each level
    const LighthouseShape *shape;
} Chunk;

static Chunk chunk_at(int32_t *positions, const void *scores, int64_t batch, int64_t head, int64_t chunk,
                      const LighthouseShape *shape) {
    int32_t *row = positions + (batch * shape->heads + head) * shape->pyramid;
    const accumulator_t *query_row = row_of_scores(scores, batch, head, shape);
    const int64_t key_head = head / (shape->heads / shape->key_score_heads);
    const accumulator_t *key_row = row_of_scores(scores, batch, shape->heads + key_head, shape);
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

// Merge sort by descending score; it is stable, so equal scores stay in order of index. Scores of levels from
// 1 on are never NaN (pool_scores). `buffer` is as large as `entries`.
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

// Makes parents of the `wanted` leaves of the level that have the largest scores. The list of candidates and
// the sort's buffer borrow the positions of level 0, which are still unused: that level is at least twice as
// long as any other.
static void pick_parents(const Chunk *c, int level, const accumulator_t *scores, int64_t wanted) {
    int32_t *state = c->positions[level], *candidates = c->positions[0];
    int64_t count = 0;
    for (int64_t i = 0; i < c->entries[level]; i++)
        if (state[i] == LEAF) candidates[count++] = (int32_t)i;
    sort_by_score(candidates, candidates + count, count, scores);
    for (int64_t i = 0; i < wanted; i++) state[candidates[i]] = PARENT;
}

// Marks the children of the parents of level + 1 as selected; they are the candidates of `level`.
static void add_children(const Chunk *c, int level) {
    const int64_t pool = 1 << c->shape->log2_pool;
    for (int64_t i = 0; i < c->entries[level]; i++)
        c->positions[level][i] = c->positions[level + 1][i / pool] == PARENT ? LEAF : NOT_SELECTED;
}

// Post-order: a leaf is ordered by its first token, a parent by the end of its last token. Of parents that
// end at the same token the finer level comes first.
static double sort_key(const Chunk *c, int level, int64_t index) {
    const bool is_parent = c->positions[level][index] == PARENT;
    return ldexp((double)(is_parent ? index + 1 : index), level * c->shape->log2_pool) -
           (is_parent ? ldexp(1, -level) : 0);
}

static int64_t next_selected(const Chunk *c, int level, int64_t index) {
    while (index < c->entries[level] && c->positions[level][index] == NOT_SELECTED) index++;
    return index;
}

// Numbers the selected entries, from `position` on, in ascending order of their sort keys. Within a level the
// keys ascend already, so this merges the levels.
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

static void select_entries(int32_t *positions, const void *scores, const LighthouseShape *shape,
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

const SelectionOps CPU_NAME(selection) = {
    .supported = supported, .pool_scores = pool_scores, .select = select_entries};
