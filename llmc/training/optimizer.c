#include "training/optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static StorageType storage_of(const Optimizer *optimizer) {
    return optimizer->device->ops->storage;
}
static StorageType accumulator_of(const Optimizer *optimizer) {
    return accumulator_type(storage_of(optimizer));
}
static const ParameterTable *table_of(const Optimizer *optimizer) {
    return &optimizer->weights->table;
}

// The address of element `element` of the state buffer at `offset` in the arena.
static void *state_from(const Optimizer *optimizer, size_t offset, int64_t element) {
    return storage_element(memory_at(optimizer->memory, offset), accumulator_of(optimizer), element);
}

Optimizer *optimizer_create(Device *device, const OptimizerSettings *settings, Weights *weights,
                            Collectives *collectives, MemoryPlan *memory) {
    Optimizer *optimizer = host_allocate(1, sizeof(Optimizer), "the optimizer");
    const ParameterTable *table = &weights->table;
    optimizer->settings = *settings;
    optimizer->device = device;
    optimizer->weights = weights;
    optimizer->collectives = collectives;
    optimizer->ranks = table->ranks;
    optimizer->rank = collectives ? collectives->communicator->rank : 0;
    optimizer->memory = memory;
    const int64_t elements = settings->sharded ? table->elements / table->ranks : table->elements;
    const size_t bytes = (size_t)elements * storage_size(accumulator_of(optimizer));
    const char *share = settings->sharded && table->ranks > 1 ? ", this rank's" : "";
    optimizer->master = memory_plan_add(memory, bytes, "optimizer: master weights%s", share);
    optimizer->m = memory_plan_add(memory, bytes, "optimizer: first moments%s", share);
    optimizer->v = memory_plan_add(memory, bytes, "optimizer: second moments%s", share);
    optimizer->norm_squares = memory_plan_add(memory, 2 * (size_t)table->bucket_count * sizeof(double),
                                              "optimizer: gradient norms");
    return optimizer;
}

void optimizer_free(Optimizer *optimizer) {
    free(optimizer);
}

// The range in the flat buffers of the elements of a bucket that this rank updates; and the index in the
// state buffers at which their state begins.
static ElementRange updated_range(const Optimizer *optimizer, int bucket) {
    const ParameterBucket *b = &table_of(optimizer)->buckets[bucket];
    if (optimizer->settings.sharded) return bucket_part(table_of(optimizer), bucket, optimizer->rank);
    return (ElementRange){b->offset, b->count};
}
static int64_t state_start(const Optimizer *optimizer, int bucket) {
    const int64_t offset = table_of(optimizer)->buckets[bucket].offset;
    return optimizer->settings.sharded ? offset / optimizer->ranks : offset;
}

// Gathers the parts of a bucket's weights from the ranks that updated them, if the state is sharded.
static void publish(const Optimizer *optimizer, int bucket) {
    if (!optimizer->settings.sharded || !optimizer->collectives) return;
    const ParameterBucket *b = &table_of(optimizer)->buckets[bucket];
    collectives_all_gather(optimizer->collectives, GROUP_WORLD,
                           weights_values_from(optimizer->weights, b->offset),
                           (size_t)(b->count / optimizer->ranks) * storage_size(storage_of(optimizer)),
                           "gathering updated weights");
}

static void finish(const Optimizer *optimizer) {
    if (optimizer->collectives) collectives_finish(optimizer->collectives);
}

// --- initial weights ------------------------------------------------------------------------------------

static void upload_initial(Optimizer *optimizer, const Parameter *p, uint64_t seed) {
    const StorageType accumulator = accumulator_of(optimizer);
    Device *device = optimizer->device;
    const ElementRange range = updated_range(optimizer, p->bucket);
    const int64_t first = max_i64(p->offset, range.first);
    const int64_t count = min_i64(p->offset + p->count, range.first + range.count) - first;
    if (count <= 0) return;
    float *values = host_allocate((size_t)count, sizeof(float), "initial weights");
    parameter_initialize(values, p, first - p->offset, count, seed);
    void *stored = values;
    if (accumulator == STORAGE_FLOAT64) {
        double *wide = host_allocate((size_t)count, sizeof(double), "initial weights");
        storage_to_double(wide, values, STORAGE_FLOAT32, (size_t)count);
        stored = wide;
    }
    const int64_t at = state_start(optimizer, p->bucket) + (first - range.first);
    device->upload(device, state_from(optimizer, optimizer->master, at), stored,
                   (size_t)count * storage_size(accumulator));
    if (stored != values) free(stored);
    free(values);
}

