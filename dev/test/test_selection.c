// Lighthouse attention: its settings, the selection, and the whole layer with the selection held fixed.
#include "test.h"

#include "model/lighthouse.h"
#include "checkpoint/safetensors.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// --- settings -------------------------------------------------------------------------------------------

typedef enum { LEVELS, POOL, TOPK, TILE, SEQ_LEN, FIELDS } Field;
typedef struct {
    int64_t values[FIELDS];
} Values;

static bool valid(const Values *v, Reason *reason) {
    const LighthouseSettings settings = {v->values[LEVELS], v->values[POOL], v->values[TOPK],
                                         v->values[TILE]};
    return lighthouse_valid(&settings, v->values[SEQ_LEN], reason);
}

// Whether the number stands in the text, not as a part of another one.
static bool has_number(const char *text, int64_t number) {
    char *digits = format_string("%ld", (long)number);
    const size_t length = strlen(digits);
    const char *found = strstr(text, digits);
    while (found && ((found > text && isdigit(found[-1])) || isdigit(found[length])))
        found = strstr(found + 1, digits);
    free(digits);
    return found != NULL;
}

// Every rule: settings that break it, what the message says, and values of one option, named in the message,
// that mend it.
static const struct {
    Values refused;
    const char *rule;
    Field field;
    int64_t suggested[2]; // 0: no other one
} refusals[] = {
    {{{3, 3, 64, 16, 1024}}, "--pool 3 must be a power of two, at least 2", POOL, {2, 4}},
    {{{3, 1, 64, 16, 1024}}, "--pool 1 must be a power of two, at least 2", POOL, {2, 4}},
    {{{3, 0, 64, 16, 1024}}, "--pool 0 must be a power of two, at least 2", POOL, {2, 4}},
    {{{3, -4, 64, 16, 1024}}, "--pool -4 must be a power of two, at least 2", POOL, {2, 4}},
    {{{1, 2, 64, 16, 1024}}, "--levels 1 must be at least 2", LEVELS, {2, 0}},
    {{{3, 4, 112, 7, 1792}}, "--topk-tile 7 must be even and at least twice --pool 4", TILE, {8, 0}},
    {{{3, 4, 240, 9, 3840}}, "--topk-tile 9 must be even and at least twice --pool 4", TILE, {10, 0}},
    {{{3, 4, 64, 6, 1024}}, "--topk-tile 6 must be even and at least twice --pool 4", TILE, {8, 0}},
    {{{3, 4, 64, 0, 1024}}, "--topk-tile 0 must be even and at least twice --pool 4", TILE, {8, 0}},
    {{{3, 4, 40, 16, 1024}}, "--topk 40 must be a multiple of --topk-tile 16", TOPK, {32, 64}},
    {{{3, 4, 16, 16, 250}}, "--levels 3 - 1, 16: 256 does", SEQ_LEN, {256, 0}},
    {{{3, 4, 16, 16, 259}}, "--seq-len 259 must be a multiple of --pool 4", SEQ_LEN, {256, 272}},
    {{{3, 4, 48, 16, 1030}}, "--seq-len 1030 must be a multiple of --pool 4", SEQ_LEN, {1008, 1056}},
    {{{3, 4, 40, 16, 3072}}, "--topk 40 must be a multiple of --topk-tile 16", TOPK, {32, 48}},
    {{{3, 4, 0, 16, 1024}}, "--topk 0 must be a multiple of --topk-tile 16", TOPK, {16, 0}},
    {{{3, 4, 16, 16, 1030}},
     "--seq-len 1030 must be a multiple of --pool 4 to the power of --levels 3 - 1, 16",
     SEQ_LEN,
     {1024, 1040}},
    {{{3, 4, 48, 16, 1024}},
     "= 3 chunks must divide the coarsest level's 64 entries into equal parts",
     TOPK,
     {32, 64}},
    {{{3, 4, 128, 16, 1024}},
     "= 8 chunks must divide the coarsest level's 64 entries into equal parts of at least 16",
     TOPK,
     {64, 0}},
    {{{3, 4, 48, 16, 192}}, "coarsest level has 12 entries, fewer than --topk-tile 16", LEVELS, {2, 0}},
    {{{9, 4, 16, 16, 1024}},
     "--pool 4 to the power of --levels 9 - 1 is more than --seq-len 1024",
     LEVELS,
     {4, 0}},
    {{{70, 2, 16, 16, 1024}}, "--levels 70", LEVELS, {7, 0}},
};

static void bad_settings_are_refused(void *unused) {
    (void)unused;
    for (size_t i = 0; i < COUNT_OF(refusals); i++) {
        Reason reason, other;
        check(!valid(&refusals[i].refused, &reason), "accepted, but should say: %s", refusals[i].rule);
        check(strstr(reason.text, refusals[i].rule) != NULL, "should say \"%s\", says: %s", refusals[i].rule,
              reason.text);
        for (int j = 0; j < 2 && refusals[i].suggested[j] > 0; j++) {
            Values mended = refusals[i].refused;
            mended.values[refusals[i].field] = refusals[i].suggested[j];
            check(has_number(reason.text, refusals[i].suggested[j]) || refusals[i].field == LEVELS,
                  "should suggest %ld, says: %s", (long)refusals[i].suggested[j], reason.text);
            check(valid(&mended, &other), "%ld was suggested, but: %s", (long)refusals[i].suggested[j],
                  other.text);
        }
    }
}

// The rules as design and paper state them.
static bool follows_rules(const Values *v) {
    const int64_t levels = v->values[LEVELS], pool = v->values[POOL], tile = v->values[TILE];
    if (pool < 2 || levels < 2 || tile < 2 * pool || v->values[TOPK] < tile) return false;
    if ((pool & (pool - 1)) != 0 || tile % 2 != 0 || v->values[TOPK] % tile != 0) return false;
    int64_t coarsest = v->values[SEQ_LEN];
    for (int64_t level = 1; level < levels; level++) {
        if (coarsest % pool != 0) return false;
        coarsest /= pool;
    }
    const int64_t chunks = v->values[TOPK] / tile;
    return coarsest % chunks == 0 && coarsest / chunks >= tile;
}

static int64_t between(int64_t low, int64_t high) {
    return low + (int64_t)random_below((uint64_t)(high - low + 1));
}

static void settings_are_judged_by_the_rules(void *unused) {
    (void)unused;
    int accepted = 0;
    for (int i = 0; i < 20000; i++) {
        const int64_t tile = between(1, 12);
        const Values v = {{between(1, 4), between(0, 5), tile * between(0, 4) + (between(0, 9) == 0), tile,
                           between(1, 60) * between(1, 16)}};
        Reason reason = {""};
        const bool verdict = valid(&v, &reason);
        check(verdict == follows_rules(&v), "levels %ld, pool %ld, topk %ld, tile %ld, %ld tokens: %s",
              (long)v.values[LEVELS], (long)v.values[POOL], (long)v.values[TOPK], (long)v.values[TILE],
              (long)v.values[SEQ_LEN], verdict ? "accepted" : reason.text);
        check(verdict || reason.text[0], "refused without a reason");
        accepted += verdict;
    }
    check(accepted > 100, "only %d of the settings tried are valid", accepted);
}

