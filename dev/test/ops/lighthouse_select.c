// Lighthouse attention: scores of the pyramid's entries, and selection by these scores.
#include "dev/test/ops/lighthouse.h"

#include <math.h>
#include <stdlib.h>

// clang-format off
const Sizes lighthouse_sizes[LIGHTHOUSE_SIZES] = {
    {.batch = 1, .rows = 16, .heads = 1, .kv_heads = 1, .head_dim = 2,
     .levels = 2, .log2_pool = 1, .tile = 4, .chunks = 1, .variant = GATHER_PLAIN},
    {.batch = 2, .rows = 168, .heads = 4, .kv_heads = 2, .head_dim = 6,
     .levels = 3, .log2_pool = 1, .tile = 4, .chunks = 3, .key_score_heads = 4, .variant = GATHER_TURNED},
    {.batch = 2, .rows = 640, .heads = 3, .kv_heads = 3, .head_dim = 22,
     .levels = 2, .log2_pool = 3, .tile = 16, .chunks = 5, .variant = GATHER_PLAIN},
    {.batch = 1, .rows = 1152, .heads = 6, .kv_heads = 2, .head_dim = 128,
     .levels = 4, .log2_pool = 1, .tile = 6, .chunks = 9, .variant = GATHER_TURNED},
    {.batch = 1, .rows = 3072, .heads = 2, .kv_heads = 1, .head_dim = 64,
     .levels = 3, .log2_pool = 3, .tile = 16, .chunks = 3, .variant = GATHER_PLAIN},
    {.batch = 3, .rows = 2560, .heads = 2, .kv_heads = 2, .head_dim = 8,
     .levels = 5, .log2_pool = 2, .tile = 10, .chunks = 1, .variant = GATHER_TURNED},
    {.batch = 2, .rows = 20, .heads = 2, .kv_heads = 1, .head_dim = 6,
     .levels = 2, .log2_pool = 1, .tile = 4, .chunks = 2, .pieces = 2, .variant = HALO_GIVEN},
    {.batch = 2, .rows = 120, .heads = 4, .kv_heads = 2, .head_dim = 22,
     .levels = 3, .log2_pool = 1, .tile = 4, .chunks = 6, .pieces = 2, .variant = HALO_NONE},
    {.batch = 1, .rows = 1224, .heads = 3, .kv_heads = 3, .head_dim = 22,
     .levels = 2, .log2_pool = 3, .tile = 16, .chunks = 9, .pieces = 3, .variant = HALO_GIVEN},
    {.batch = 3, .rows = 112, .heads = 6, .kv_heads = 2, .head_dim = 64,
     .levels = 4, .log2_pool = 1, .tile = 6, .chunks = 2, .pieces = 2, .variant = HALO_GIVEN},
    {.batch = 1, .rows = 576, .heads = 2, .kv_heads = 1, .head_dim = 128,
     .levels = 3, .log2_pool = 2, .tile = 8, .chunks = 4, .pieces = 4, .variant = HALO_GIVEN},
    {.batch = 2, .rows = 5120, .heads = 2, .kv_heads = 2, .head_dim = 8,
     .levels = 5, .log2_pool = 2, .tile = 10, .chunks = 2, .pieces = 2, .variant = HALO_GIVEN},
};
// clang-format on

void set_lighthouse_shape(Case *c) {
    const Sizes *s = &c->sizes;
    LighthouseShape *shape = &c->lighthouse;
    *shape = (LighthouseShape){.batch = s->batch,
                               .seq_len = s->rows,
                               .heads = s->heads,
                               .kv_heads = s->kv_heads,
                               .key_score_heads = s->key_score_heads > 0 ? s->key_score_heads : s->kv_heads,
                               .head_dim = s->head_dim,
                               .levels = s->levels,
                               .log2_pool = s->log2_pool,
                               .tile = s->tile,
                               .chunks = s->chunks,
                               .pieces = s->pieces > 0 ? s->pieces : 1};
    shape->pyramid = level_start(shape, s->levels);
    shape->entries =
        level_entries(shape, s->levels - 1) + (((s->levels - 1) * s->chunks * s->tile) << s->log2_pool);
}

// The scores of all levels.
static double *add_scores(Case *c, Role role) {
    return add_tensor(c, "scores", role, ACCUMULATED,
                      c->sizes.batch * score_rows(&c->lighthouse) * c->lighthouse.pyramid);
}

static void describe_lighthouse_pool_scores(Case *c) {
    set_lighthouse_shape(c);
    double *scores = add_scores(c, UPDATED);
    for (size_t i = 0; i < c->tensors[0].count; i++)
        if ((int64_t)i % c->lighthouse.pyramid >= c->sizes.rows) scores[i] = NAN; // these will be written
}

RUN(lighthouse_pool_scores) {
    ops->selection.pool_scores(at[0], &c->lighthouse, stream);
}