void optimizer_initialize(Optimizer *optimizer, uint64_t seed) {
    Device *device = optimizer->device;
    const ParameterTable *table = table_of(optimizer);
    const int64_t elements = optimizer->settings.sharded ? table->elements / table->ranks : table->elements;
    const size_t bytes = (size_t)elements * storage_size(accumulator_of(optimizer));
    // Padding between tensors stays zero.
    device->zero(device, state_from(optimizer, optimizer->master, 0), bytes);
    device->zero(device, state_from(optimizer, optimizer->m, 0), bytes);
    device->zero(device, state_from(optimizer, optimizer->v, 0), bytes);
    for (int i = 0; i < table->count; i++) upload_initial(optimizer, &table->list[i], seed);
    for (int bucket = 0; bucket < table->bucket_count; bucket++) {
        const ElementRange range = updated_range(optimizer, bucket);
        device->ops->convert.round_to_storage(
            weights_values_from(optimizer->weights, range.first),
            state_from(optimizer, optimizer->master, state_start(optimizer, bucket)), range.count,
            device->stream);
        publish(optimizer, bucket);
    }
    finish(optimizer);
}

StateBuffers optimizer_buffers(const Optimizer *optimizer) {
    StateBuffers buffers = {.list = {{"master", NULL}, {"m", NULL}, {"v", NULL}}, .count = 3};
    if (!optimizer) return buffers;
    const size_t offsets[] = {optimizer->master, optimizer->m, optimizer->v};
    for (int i = 0; i < buffers.count; i++) buffers.list[i].memory = state_from(optimizer, offsets[i], 0);
    return buffers;
}

// --- gradients ------------------------------------------------------------------------------------------

static double *norm_square(const Optimizer *optimizer, int bucket, bool of_sum) {
    return (double *)memory_at(optimizer->memory, optimizer->norm_squares) +
           (of_sum ? table_of(optimizer)->bucket_count : 0) + bucket;
}

static void reduce_bucket(void *context, int bucket) {
    const Optimizer *optimizer = (const Optimizer *)context;
    Device *device = optimizer->device;
    const ParameterBucket *b = &table_of(optimizer)->buckets[bucket];
    void *gradients = weights_gradients_from(optimizer->weights, b->offset);
    if (optimizer->ranks == 1) return;
    device->ops->reduce.sum_of_squares(norm_square(optimizer, bucket, false), gradients, b->count,
                                       device->stream);
    const int64_t count = b->count / optimizer->ranks;
    collectives_reduce_scatter(optimizer->collectives, GROUP_WORLD, gradients, count,
                               "summing gradients over ranks");
    if (!optimizer->settings.sharded)
        collectives_all_gather(optimizer->collectives, GROUP_WORLD, gradients,
                               (size_t)count * storage_size(accumulator_of(optimizer)),
                               "gathering summed gradients");
}

GradientsReady optimizer_reduction(Optimizer *optimizer) {
    GradientsReady ready = {reduce_bucket, optimizer};
    return ready;
}

static double download_norm_square(const Optimizer *optimizer, bool of_sum) {
    Device *device = optimizer->device;
    const size_t count = (size_t)table_of(optimizer)->bucket_count;
    double *squares = host_allocate(count, sizeof(double), "gradient norms"), sum = 0;
    device->download(device, squares, norm_square(optimizer, 0, of_sum), count * sizeof(double));
    for (size_t i = 0; i < count; i++) sum += squares[i];
    free(squares);
    return sum;
}

double optimizer_grad_norm(Optimizer *optimizer, double *norm_here) {
    Device *device = optimizer->device;
    finish(optimizer);
    // Each rank sums over its part, also if it has the whole gradient: the same bits sharded or not.
    for (int bucket = 0; bucket < table_of(optimizer)->bucket_count; bucket++) {
        const ElementRange range = bucket_part(table_of(optimizer), bucket, optimizer->rank);
        device->ops->reduce.sum_of_squares(norm_square(optimizer, bucket, true),
                                           weights_gradients_from(optimizer->weights, range.first),
                                           range.count, device->stream);
    }
    double square = download_norm_square(optimizer, true);
    if (norm_here) *norm_here = sqrt(optimizer->ranks == 1 ? square : download_norm_square(optimizer, false));
    if (optimizer->collectives)
        communicator_sum(optimizer->collectives->communicator, &square, 1, "the gradient's norm");
    return sqrt(square);
}

// --- update ---------------------------------------------------------------------------------------------

void optimizer_update(Optimizer *optimizer, int64_t step, double learning_rate, double grad_norm) {
    const OptimizerSettings *s = &optimizer->settings;
    Device *device = optimizer->device;
    AdamwStep update = {step, learning_rate, s->beta1, s->beta2, s->epsilon, 0, 1};
    // The formula of torch.nn.utils.clip_grad_norm_.
    if (s->grad_clip > 0) update.gradient_scale = fmin(1, s->grad_clip / (grad_norm + 1e-6));
    for (int bucket = 0; bucket < table_of(optimizer)->bucket_count; bucket++) {
        const ElementRange range = updated_range(optimizer, bucket);
        const int64_t state = state_start(optimizer, bucket);
        update.weight_decay =
            table_of(optimizer)->buckets[bucket].decay || s->decay_all ? s->weight_decay : 0;
        device->ops->optimizer.adamw(
            weights_values_from(optimizer->weights, range.first),
            state_from(optimizer, optimizer->master, state), state_from(optimizer, optimizer->m, state),
            state_from(optimizer, optimizer->v, state),
            weights_gradients_from(optimizer->weights, range.first), range.count, &update, device->stream);
        publish(optimizer, bucket);
    }
    finish(optimizer);
}