// The shape of settings with these levels and this tile, and no more of them than that takes.
static LighthouseShape shape_with(int levels, int tile) {
    const LighthouseSettings settings = {levels, 2, tile, tile};
    return lighthouse_shape(&settings, 1, (int64_t)tile << (levels - 1), 1, 1, 8);
}

// Checks that the device refuses the shape for a reason that names these numbers.
static void check_unsupported(Device *device, const LighthouseShape *shape, int64_t given, int64_t most) {
    Reason reason;
    check(!device->ops->selection.supported(shape, &reason, device->stream),
          "%d levels with picks of %d are accepted", shape->levels, shape->tile);
    check(has_number(reason.text, given) && has_number(reason.text, most) && !strchr(reason.text, '\n'),
          "should name %ld and %ld in one line, says: %s", (long)given, (long)most, reason.text);
}

static bool is_supported(Device *device, const LighthouseShape *shape) {
    Reason reason;
    return device->ops->selection.supported(shape, &reason, device->stream);
}

static void device_knows_its_limits(void *argument) {
    Device *device = argument;
    const bool is_cuda = !strcmp(device->kind, "cuda");
    const int most_levels = is_cuda ? 8 : 64;
    for (int levels = 2; levels <= 8; levels++) {
        const LighthouseShape shape = shape_with(levels, 128);
        check(is_supported(device, &shape), "%d levels are refused", levels);
    }
    LighthouseShape shape = shape_with(3, 128);
    shape.levels = most_levels + 1;
    check_unsupported(device, &shape, most_levels + 1, most_levels);
    if (!is_cuda) return;
    for (int levels = 2; levels <= 5; levels += 3) {
        int tile = 1 << 20; // more than the shared memory of any GPU takes
        const LighthouseShape large = shape_with(levels, tile);
        while (tile > 2 && (shape = shape_with(levels, tile), !is_supported(device, &shape))) tile -= 2;
        check_unsupported(device, &large, large.tile, tile);
        check(tile >= 1024, "a tile of %d is all that %d levels can have", tile, levels);
    }
}

// --- a layer on a device --------------------------------------------------------------------------------

typedef struct {
    Device *device;
    LighthouseShape shape;
    AttentionPlan inner;
    LighthouseLayer layer;
    void *scores, *qkv, *out, *grad_qkv, *grad_out, *angles, *scratch, *workspace;
} Layer;

enum { WORKSPACE_BOUND = 1 << 30 };

static StorageType storage_of(const Layer *l) {
    return l->device->ops->storage;
}
static StorageType accumulator_of(const Layer *l) {
    return accumulator_type(storage_of(l));
}

// Elements of the layer's arrays.
static size_t position_count(const LighthouseShape *s) {
    return (size_t)(s->batch * s->heads * s->pyramid);
}
static size_t all_score_rows(const LighthouseShape *s) {
    return (size_t)(s->batch * (s->heads + s->kv_heads));
}
static size_t qkv_count(const LighthouseShape *s) {
    return (size_t)(s->batch * s->seq_len * (s->heads + 2 * s->kv_heads) * s->head_dim);
}
static size_t out_count(const LighthouseShape *s) {
    return (size_t)(s->batch * s->seq_len * s->heads * s->head_dim);
}
static size_t sub_out_count(const LighthouseShape *s) {
    return (size_t)(s->batch * s->entries * s->heads * s->head_dim);
}
static size_t angle_count(const LighthouseShape *s) {
    return (size_t)(s->seq_len * s->head_dim);
}

static void *take(Device *device, size_t count, StorageType type) {
    const size_t bytes = count * storage_size(type);
    void *memory = device->allocate(device, bytes > 0 ? bytes : 1);
    if (!memory) fatal("the test needs %zu bytes on %s", bytes, device->name);
    return memory;
}

static Layer layer_open(Device *device, const LighthouseShape *shape) {
    Layer l = {.device = device, .shape = *shape};
    const StorageType storage = storage_of(&l), accumulator = accumulator_of(&l);
    l.inner = lighthouse_attention_plan(device, shape, true, WORKSPACE_BOUND, NULL);
    l.layer.positions = take(device, position_count(shape), STORAGE_FLOAT32); // as large as an int32
    l.layer.gathered = take(device, 3 * sub_out_count(shape), storage);
    l.layer.sub_out = take(device, sub_out_count(shape), storage);
    l.layer.logsumexp = take(device, (size_t)(shape->batch * shape->heads * shape->entries), accumulator);
    l.scores = take(device, all_score_rows(shape) * (size_t)shape->pyramid, accumulator);
    l.qkv = take(device, qkv_count(shape), storage);
    l.out = take(device, out_count(shape), storage);
    l.grad_qkv = take(device, qkv_count(shape), storage);
    l.grad_out = take(device, out_count(shape), storage);
    l.angles = take(device, angle_count(shape), accumulator);
    l.scratch = take(device, (size_t)lighthouse_backward_scratch(shape), storage);
    l.workspace = take(device, l.inner.workspace_bytes / sizeof(float) + 1, STORAGE_FLOAT32);
    return l;
}

static void layer_close(Layer *l) {
    void *all[] = {l->layer.positions,
                   l->layer.gathered,
                   l->layer.sub_out,
                   l->layer.logsumexp,
                   l->scores,
                   l->qkv,
                   l->out,
                   l->grad_qkv,
                   l->grad_out,
                   l->angles,
                   l->scratch,
                   l->workspace};
    for (size_t i = 0; i < COUNT_OF(all); i++) l->device->release(l->device, all[i]);
}

static int32_t *download_positions(Device *device, const int32_t *memory, const LighthouseShape *shape) {
    const size_t count = position_count(shape);
    int32_t *positions = host_allocate(count, sizeof(*positions), "positions");
    device->download(device, positions, memory, count * sizeof(*positions));
    return positions;
}

static void set_positions(const Layer *l, const int32_t *positions) {
    l->device->upload(l->device, l->layer.positions, positions, position_count(&l->shape) * sizeof(int32_t));
}

// Standard normal values that bfloat16 holds.
static double *random_values(size_t count) {
    double *values = host_allocate(count, sizeof(double), "random values");
    uint16_t *rounded = host_allocate(count, sizeof(*rounded), "random values");
    random_fill(values, count);
    storage_from_double(rounded, STORAGE_BFLOAT16, values, count);
    storage_to_double(values, rounded, STORAGE_BFLOAT16, count);
    free(rounded);
    return values;
}

// Turns of all heads at all positions, as the cosines and sines that rope wants; rounded to float.
static double *random_angles(const LighthouseShape *shape) {
    double *angles = random_values(angle_count(shape));
    for (size_t i = 0; i < angle_count(shape); i += 2) {
        const double angle = angles[i];
        angles[i] = (float)cos(angle);
        angles[i + 1] = (float)sin(angle);
    }
    return angles;
}