static void formula_lighthouse_pool_scores(const Case *c, double **v) {
    const LighthouseShape *shape = &c->lighthouse;
    for (double *row = v[0]; row < v[0] + c->tensors[0].count; row += shape->pyramid)
        for (int level = 1; level < shape->levels; level++)
            for (int64_t i = 0; i < level_entries(shape, level); i++) {
                const int64_t covered = (int64_t)1 << (level * shape->log2_pool);
                double *score = row + level_start(shape, level) + i;
                *score = row[i * covered];
                for (int64_t t = i * covered; t < (i + 1) * covered; t++) *score = fmax(*score, row[t]);
            }
}

static void describe_lighthouse_select(Case *c) {
    set_lighthouse_shape(c);
    add_tensor(c, "positions", WRITTEN, INT32, c->sizes.batch * c->sizes.heads * c->lighthouse.pyramid);
    add_scores(c, INPUT);
}

RUN(lighthouse_select) {
    ops->selection.select(at[0], at[1], &c->lighthouse, stream);
}

// Considers the entries [first, end) of a level that have `mark`, and gives `new_mark` to the `wanted` ones
// with the largest scores: those that fewer than `wanted` others surpass.
static void mark_largest(int *marks, int mark, int new_mark, const double *scores, int64_t first, int64_t end,
                         int64_t wanted) {
    for (int64_t i = first; i < end; i++) {
        if (marks[i] != mark) continue;
        int64_t larger = 0;
        for (int64_t j = first; j < end; j++)
            if ((marks[j] == mark || marks[j] == new_mark) &&
                (scores[j] > scores[i] || (scores[j] == scores[i] && j < i)))
                larger++;
        if (larger < wanted) marks[i] = new_mark;
    }
}

enum { NO_CANDIDATE, CANDIDATE, PARENT_BY_QUERY, PARENT_BY_KEY };

// Numbers an entry and its selected descendants in post-order.
static void walk(double *positions, const int *marks, int level, int64_t index, int64_t *next,
                 const LighthouseShape *shape) {
    const int64_t at = level_start(shape, level) + index, pool = (int64_t)1 << shape->log2_pool;
    if (marks[at] == PARENT_BY_QUERY || marks[at] == PARENT_BY_KEY)
        for (int64_t child = index * pool; child < (index + 1) * pool; child++)
            walk(positions, marks, level - 1, child, next, shape);
    positions[at] = (double)(*next)++;
}

// Computes the positions of one query head from its scores and the scores of its key head.
static void select_for_head(double *positions, const double *query_scores, const double *key_scores,
                            const LighthouseShape *shape) {
    int *marks = host_allocate((size_t)shape->pyramid, sizeof(int), "marks");
    for (int level = shape->levels - 1; level >= 0; level--) {
        const int64_t start = level_start(shape, level), entries = level_entries(shape, level);
        for (int64_t i = 0; i < entries; i++) {
            const int above = level + 1 < shape->levels ? marks[start + entries + (i >> shape->log2_pool)]
                                                        : PARENT_BY_QUERY;
            marks[start + i] = above >= PARENT_BY_QUERY ? CANDIDATE : NO_CANDIDATE;
        }
        const int64_t part = entries / shape->chunks;
        for (int64_t first = 0; level > 0 && first < entries; first += part) {
            mark_largest(marks + start, CANDIDATE, PARENT_BY_QUERY, query_scores + start, first, first + part,
                         shape->tile / 2);
            mark_largest(marks + start, CANDIDATE, PARENT_BY_KEY, key_scores + start, first, first + part,
                         shape->tile / 2);
        }
    }
    for (int64_t i = 0; i < shape->pyramid; i++) positions[i] = -1;
    int64_t next = 0;
    for (int64_t i = 0; i < level_entries(shape, shape->levels - 1); i++)
        walk(positions, marks, shape->levels - 1, i, &next, shape);
    free(marks);
}

static void select_by_scores(double *positions, const double *scores, const LighthouseShape *shape) {
    for (int64_t i = 0; i < shape->batch * shape->heads; i++) {
        const int64_t head = i % shape->heads, key_head = head / (shape->heads / shape->key_score_heads);
        const double *rows = scores + i / shape->heads * score_rows(shape) * shape->pyramid;
        select_for_head(positions + i * shape->pyramid, rows + head * shape->pyramid,
                        rows + (shape->heads + key_head) * shape->pyramid, shape);
    }
}

static void formula_lighthouse_select(const Case *c, double **v) {
    select_by_scores(v[0], v[1], &c->lighthouse);
}

void add_positions(Case *c) {
    const LighthouseShape *shape = &c->lighthouse;
    double *positions =
        add_tensor(c, "positions", INPUT, INT32, shape->batch * shape->heads * shape->pyramid);
    const size_t count = (size_t)(shape->batch * score_rows(shape) * shape->pyramid);
    double *scores = host_allocate(count, sizeof(double), "scores");
    random_fill(scores, count);
    select_by_scores(positions, scores, shape);
    free(scores);
}

static const Operation rows[] = {
    FORWARD(lighthouse_pool_scores, ONE_ROUNDING, FIRST(lighthouse_sizes, WHOLE_SIZES)),
    FORWARD(lighthouse_select, ONE_ROUNDING, FIRST(lighthouse_sizes, WHOLE_SIZES)),
};

const OperationTable lighthouse_select_operations = {rows, COUNT_OF(rows)};
