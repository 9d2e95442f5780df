#include "dev/test/selection/layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// --- shapes ---------------------------------------------------------------------------------------------

int64_t between(int64_t low, int64_t high) {
    return low + (int64_t)random_below((uint64_t)(high - low + 1));
}

LighthouseShape shape_of(int64_t levels, int64_t pool, int64_t topk, int64_t tile, int64_t batch,
                         int64_t seq_len, int heads, int kv_heads, int head_dim) {
    const LighthouseSettings settings = {levels, pool, topk, tile};
    Reason reason;
    if (!lighthouse_valid(&settings, seq_len, &reason)) fatal("a test's settings: %s", reason.text);
    return lighthouse_shape(&settings, batch, seq_len, heads, kv_heads, head_dim);
}

LighthouseShape shape_with(int levels, int tile) {
    const LighthouseSettings settings = {levels, 2, tile, tile};
    return lighthouse_shape(&settings, 1, (int64_t)tile << (levels - 1), 1, 1, 8);
}

LighthouseShape random_shape(int64_t levels, int64_t pool) {
    const int64_t span = (int64_t)1 << ((levels - 1) * (pool == 2 ? 1 : pool == 4 ? 2 : 3));
    const bool is_long = span > 200; // then less of all else, so that it is quick
    const int64_t tile = 2 * pool + 2 * between(0, 3), chunks = is_long ? 1 : between(1, 5);
    const int64_t seq_len = (tile + between(0, is_long ? tile / 2 : 3 * tile)) * chunks * span;
    const int kv_heads = (int)between(1, 2);
    return shape_of(levels, pool, chunks * tile, tile, is_long ? 1 : 2, seq_len,
                    kv_heads * (int)between(1, 3), kv_heads, 8);
}

bool is_supported(Device *device, const LighthouseShape *shape) {
    Reason reason;
    return device->ops->selection.supported(shape, &reason, device->stream);
}

int64_t pool_of(const LighthouseShape *shape) {
    return (int64_t)1 << shape->log2_pool;
}
int64_t covered_by(const LighthouseShape *shape, int level) {
    return (int64_t)1 << (level * shape->log2_pool);
}

size_t all_score_rows(const LighthouseShape *s) {
    return (size_t)(s->batch * (s->heads + s->kv_heads));
}
size_t qkv_count(const LighthouseShape *s) {
    return (size_t)(s->batch * s->seq_len * (s->heads + 2 * s->kv_heads) * s->head_dim);
}
size_t out_count(const LighthouseShape *s) {
    return (size_t)(s->batch * s->seq_len * s->heads * s->head_dim);
}
size_t sub_out_count(const LighthouseShape *s) {
    return (size_t)(s->batch * s->entries * s->heads * s->head_dim);
}
size_t angle_count(const LighthouseShape *s) {
    return (size_t)(s->seq_len * s->head_dim);
}

// --- a layer on a device --------------------------------------------------------------------------------

enum { WORKSPACE_BOUND = 1 << 30 };

StorageType layer_storage(const Layer *l) {
    return l->device->ops->storage;
}
StorageType layer_accumulator(const Layer *l) {
    return accumulator_type(layer_storage(l));
}

void *take_memory(Device *device, size_t count, StorageType type) {
    const size_t bytes = count * storage_size(type);
    void *memory = device->allocate(device, bytes > 0 ? bytes : 1);
    if (!memory) fatal("the test needs %zu bytes on %s", bytes, device->name);
    return memory;
}

Layer layer_open(Device *device, const LighthouseShape *shape) {
    Layer l = {.device = device, .shape = *shape};
    const StorageType storage = layer_storage(&l), accumulator = layer_accumulator(&l);
    l.inner = lighthouse_attention_plan(device, shape, true, WORKSPACE_BOUND, NULL);
    l.layer.positions = take_memory(device, position_count(shape), STORAGE_FLOAT32); // as large as an int32
    l.layer.gathered = take_memory(device, 3 * sub_out_count(shape), storage);
    l.layer.sub_out = take_memory(device, sub_out_count(shape), storage);
    l.layer.logsumexp =
        take_memory(device, (size_t)(shape->batch * shape->heads * shape->entries), accumulator);
    l.scores = take_memory(device, all_score_rows(shape) * (size_t)shape->pyramid, accumulator);
    l.qkv = take_memory(device, qkv_count(shape), storage);
    l.out = take_memory(device, out_count(shape), storage);
    l.grad_qkv = take_memory(device, qkv_count(shape), storage);
    l.grad_out = take_memory(device, out_count(shape), storage);
    l.angles = take_memory(device, angle_count(shape), accumulator);
    l.scratch = take_memory(device, (size_t)lighthouse_backward_scratch(shape), storage);
    l.workspace = take_memory(device, l.inner.workspace_bytes / sizeof(float) + 1, STORAGE_FLOAT32);
    return l;
}