// Positions by the device's selection from level-0 scores [batch, heads + kv_heads, seq_len].
static int32_t *select_by(Device *device, const LighthouseShape *shape, const double *level_0) {
    const size_t pyramid = (size_t)shape->pyramid, seq_len = (size_t)shape->seq_len;
    const size_t count = all_score_rows(shape) * pyramid;
    const StorageType accumulator = accumulator_type(device->ops->storage);
    double *values = host_allocate(count, sizeof(double), "scores");
    for (size_t i = 0; i < count; i++)
        values[i] = i % pyramid < seq_len ? level_0[i / pyramid * seq_len + i % pyramid] : NAN;
    void *scores = take(device, count, accumulator);
    upload(device, scores, accumulator, values, count);
    LighthouseLayer layer = {.positions = take(device, position_count(shape), STORAGE_FLOAT32)};
    lighthouse_select(device, shape, &layer, scores);
    int32_t *positions = download_positions(device, layer.positions, shape);
    device->release(device, scores);
    device->release(device, layer.positions);
    free(values);
    return positions;
}

// Turns queries and keys, if there are angles, and leaves their norms in the scores.
static void rotate(const Layer *l, const double *qkv, const double *angles) {
    const LighthouseShape *s = &l->shape;
    upload(l->device, l->qkv, storage_of(l), qkv, qkv_count(s));
    if (!angles) return;
    upload(l->device, l->angles, accumulator_of(l), angles, angle_count(s));
    l->device->ops->rope.rotate(l->qkv, l->scores, s->pyramid, l->angles, s->batch, s->seq_len,
                                s->heads + 2 * s->kv_heads, s->heads + s->kv_heads, s->head_dim, false,
                                l->device->stream);
}

// Picks by the norms that rotate left.
static int32_t *run_selection(const Layer *l) {
    lighthouse_select(l->device, &l->shape, &l->layer, l->scores);
    return download_positions(l->device, l->layer.positions, &l->shape);
}

static const LighthouseHalo no_halo; // its sequences are here whole

// The layer's output on qkv, with the positions it has.
static double *forward(const Layer *l, const double *qkv, const double *angles) {
    rotate(l, qkv, angles);
    lighthouse_gather(l->device, &l->shape, &l->layer, l->qkv);
    lighthouse_attend(l->device, &l->inner, &l->layer, l->workspace);
    lighthouse_scatter(l->device, &l->shape, &l->layer, &no_halo, l->out);
    return download(l->device, l->out, storage_of(l), out_count(&l->shape));
}

// The gradient of qkv as it was before it was turned, after a forward with the same angles.
static double *backward(const Layer *l, const double *grad_out, bool turned) {
    upload(l->device, l->grad_out, storage_of(l), grad_out, out_count(&l->shape));
    lighthouse_backward(l->device, &l->shape, &l->inner, &l->layer, &no_halo, l->grad_qkv, l->grad_out,
                        turned ? l->angles : NULL, l->scratch, l->workspace);
    return download(l->device, l->grad_qkv, storage_of(l), qkv_count(&l->shape));
}

// --- what holds of every selection ----------------------------------------------------------------------

// One query head's selection, and what it was made from.
typedef struct {
    const LighthouseShape *shape;
    const int32_t *positions;                // [pyramid]
    const double *query_scores, *key_scores; // of level 0
    int64_t head;                            // for messages
} Picture;

static int64_t pool_of(const LighthouseShape *shape) {
    return (int64_t)1 << shape->log2_pool;
}
static int64_t covered_by(const LighthouseShape *shape, int level) {
    return (int64_t)1 << (level * shape->log2_pool);
}

static int32_t position_at(const Picture *p, int level, int64_t index) {
    return p->positions[level_start(p->shape, level) + index];
}

