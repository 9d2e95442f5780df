#include "dev/test/selection/picture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int32_t position_at(const Picture *p, int level, int64_t index) {
    return p->positions[level_start(p->shape, level) + index];
}

bool is_parent(const Picture *p, int level, int64_t index) {
    return level > 0 && position_at(p, level - 1, index * pool_of(p->shape)) >= 0;
}

// An entry is selected if it is coarsest or the child of a parent, and no sooner; children come before their
// parent.
static void check_forest(const Picture *p) {
    const LighthouseShape *shape = p->shape;
    for (int level = 0; level < shape->levels; level++)
        for (int64_t i = 0; i < level_entries(shape, level); i++) {
            const int32_t position = position_at(p, level, i);
            check(position >= -1 && position < shape->entries, "head %ld: (%d,%ld) is at %d of %ld",
                  (long)p->head, level, (long)i, position, (long)shape->entries);
            if (level == shape->levels - 1) {
                check(position >= 0, "head %ld: the coarsest entry %ld is missing", (long)p->head, (long)i);
                continue;
            }
            const int64_t above = i >> shape->log2_pool;
            const bool wanted = is_parent(p, level + 1, above);
            check((position >= 0) == wanted, "head %ld: (%d,%ld) is %s, unlike its sibling", (long)p->head,
                  level, (long)i, wanted ? "missing" : "there");
            check(!wanted || position < position_at(p, level + 1, above),
                  "head %ld: (%d,%ld) comes after its parent", (long)p->head, level, (long)i);
        }
}

EntryName *sequence_of(const Picture *p) {
    EntryName *sequence = host_allocate((size_t)p->shape->entries, sizeof(*sequence), "a sequence");
    for (int64_t i = 0; i < p->shape->entries; i++) sequence[i].level = -1;
    for (int level = 0; level < p->shape->levels; level++)
        for (int64_t i = 0; i < level_entries(p->shape, level); i++) {
            const int32_t position = position_at(p, level, i);
            if (position < 0 || position >= p->shape->entries) continue;
            check(sequence[position].level < 0, "head %ld: position %d is taken twice", (long)p->head,
                  position);
            sequence[position] = (EntryName){level, i};
        }
    return sequence;
}

// A leaf sorts at its first token; a parent after its last, and later the coarser it is.
static double sort_key(const Picture *p, EntryName e) {
    const double covered = (double)covered_by(p->shape, e.level);
    return is_parent(p, e.level, e.index) ? (double)(e.index + 1) * covered - pow(2, -e.level)
                                          : (double)e.index * covered;
}

// Every position is taken, the sort keys ascend, and each chunk has its own equal part.
static void check_order(const Picture *p) {
    const LighthouseShape *shape = p->shape;
    EntryName *sequence = sequence_of(p);
    double last = -1;
    for (int64_t i = 0; i < shape->entries; i++) {
        check(sequence[i].level >= 0, "head %ld: position %ld is empty", (long)p->head, (long)i);
        if (sequence[i].level < 0) continue;
        const double key = sort_key(p, sequence[i]);
        check(key > last, "head %ld: sort key %g follows %g", (long)p->head, key, last);
        last = key;
        const int64_t first_token = sequence[i].index * covered_by(shape, sequence[i].level);
        const int64_t chunk = first_token / (shape->seq_len / shape->chunks);
        check(chunk == i / (shape->entries / shape->chunks),
              "head %ld: position %ld has an entry of chunk %ld", (long)p->head, (long)i, (long)chunk);
    }
    free(sequence);
}

typedef struct {
    double score;
    int64_t index;
} Scored;

static int larger_first(const void *a, const void *b) {
    const Scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

static double pooled(const double *scores, const LighthouseShape *shape, int level, int64_t index) {
    double largest = -INFINITY;
    for (int64_t t = index * covered_by(shape, level); t < (index + 1) * covered_by(shape, level); t++)
        largest = fmax(largest, scores[t]); // which passes over NaN
    return largest;
}

// Sorts the candidates that are left by these scores, checks that the first are parents, and takes them off.
static int64_t check_largest(const Picture *p, int level, Scored *candidates, int64_t count,
                             const double *scores) {
    const int64_t wanted = p->shape->tile / 2;
    for (int64_t i = 0; i < count; i++)
        candidates[i].score = pooled(scores, p->shape, level, candidates[i].index);
    qsort(candidates, (size_t)count, sizeof(*candidates), larger_first);
    for (int64_t i = 0; i < wanted; i++)
        check(is_parent(p, level, candidates[i].index), "head %ld: (%d,%ld) of rank %ld is no parent",
              (long)p->head, level, (long)candidates[i].index, (long)i);
    memmove(candidates, candidates + wanted, (size_t)(count - wanted) * sizeof(*candidates));
    return count - wanted;
}

// Exactly the candidates of largest scores are parents, `tile` of each chunk and level.
static void check_picks(const Picture *p) {
    const LighthouseShape *shape = p->shape;
    Scored *candidates = host_allocate((size_t)shape->seq_len, sizeof(*candidates), "candidates");
    for (int level = shape->levels - 1; level > 0; level--)
        for (int64_t chunk = 0; chunk < shape->chunks; chunk++) {
            const int64_t part = level_entries(shape, level) / shape->chunks;
            int64_t count = 0, parents = 0;
            for (int64_t i = chunk * part; i < (chunk + 1) * part; i++) {
                parents += is_parent(p, level, i);
                if (position_at(p, level, i) >= 0) candidates[count++].index = i;
            }
            check(parents == shape->tile, "head %ld: %ld parents in level %d of chunk %ld, not %d",
                  (long)p->head, (long)parents, level, (long)chunk, shape->tile);
            if (count < shape->tile) continue; // check_forest has said so
            count = check_largest(p, level, candidates, count, p->query_scores);
            check_largest(p, level, candidates, count, p->key_scores);
        }
    free(candidates);
}

void check_selection(const LighthouseShape *shape, const int32_t *positions, const double *level_0) {
    for (int64_t i = 0; i < shape->batch * shape->heads; i++) {
        const int64_t batch = i / shape->heads, head = i % shape->heads;
        const double *rows = level_0 + batch * (shape->heads + shape->kv_heads) * shape->seq_len;
        const int64_t key_row = shape->heads + head / (shape->heads / shape->kv_heads);
        const Picture p = {shape, positions + i * shape->pyramid, rows + head * shape->seq_len,
                           rows + key_row * shape->seq_len, i};
        check_forest(&p);
        check_order(&p);
        check_picks(&p);
    }
}