void layer_close(Layer *l) {
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

void set_positions(const Layer *l, const int32_t *positions) {
    l->device->upload(l->device, l->layer.positions, positions, position_count(&l->shape) * sizeof(int32_t));
}

double rounding_of(StorageType storage) {
    return storage == STORAGE_FLOAT64 ? 1e-12 : storage == STORAGE_FLOAT32 ? 1e-6 : 1e-3;
}

Layer random_layer(Device *device, const LighthouseShape *shape) {
    Layer l = layer_open(device, shape);
    int32_t *positions = random_positions(shape);
    set_positions(&l, positions);
    free(positions);
    return l;
}

// --- what it is given -----------------------------------------------------------------------------------

double *random_values(size_t count) {
    double *values = host_allocate(count, sizeof(double), "random values");
    uint16_t *rounded = host_allocate(count, sizeof(*rounded), "random values");
    random_fill(values, count);
    storage_from_double(rounded, STORAGE_BFLOAT16, values, count);
    storage_to_double(values, rounded, STORAGE_BFLOAT16, count);
    free(rounded);
    return values;
}

double *random_angles(const LighthouseShape *shape) {
    double *angles = random_values(angle_count(shape));
    for (size_t i = 0; i < angle_count(shape); i += 2) {
        const double angle = angles[i];
        angles[i] = (float)cos(angle);
        angles[i + 1] = (float)sin(angle);
    }
    return angles;
}

double *make_scores(const LighthouseShape *shape, ScoreKind kind) {
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

int32_t *random_positions(const LighthouseShape *shape) {
    Device *float64 = cpu_device_create(STORAGE_FLOAT64);
    double *scores = make_scores(shape, NORMAL);
    int32_t *positions = select_by(float64, shape, scores);
    free(scores);
    float64->destroy(float64);
    return positions;
}

// --- running it -----------------------------------------------------------------------------------------

int32_t *select_by(Device *device, const LighthouseShape *shape, const double *level_0) {
    const size_t pyramid = (size_t)shape->pyramid, seq_len = (size_t)shape->seq_len;
    const size_t count = all_score_rows(shape) * pyramid;
    const StorageType accumulator = accumulator_type(device->ops->storage);
    double *values = host_allocate(count, sizeof(double), "scores");
    for (size_t i = 0; i < count; i++)
        values[i] = i % pyramid < seq_len ? level_0[i / pyramid * seq_len + i % pyramid] : NAN;
    void *scores = take_memory(device, count, accumulator);
    upload(device, scores, accumulator, values, count);
    LighthouseLayer layer = {.positions = take_memory(device, position_count(shape), STORAGE_FLOAT32)};
    lighthouse_select(device, shape, &layer, scores);
    int32_t *positions = download_positions(device, layer.positions, shape);
    device->release(device, scores);
    device->release(device, layer.positions);
    free(values);
    return positions;
}

void run_rotation(const Layer *l, const double *qkv, const double *angles) {
    const LighthouseShape *s = &l->shape;
    upload(l->device, l->qkv, layer_storage(l), qkv, qkv_count(s));
    if (!angles) return;
    upload(l->device, l->angles, layer_accumulator(l), angles, angle_count(s));
    l->device->ops->rope.rotate(l->qkv, l->scores, s->pyramid, l->angles, s->batch, s->seq_len,
                                s->heads + 2 * s->kv_heads, s->heads + s->kv_heads, s->head_dim, false,
                                l->device->stream);
}

int32_t *run_selection(const Layer *l) {
    lighthouse_select(l->device, &l->shape, &l->layer, l->scores);
    return download_positions(l->device, l->layer.positions, &l->shape);
}

static const LighthouseHalo no_halo; // its sequences are here whole

double *run_forward(const Layer *l, const double *qkv, const double *angles) {
    run_rotation(l, qkv, angles);
    lighthouse_gather(l->device, &l->shape, &l->layer, l->qkv);
    lighthouse_attend(l->device, &l->inner, &l->layer, l->workspace);
    lighthouse_scatter(l->device, &l->shape, &l->layer, &no_halo, l->out);
    return download(l->device, l->out, layer_storage(l), out_count(&l->shape));
}

double *run_backward(const Layer *l, const double *grad_out, bool turned) {
    upload(l->device, l->grad_out, layer_storage(l), grad_out, out_count(&l->shape));
    lighthouse_backward(l->device, &l->shape, &l->inner, &l->layer, &no_halo, l->grad_qkv, l->grad_out,
                        turned ? l->angles : NULL, l->scratch, l->workspace);
    return download(l->device, l->grad_qkv, layer_storage(l), qkv_count(&l->shape));
}