static bool is_parent(const Picture *p, int level, int64_t index) {
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

typedef struct {
    int level;
    int64_t index;
} EntryName;

// The entries in the order of their positions; where there is none, level -1.
static EntryName *sequence_of(const Picture *p) {
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

// All of the above for every head, of a selection from level-0 scores [batch, heads + kv_heads, seq_len].
static void check_selection(const LighthouseShape *shape, const int32_t *positions, const double *level_0) {
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

// --- selections -----------------------------------------------------------------------------------------

typedef enum { NORMAL, EQUAL, FEW_VALUES, EXTREMES, ALL_NAN, SCORE_KINDS } ScoreKind;

// Level-0 scores, as float holds them.
static double *make_scores(const LighthouseShape *shape, ScoreKind kind) {
    static const double few[] = {-1.5, -0.0, 0, 0.25, 0.5};
    static const double extremes[] = {INFINITY, -INFINITY, NAN, 3e38, -3e38, 1e-45};
    const size_t count = all_score_rows(shape) * (size_t)shape->seq_len;
    double *scores = random_values(count);
    for (size_t i = 0; i < count && kind != NORMAL; i++)
        scores[i] = kind == EQUAL        ? 0.75
                    : kind == FEW_VALUES ? few[random_below(COUNT_OF(few))]
                    : kind == EXTREMES   ? (float)extremes[random_below(COUNT_OF(extremes))]
                                         : NAN;
    return scores;
}

static LighthouseShape shape_of(int64_t levels, int64_t pool, int64_t topk, int64_t tile, int64_t batch,
                                int64_t seq_len, int heads, int kv_heads, int head_dim) {
    const LighthouseSettings settings = {levels, pool, topk, tile};
    Reason reason;
    if (!lighthouse_valid(&settings, seq_len, &reason)) fatal("a test's settings: %s", reason.text);
    return lighthouse_shape(&settings, batch, seq_len, heads, kv_heads, head_dim);
}

// A valid shape with these levels and pool, and all else random; head_dim 8.
static LighthouseShape random_shape(int64_t levels, int64_t pool) {
    const int64_t span = (int64_t)1 << ((levels - 1) * (pool == 2 ? 1 : pool == 4 ? 2 : 3));
    const bool is_long = span > 200; // then less of all else, so that it is quick
    const int64_t tile = 2 * pool + 2 * between(0, 3), chunks = is_long ? 1 : between(1, 5);
    const int64_t seq_len = (tile + between(0, is_long ? tile / 2 : 3 * tile)) * chunks * span;
    const int kv_heads = (int)between(1, 2);
    return shape_of(levels, pool, chunks * tile, tile, is_long ? 1 : 2, seq_len,
                    kv_heads * (int)between(1, 3), kv_heads, 8);
}

static void selections_have_their_properties(void *argument) {
    for (int64_t levels = 2; levels <= 5; levels++)
        for (int64_t pool = 2; pool <= 8; pool *= 2)
            for (int kind = 0; kind < SCORE_KINDS; kind++) {
                const LighthouseShape shape = random_shape(levels, pool);
                double *scores = make_scores(&shape, (ScoreKind)kind);
                int32_t *positions = select_by(argument, &shape, scores);
                check_selection(&shape, positions, scores);
                free(scores);
                free(positions);
            }
}

// With equal scores the first candidates of a chunk are picked, level after level.
static void ties_go_to_the_lower_index(void *argument) {
    const LighthouseShape shape = shape_of(3, 4, 48, 16, 2, 2304, 2, 1, 8);
    for (int kind = EQUAL; kind <= ALL_NAN; kind += ALL_NAN - EQUAL) {
        double *scores = make_scores(&shape, (ScoreKind)kind);
        int32_t *positions = select_by(argument, &shape, scores);
        for (int64_t i = 0; i < shape.batch * shape.heads * 2; i++) {
            const int level = 1 + (int)(i % 2);
            const Picture p = {&shape, positions + i / 2 * shape.pyramid, NULL, NULL, i / 2};
            const int64_t part = level_entries(&shape, level) / shape.chunks;
            for (int64_t j = 0; j < part * shape.chunks; j++)
                check(is_parent(&p, level, j) == (j % part < shape.tile), "(%d,%ld) was picked wrongly",
                      level, (long)j);
        }
        free(scores);
        free(positions);
    }
}

static void long_chunks_are_streamed(void *argument) {
    const LighthouseShape shape = shape_of(2, 2, 128, 128, 1, 131072, 1, 1, 8);
    for (int kind = 0; kind <= EXTREMES; kind++) {
        double *scores = make_scores(&shape, (ScoreKind)kind);
        int32_t *positions = select_by(argument, &shape, scores);
        check_selection(&shape, positions, scores);
        free(scores);
        free(positions);
    }
}

// As many picks as the device has room for. The CPU has room for any.
static void most_picks_fit(void *argument) {
    Device *device = argument;
    int tile = 1 << 16;
    LighthouseShape shape = shape_with(2, tile);
    while (!is_supported(device, &shape)) shape = shape_with(2, tile -= 2);
    double *scores = make_scores(&shape, NORMAL);
    int32_t *positions = select_by(device, &shape, scores);
    check_selection(&shape, positions, scores);
    free(scores);
    free(positions);
}

// int32 seq_len, heads, levels, pool, topk, tile, entries, 0; float32 query and key scores [heads, seq_len];
// int32 levels and indices [heads, entries]: what the published implementation selects.
static void check_published(Device *device, const char *path) {
    FILE *file = fopen(path, "rb");
    int32_t head[8];
    if (!file || fread(head, sizeof(head), 1, file) != 1) fatal("cannot read %s", path);
    const LighthouseShape shape =
        shape_of(head[2], head[3], head[4], head[5], 1, head[0], head[1], head[1], 8);
    check(shape.entries == head[6], "%s: %ld entries, not %d", path, (long)shape.entries, head[6]);
    const size_t scores = 2 * (size_t)(shape.heads * shape.seq_len);
    const size_t entries = (size_t)(shape.heads * shape.entries);
    float *floats = host_allocate(scores, sizeof(float), path);
    int32_t *expected = host_allocate(2 * entries, sizeof(int32_t), path);
    if (fread(floats, sizeof(float), scores, file) != scores ||
        fread(expected, sizeof(int32_t), 2 * entries, file) != 2 * entries || fgetc(file) != EOF)
        fatal("%s has another length than it says", path);
    fclose(file);
    double *level_0 = host_allocate(scores, sizeof(double), path);
    for (size_t i = 0; i < scores; i++) level_0[i] = floats[i];
    int32_t *positions = select_by(device, &shape, level_0);
    for (int64_t h = 0; h < shape.heads; h++) {
        const Picture p = {&shape, positions + h * shape.pyramid, NULL, NULL, h};
        EntryName *sequence = sequence_of(&p);
        for (int64_t i = 0; i < shape.entries; i++) {
            const int32_t *entry = expected + h * shape.entries + i;
            check(sequence[i].level == entry[0] && sequence[i].index == entry[entries],
                  "%s: entry %ld is (%d,%ld), should be (%d,%d)", path, (long)i, sequence[i].level,
                  (long)sequence[i].index, entry[0], entry[entries]);
        }
        free(sequence);
    }
    free(floats);
    free(expected);
    free(level_0);
    free(positions);
}

static void published_selections_are_reproduced(void *argument) {
    check_published(argument, "dev/reference/fixtures/select_n4096_h1_l2_p8_k256.bin");
    check_published(argument, "dev/reference/fixtures/select_n8192_h1_l4_p2_k256.bin");
}

// --- the layer ------------------------------------------------------------------------------------------

static int32_t *random_positions(const LighthouseShape *shape) {
    Device *float64 = cpu_device_create(STORAGE_FLOAT64);
    double *scores = make_scores(shape, NORMAL);
    int32_t *positions = select_by(float64, shape, scores);
    free(scores);
    float64->destroy(float64);
    return positions;
}

// A layer with random positions.
static Layer random_layer(Device *device, const LighthouseShape *shape) {
    Layer l = layer_open(device, shape);
    int32_t *positions = random_positions(shape);
    set_positions(&l, positions);
    free(positions);
    return l;
}

static double dot(const double *a, const double *b, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

static double rounding_of(StorageType storage) {
    return storage == STORAGE_FLOAT64 ? 1e-12 : storage == STORAGE_FLOAT32 ? 1e-6 : 1e-3;
}

typedef void Map(const Layer *l, void *out, const void *in);

static void gather_map(const Layer *l, void *out, const void *in) {
    l->device->ops->gather.forward(out, in, l->layer.positions, &l->shape, l->device->stream);
}
static void gather_transposed(const Layer *l, void *out, const void *in) {
    l->device->ops->gather.backward(out, in, l->layer.positions, NULL, &l->shape, l->device->stream);
}
static void scatter_map(const Layer *l, void *out, const void *in) {
    l->device->ops->scatter.forward(out, in, NULL, l->layer.positions, &l->shape, l->device->stream);
}
static void scatter_transposed(const Layer *l, void *out, const void *in) {
    l->device->ops->scatter.backward(out, in, NULL, l->layer.positions, &l->shape, l->device->stream);
}

// <map(x), y> = <x, transposed(y)> for x in `in` and y in `out`, both memory of the layer. With y = x' mapped
// plus noise for the same x neither is near zero.
static void check_transposed(const Layer *l, const char *what, Map *map, Map *transposed, void *in,
                             size_t in_count, void *out, size_t out_count) {
    const StorageType storage = storage_of(l);
    double *x = random_values(in_count), *noise = random_values(out_count);
    upload(l->device, in, storage, x, in_count);
    map(l, out, in);
    double *mapped = download(l->device, out, storage, out_count), *y = noise;
    for (size_t i = 0; i < out_count; i++) y[i] += mapped[i];
    upload(l->device, out, storage, y, out_count);
    free(y);
    y = download(l->device, out, storage, out_count); // as the device holds it
    transposed(l, in, out);
    double *back = download(l->device, in, storage, in_count);
    const double forth = dot(mapped, y, out_count), and_back = dot(x, back, in_count);
    check_close(what, &and_back, &forth, 1, rounding_of(storage));
    free(x);
    free(mapped);
    free(y);
    free(back);
}

static void backwards_are_transposes(void *argument) {
    for (int64_t levels = 2; levels <= 5; levels++) {
        const LighthouseShape shape = random_shape(levels, levels < 4 ? 4 : 2);
        Layer l = random_layer(argument, &shape);
        check_transposed(&l, "gather", gather_map, gather_transposed, l.qkv, qkv_count(&shape),
                         l.layer.gathered, 3 * sub_out_count(&shape));
        check_transposed(&l, "scatter", scatter_map, scatter_transposed, l.layer.sub_out,
                         sub_out_count(&shape), l.out, out_count(&shape));
        layer_close(&l);
    }
}

// Sets the elements of all tokens after t of [batch, seq_len, width] to others, or to zero.
static void change_after(double *values, int64_t t, int64_t width, const LighthouseShape *shape,
                         bool to_zero) {
    for (int64_t batch = 0; batch < shape->batch; batch++)
        for (int64_t i = (t + 1) * width; i < shape->seq_len * width; i++) {
            double *value = &values[batch * shape->seq_len * width + i];
            *value = to_zero ? 0 : 2 - 3 * *value;
        }
}

// How many elements differ (in value) up to token t, and after it.
static void count_changes(const double *a, const double *b, int64_t t, int64_t width,
                          const LighthouseShape *shape, int64_t changes[2]) {
    changes[0] = changes[1] = 0;
    for (int64_t i = 0; i < shape->batch * shape->seq_len * width; i++)
        if (a[i] != b[i]) changes[i / width % shape->seq_len > t]++;
}

// With the selection held fixed: out[<= t] does not know of tokens after t, to the bit; and a gradient of
// out[<= t] reaches no token after t, and does not know of them either.
static void check_causality(const Layer *l, const double *qkv, const double *grad_out, int64_t t) {
    const LighthouseShape *shape = &l->shape;
    const int64_t qkv_width = (shape->heads + 2 * shape->kv_heads) * shape->head_dim;
    const int64_t out_width = shape->heads * shape->head_dim;
    const size_t qkv_bytes = qkv_count(shape) * sizeof(double), out_bytes = out_count(shape) * sizeof(double);
    double *other_qkv = memcpy(host_allocate(qkv_bytes, 1, "qkv"), qkv, qkv_bytes);
    double *early_grad = memcpy(host_allocate(out_bytes, 1, "grad_out"), grad_out, out_bytes);
    change_after(other_qkv, t, qkv_width, shape, false);
    change_after(early_grad, t, out_width, shape, true);
    double *out = forward(l, qkv, NULL), *grad = backward(l, early_grad, false);
    double *other_out = forward(l, other_qkv, NULL), *other_grad = backward(l, early_grad, false);
    int64_t changes[2];
    count_changes(out, other_out, t, out_width, shape, changes);
    check(changes[0] == 0, "%ld elements of out up to token %ld know of later ones", (long)changes[0],
          (long)t);
    check(changes[1] > 0, "nothing depends on the tokens after %ld", (long)t);
    count_changes(grad, other_grad, t, qkv_width, shape, changes);
    check(changes[0] == 0, "%ld elements of grad_qkv up to token %ld know of later tokens", (long)changes[0],
          (long)t);
    double *zeros = host_allocate(qkv_bytes, 1, "zeros");
    count_changes(grad, zeros, t, qkv_width, shape, changes);
    const bool one_is_complete = t + 1 >= covered_by(shape, shape->levels - 1); // of the coarsest entries
    check(changes[0] > 0 || !one_is_complete, "the gradient up to token %ld is zero", (long)t);
    check(changes[1] == 0, "%ld elements of grad_qkv after token %ld are not zero", (long)changes[1],
          (long)t);
    double *const all[] = {other_qkv, early_grad, out, grad, other_out, other_grad, zeros};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
}

static void layer_is_causal(void *argument) {
    const LighthouseShape shapes[] = {shape_of(3, 4, 24, 8, 1, 768, 4, 2, 16),
                                      shape_of(4, 2, 16, 4, 2, 160, 2, 1, 8)};
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        Layer l = random_layer(argument, &shapes[i]);
        double *qkv = random_values(qkv_count(&shapes[i])), *grad_out = random_values(out_count(&shapes[i]));
        const int64_t last = shapes[i].seq_len - 2, chunk = shapes[i].seq_len / shapes[i].chunks;
        const int64_t tokens[] = {0,
                                  covered_by(&shapes[i], shapes[i].levels - 1) - 1,
                                  chunk - 1,
                                  chunk,
                                  last,
                                  between(1, last),
                                  between(1, last)};
        for (size_t j = 0; j < COUNT_OF(tokens); j++) check_causality(&l, qkv, grad_out, tokens[j]);
        free(qkv);
        free(grad_out);
        layer_close(&l);
    }
}

// Float64 gradients against central differences along random directions.
static void check_layer_gradient(const LighthouseShape *shape, bool turned) {
    enum { DIRECTIONS = 3 };
    const double epsilon = 1e-5;
    const size_t count = qkv_count(shape);
    Device *float64 = cpu_device_create(STORAGE_FLOAT64);
    Layer l = random_layer(float64, shape);
    double *qkv = random_values(count), *grad_out = random_values(out_count(shape));
    double *angles = random_angles(shape), *moved = host_allocate(count, sizeof(double), "qkv");
    free(forward(&l, qkv, turned ? angles : NULL));
    double *gradient = backward(&l, grad_out, turned), analytic[DIRECTIONS], numeric[DIRECTIONS];
    for (int d = 0; d < DIRECTIONS; d++) {
        double *direction = random_values(count), totals[2];
        for (int side = 0; side < 2; side++) {
            for (size_t i = 0; i < count; i++) moved[i] = qkv[i] + (side ? epsilon : -epsilon) * direction[i];
            double *out = forward(&l, moved, turned ? angles : NULL);
            totals[side] = dot(out, grad_out, out_count(shape));
            free(out);
        }
        analytic[d] = dot(gradient, direction, count);
        numeric[d] = (totals[1] - totals[0]) / (2 * epsilon);
        free(direction);
    }
    check_close("gradient against differences", analytic, numeric, DIRECTIONS, 1e-7);
    double *const all[] = {qkv, grad_out, angles, moved, gradient};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    layer_close(&l);
    float64->destroy(float64);
}

static void layer_has_its_gradient(void *unused) {
    (void)unused;
    const LighthouseShape shapes[] = {
        shape_of(2, 2, 12, 4, 2, 96, 4, 2, 6),   shape_of(3, 4, 40, 8, 1, 640, 6, 2, 10),
        shape_of(2, 8, 16, 16, 1, 136, 2, 2, 6), shape_of(5, 2, 24, 8, 1, 384, 3, 1, 4),
        shape_of(4, 4, 8, 8, 1, 576, 2, 1, 6),   shape_of(3, 8, 16, 16, 1, 1088, 1, 1, 4),
    };
    for (size_t i = 0; i < COUNT_OF(shapes); i++) check_layer_gradient(&shapes[i], i % 2 == 1);
}

static double *fixture_values(const SafetensorsFile *file, char prefix, const char *name, size_t count) {
    char *full = format_string("%c.%s", prefix, name);
    const Tensor *tensor = safetensors_find(file, full);
    if (!tensor || tensor->type != STORAGE_FLOAT64 || (size_t)tensor->count != count)
        fatal("%s should have %zu float64 values %s", file->path, count, full);
    double *values = host_allocate(count, sizeof(double), full);
    if (!safetensors_read(file, tensor, 0, values, tensor->bytes)) fatal("cannot read %s", full);
    free(full);
    return values;
}

static int64_t fixture_number(const SafetensorsFile *file, char prefix, const char *name) {
    double *value = fixture_values(file, prefix, name, 1);
    const int64_t number = (int64_t)*value;
    free(value);
    return number;
}

static void check_fixture(const SafetensorsFile *file, char prefix, const char *name, const double *values,
                          size_t count, double tolerance) {
    double *expected = fixture_values(file, prefix, name, count);
    check_close(name, values, expected, count, tolerance);
    free(expected);
}

static LighthouseShape fixture_shape(const SafetensorsFile *file, char prefix) {
    return shape_of(fixture_number(file, prefix, "config.levels"),
                    fixture_number(file, prefix, "config.pool"), fixture_number(file, prefix, "config.topk"),
                    fixture_number(file, prefix, "config.tile"), fixture_number(file, prefix, "config.batch"),
                    fixture_number(file, prefix, "config.seq_len"),
                    (int)fixture_number(file, prefix, "config.heads"),
                    (int)fixture_number(file, prefix, "config.kv_heads"),
                    (int)fixture_number(file, prefix, "config.head_dim"));
}

static void check_case_of_fixture(const SafetensorsFile *file, char prefix) {
    const LighthouseShape shape = fixture_shape(file, prefix);
    Device *float64 = cpu_device_create(STORAGE_FLOAT64);
    Layer l = layer_open(float64, &shape);
    double *qkv = fixture_values(file, prefix, "qkv", qkv_count(&shape));
    double *grad_out = fixture_values(file, prefix, "grad_out", out_count(&shape));
    double *angles = host_allocate(angle_count(&shape), sizeof(double), "angles"); // turns by nothing
    for (size_t i = 0; i < angle_count(&shape); i += 2) angles[i] = 1;
    rotate(&l, qkv, angles);
    int32_t *positions = run_selection(&l);
    double *selected = host_allocate(position_count(&shape), sizeof(double), "positions");
    for (size_t i = 0; i < position_count(&shape); i++) selected[i] = positions[i];
    double *out = forward(&l, qkv, angles), *grad_qkv = backward(&l, grad_out, true);
    const size_t rows = (size_t)(shape.batch * shape.heads * shape.entries);
    double *logsumexp = download(float64, l.layer.logsumexp, STORAGE_FLOAT64, rows);
    check_fixture(file, prefix, "positions", selected, position_count(&shape), 0);
    check_fixture(file, prefix, "out", out, out_count(&shape), 1e-11);
    check_fixture(file, prefix, "logsumexp", logsumexp, rows, 1e-11);
    check_fixture(file, prefix, "grad_qkv", grad_qkv, qkv_count(&shape), 1e-11);
    double *const all[] = {qkv, grad_out, angles, selected, out, grad_qkv, logsumexp};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(positions);
    layer_close(&l);
    float64->destroy(float64);
}

static void layer_matches_pytorch(void *unused) {
    (void)unused;
    SafetensorsFile file;
    Reason reason;
    if (!safetensors_open(&file, "dev/reference/fixtures/lighthouse_layer.safetensors", &reason))
        fatal("%s", reason.text);
    check_case_of_fixture(&file, 'a');
    check_case_of_fixture(&file, 'b');
    safetensors_close(&file);
}

// --- a sequence in pieces -------------------------------------------------------------------------------
// The whole sequence on one holder against the same sequence in 2·holders equal pieces, of which holder h has
// pieces h and 2·holders - 1 - h, one after the other. What crosses from piece to piece goes by the host.

// A holder's arrays, with the shape of its two pieces.
typedef struct {
    LighthouseShape shape;
    int64_t pieces[2]; // their numbers in the whole sequence
    int32_t *positions;
    void *sub_out, *out, *halo, *grad_sub_out, *grad_out, *grad_halo;
} Holder;

static size_t halo_count(const LighthouseShape *s) {
    return (size_t)(s->pieces * s->batch * (s->levels - 1) * s->heads * s->head_dim);
}

// Takes (or, if `into_whole`, puts back) the pieces of a holder from rows [outer, row_count, width] of a
// whole sequence, of which each piece has an equal part.
static void cut_pieces(double *part, double *whole, const Holder *h, int64_t pieces, int64_t outer,
                       int64_t row_count, int64_t width, bool into_whole) {
    const int64_t length = row_count / pieces * width; // of a piece
    for (int64_t i = 0; i < outer; i++)
        for (int64_t j = 0; j < 2; j++) {
            double *here = part + (i * 2 + j) * length, *there = whole + (i * pieces + h->pieces[j]) * length;
            memcpy(into_whole ? there : here, into_whole ? here : there, (size_t)length * sizeof(double));
        }
}

static double *take_pieces(const double *whole, const Holder *h, int64_t pieces, int64_t outer,
                           int64_t row_count, int64_t width) {
    double *part = host_allocate((size_t)(outer * row_count / pieces * 2 * width), sizeof(double), "pieces");
    cut_pieces(part, (double *)whole, h, pieces, outer, row_count, width, false);
    return part;
}

// The holder's own selection, from its scores alone, has to be its part of the whole one.
static void check_pieces_selection(const Holder *h, const int32_t *local, const int32_t *whole,
                                   const LighthouseShape *shape, int64_t pieces) {
    const int64_t part = shape->entries / pieces;
    int64_t others = 0;
    for (int64_t i = 0; i < shape->batch * shape->heads; i++)
        for (int level = 0; level < shape->levels; level++)
            for (int64_t j = 0; j < level_entries(&h->shape, level); j++) {
                const int64_t length = level_entries(shape, level) / pieces, piece = h->pieces[j / length];
                const int64_t there =
                    whole[i * shape->pyramid + level_start(shape, level) + piece * length + j % length];
                const int64_t here = local[i * h->shape.pyramid + level_start(&h->shape, level) + j];
                others += (here < 0) != (there < 0) ||
                          (here >= 0 && here - j / length * part != there - piece * part);
            }
    check(others == 0, "%ld entries of pieces %ld and %ld are at other positions", (long)others,
          (long)h->pieces[0], (long)h->pieces[1]);
}

// A holder of two pieces of the whole layer: selects from its own part of the scores and gets its parts of
// sub_out and grad_out.
static Holder holder_open(const Layer *l, int64_t number, int64_t holders, const double *level_0,
                          const double *sub_out, const double *grad_out, const int32_t *whole_positions) {
    const LighthouseShape *s = &l->shape;
    Device *device = l->device;
    const StorageType storage = storage_of(l);
    const int64_t pieces = 2 * holders, width = s->heads * s->head_dim;
    Holder h = {.shape = shape_of(s->levels, pool_of(s), s->chunks / holders * s->tile, s->tile, s->batch,
                                  s->seq_len / holders, s->heads, s->kv_heads, s->head_dim),
                .pieces = {number, pieces - 1 - number}};
    h.shape.pieces = 2;
    double *scores = take_pieces(level_0, &h, pieces, (int64_t)all_score_rows(s), s->seq_len, 1);
    double *own_sub_out = take_pieces(sub_out, &h, pieces, s->batch, s->entries, width);
    double *own_grad_out = take_pieces(grad_out, &h, pieces, s->batch, s->seq_len, width);
    int32_t *positions = select_by(device, &h.shape, scores);
    check_pieces_selection(&h, positions, whole_positions, s, pieces);
    h.positions = take(device, position_count(&h.shape), STORAGE_FLOAT32);
    device->upload(device, h.positions, positions, position_count(&h.shape) * sizeof(int32_t));
    h.sub_out = take(device, sub_out_count(&h.shape), storage);
    h.grad_sub_out = take(device, sub_out_count(&h.shape), storage);
    h.out = take(device, out_count(&h.shape), storage);
    h.grad_out = take(device, out_count(&h.shape), storage);
    h.halo = take(device, halo_count(&h.shape), storage);
    h.grad_halo = take(device, halo_count(&h.shape), accumulator_of(l));
    upload(device, h.sub_out, storage, own_sub_out, sub_out_count(&h.shape));
    upload(device, h.grad_out, storage, own_grad_out, out_count(&h.shape));
    double *const all[] = {scores, own_sub_out, own_grad_out};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(positions);
    return h;
}

static void holder_close(Device *device, Holder *h) {
    void *all[] = {h->positions, h->sub_out, h->out, h->halo, h->grad_sub_out, h->grad_out, h->grad_halo};
    for (size_t i = 0; i < COUNT_OF(all); i++) device->release(device, all[i]);
}

// Hands a halo of every piece on to the piece after it (by = 1), or back to the one before (by = -1); the
// piece at the end that nothing comes to gets zeros.
static void exchange(Device *device, Holder *holders, int64_t count, bool gradients, int64_t by) {
    const StorageType type = gradients ? accumulator_type(device->ops->storage) : device->ops->storage;
    const size_t vectors = halo_count(&holders[0].shape), of_piece = vectors / 2;
    double *all = host_allocate((size_t)(2 * count) * of_piece, sizeof(double), "halos");
    for (int64_t i = 0; i < count; i++) {
        double *own = download(device, gradients ? holders[i].grad_halo : holders[i].halo, type, vectors);
        for (int j = 0; j < 2; j++)
            memcpy(all + (size_t)holders[i].pieces[j] * of_piece, own + (size_t)j * of_piece,
                   of_piece * sizeof(double));
        free(own);
    }
    for (int64_t i = 0; i < count; i++) {
        double *own = host_allocate(vectors, sizeof(double), "halos");
        for (int j = 0; j < 2; j++) {
            const int64_t from = holders[i].pieces[j] - by;
            if (from >= 0 && from < 2 * count)
                memcpy(own + (size_t)j * of_piece, all + (size_t)from * of_piece, of_piece * sizeof(double));
        }
        upload(device, gradients ? holders[i].grad_halo : holders[i].halo, type, own, vectors);
        free(own);
    }
    free(all);
}

// What all holders make, put together: out [batch, seq_len, heads, head_dim] or grad_sub_out [batch, entries,
// heads, head_dim].
static double *scattered_by(const Layer *l, const Holder *holders, int64_t count, bool gradients,
                            bool halos) {
    const LighthouseShape *s = &l->shape;
    const Ops *ops = l->device->ops;
    const int64_t rows = gradients ? s->entries : s->seq_len, width = s->heads * s->head_dim;
    double *whole = host_allocate((size_t)(s->batch * rows * width), sizeof(double), "the whole");
    for (int64_t i = 0; i < count; i++) {
        const Holder *h = &holders[i];
        if (gradients)
            ops->scatter.backward(h->grad_sub_out, h->grad_out, halos ? h->grad_halo : NULL, h->positions,
                                  &h->shape, l->device->stream);
        else
            ops->scatter.forward(h->out, h->sub_out, halos ? h->halo : NULL, h->positions, &h->shape,
                                 l->device->stream);
        double *part = download(l->device, gradients ? h->grad_sub_out : h->out, storage_of(l),
                                (size_t)(s->batch * rows / count * width));
        cut_pieces(part, whole, h, 2 * count, s->batch, rows, width, true);
        free(part);
    }
    return whole;
}

static double distance(const double *a, const double *b, size_t count) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return sqrt(difference / norm);
}

static void check_pieces(Device *device, const LighthouseShape *shape, int64_t count) {
    enum { HOLDERS_MAX = 4 };
    Layer l = layer_open(device, shape);
    const size_t subs = sub_out_count(shape), outs = out_count(shape);
    double *level_0 = make_scores(shape, NORMAL), *sub_out = random_values(subs),
           *grad_out = random_values(outs);
    int32_t *positions = select_by(device, shape, level_0);
    set_positions(&l, positions);
    upload(device, l.layer.sub_out, storage_of(&l), sub_out, subs);
    upload(device, l.grad_out, storage_of(&l), grad_out, outs);
    scatter_map(&l, l.out, l.layer.sub_out);
    scatter_transposed(&l, l.layer.gathered, l.grad_out);
    double *out = download(device, l.out, storage_of(&l), outs);
    double *grad_sub_out = download(device, l.layer.gathered, storage_of(&l), subs);

    Holder holders[HOLDERS_MAX];
    for (int64_t i = 0; i < count; i++) {
        Holder *h = &holders[i];
        *h = holder_open(&l, i, count, level_0, sub_out, grad_out, positions);
        device->ops->scatter.halo(h->halo, h->sub_out, h->positions, &h->shape, device->stream);
        device->ops->scatter.halo_backward(h->grad_halo, h->grad_out, &h->shape, device->stream);
    }
    exchange(device, holders, count, false, 1);
    exchange(device, holders, count, true, -1);
    double *pieced_out = scattered_by(&l, holders, count, false, true);
    double *pieced_grad = scattered_by(&l, holders, count, true, true);
    double *clipped_out = scattered_by(&l, holders, count, false, false);
    double *clipped_grad = scattered_by(&l, holders, count, true, false);
    check(!memcmp(pieced_out, out, outs * sizeof(double)), "out: other bytes with %ld holders", (long)count);
    check_close("grad_sub_out", pieced_grad, grad_sub_out, subs, rounding_of(storage_of(&l)));
    // As the published implementation clips it: tokens at the start of pieces lose most of what they get.
    check(distance(clipped_out, out, outs) > 0.02, "out is %g from the whole without what crosses",
          distance(clipped_out, out, outs));
    check(distance(clipped_grad, grad_sub_out, subs) > 0.02, "grad_sub_out is %g from the whole without it",
          distance(clipped_grad, grad_sub_out, subs));
    double *const all[] = {level_0,    sub_out,     grad_out,    out,         grad_sub_out,
                           pieced_out, pieced_grad, clipped_out, clipped_grad};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    for (int64_t i = 0; i < count; i++) holder_close(device, &holders[i]);
    free(positions);
    layer_close(&l);
}

static void pieces_make_the_whole(void *argument) {
    const LighthouseShape two = shape_of(3, 4, 32, 8, 2, 576, 4, 2, 16);
    const LighthouseShape four = shape_of(4, 2, 48, 6, 1, 384, 6, 2, 8);
    const LighthouseShape eight = shape_of(2, 8, 256, 16, 1, 2432, 3, 3, 24);
    check_pieces(argument, &two, 1);
    check_pieces(argument, &two, 2);
    check_pieces(argument, &four, 2);
    check_pieces(argument, &four, 4);
    check_pieces(argument, &eight, 4);
}

// --- between devices ------------------------------------------------------------------------------------

static void check_replayed(Device *device, Device *float64, const LighthouseShape *shape) {
    const double tolerance = device->ops->storage == STORAGE_BFLOAT16 ? 2e-2 : 1e-5;
    Layer tested = layer_open(device, shape), exact = layer_open(float64, shape);
    int32_t *positions = random_positions(shape);
    set_positions(&tested, positions);
    set_positions(&exact, positions);
    double *qkv = random_values(qkv_count(shape)), *grad_out = random_values(out_count(shape));
    double *angles = random_angles(shape);
    double *out = forward(&tested, qkv, angles), *expected_out = forward(&exact, qkv, angles);
    double *grad = backward(&tested, grad_out, true), *expected_grad = backward(&exact, grad_out, true);
    check_close("out with the same picks", out, expected_out, out_count(shape), tolerance);
    check_close("grad_qkv with the same picks", grad, expected_grad, qkv_count(shape), tolerance);
    double *const all[] = {qkv, grad_out, angles, out, expected_out, grad, expected_grad};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(positions);
    layer_close(&tested);
    layer_close(&exact);
}

static void replayed_picks_give_the_same(void *argument) {
    Device *float64 = cpu_device_create(STORAGE_FLOAT64);
    const LighthouseShape shapes[] = {shape_of(2, 2, 12, 4, 2, 168, 4, 2, 8),
                                      shape_of(3, 4, 96, 32, 1, 3072, 4, 2, 64),
                                      shape_of(4, 2, 64, 16, 2, 1024, 2, 2, 128)};
    for (size_t i = 0; i < COUNT_OF(shapes); i++) check_replayed(argument, float64, &shapes[i]);
    float64->destroy(float64);
}

static int32_t *free_running_positions(Device *device, const LighthouseShape *shape, const double *qkv,
                                       const double *angles) {
    Layer l = layer_open(device, shape);
    rotate(&l, qkv, angles);
    int32_t *positions = run_selection(&l);
    layer_close(&l);
    return positions;
}

// Rounding of queries and keys moves their norms, so that other entries are picked where norms are close.
static void few_picks_differ(void *argument) {
    const double allowed = 0.02;
    const LighthouseShape shape = shape_of(3, 4, 192, 32, 2, 6144, 4, 2, 64);
    Device *float64 = cpu_device_create(STORAGE_FLOAT64);
    double *qkv = random_values(qkv_count(&shape)), *angles = random_angles(&shape);
    int32_t *tested = free_running_positions(argument, &shape, qkv, angles);
    int32_t *exact = free_running_positions(float64, &shape, qkv, angles);
    int64_t parents = 0, others = 0;
    for (int64_t i = 0; i < shape.batch * shape.heads; i++) {
        const Picture a = {&shape, tested + i * shape.pyramid, NULL, NULL, i};
        const Picture b = {&shape, exact + i * shape.pyramid, NULL, NULL, i};
        for (int level = 1; level < shape.levels; level++)
            for (int64_t j = 0; j < level_entries(&shape, level); j++) {
                parents += is_parent(&b, level, j);
                others += is_parent(&b, level, j) && !is_parent(&a, level, j);
            }
    }
    const double share = (double)others / (double)parents;
    printf("     %.3f%% of %ld picks differ from those in float64\n", 100 * share, (long)parents);
    check(share <= allowed, "more than %g%%", 100 * allowed);
    double *const all[] = {qkv, angles};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(tested);
    free(exact);
    float64->destroy(float64);
}

// Selection, forward and backward.
static void whole_layer(Device *device, const LighthouseShape *shape, const double *qkv, const double *angles,
                        const double *grad_out, int32_t **positions, double **out, double **grad_qkv) {
    Layer l = layer_open(device, shape);
    rotate(&l, qkv, angles);
    *positions = run_selection(&l);
    *out = forward(&l, qkv, angles);
    *grad_qkv = backward(&l, grad_out, true);
    layer_close(&l);
}

static void layer_repeats_to_the_bit(void *argument) {
    const LighthouseShape shape = shape_of(3, 4, 96, 32, 2, 3072, 4, 2, 64);
    double *qkv = random_values(qkv_count(&shape)), *angles = random_angles(&shape);
    double *grad_out = random_values(out_count(&shape)), *out[2], *grad_qkv[2];
    int32_t *positions[2];
    for (int i = 0; i < 2; i++)
        whole_layer(argument, &shape, qkv, angles, grad_out, &positions[i], &out[i], &grad_qkv[i]);
    check(!memcmp(positions[0], positions[1], position_count(&shape) * sizeof(int32_t)), "other positions");
    check(!memcmp(out[0], out[1], out_count(&shape) * sizeof(double)), "another output");
    check(!memcmp(grad_qkv[0], grad_qkv[1], qkv_count(&shape) * sizeof(double)), "another gradient");
    double *const all[] = {qkv, angles, grad_out, out[0], out[1], grad_qkv[0], grad_qkv[1]};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(positions[0]);
    free(positions[1]);
}

void test_lighthouse(Device *device) {
    // What needs no other device than float64's is tested once, with the CPU's default.
    if (device->ops->storage == STORAGE_FLOAT32) {
        Device *float64 = cpu_device_create(STORAGE_FLOAT64);
        test_run("Lighthouse settings that break a rule are refused", bad_settings_are_refused, NULL);
        test_run("Lighthouse settings are judged by the rules", settings_are_judged_by_the_rules, NULL);
        test_run("cpu float64: Lighthouse layer matches PyTorch", layer_matches_pytorch, NULL);
        test_run("cpu float64: Lighthouse layer has its gradient", layer_has_its_gradient, NULL);
        test_run("cpu float64: backward gather and scatter are transposes", backwards_are_transposes,
                 float64);
        test_run("cpu float64: Lighthouse layer is causal", layer_is_causal, float64);
        float64->destroy(float64);
    }
    static const struct {
        const char *name;
        void (*test)(void *device);
    } tests[] = {
        {"Lighthouse limits are known", device_knows_its_limits},
        {"published selections are reproduced", published_selections_are_reproduced},
        {"selections have their properties", selections_have_their_properties},
        {"ties go to the lower index", ties_go_to_the_lower_index},
        {"long chunks are streamed", long_chunks_are_streamed},
        {"as many picks as there is room for", most_picks_fit},
        {"backward gather and scatter are transposes", backwards_are_transposes},
        {"pieces of a sequence make the whole", pieces_make_the_whole},
        {"Lighthouse layer is causal", layer_is_causal},
        {"replayed picks give the same layer", replayed_picks_give_the_same},
        {"few picks differ from float64", few_picks_differ},
        {"Lighthouse layer repeats to the bit", layer_repeats_to_the_bit},
    };
    for (size_t i = 0; i < COUNT_OF(tests); i++) {
        char *name =
            format_string("%s %s: %s", device->kind, storage_dtype(device->ops->storage), tests[i].name);
        test_run(name, tests[i].test, device);
        free(name);
    }
}
