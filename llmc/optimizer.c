#include "optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void optimizer_create(Optimizer *optimizer, const OptimizerSettings *settings, const Model *model,
                      MemoryPlan *plan) {
    memset(optimizer, 0, sizeof(*optimizer));
    optimizer->settings = *settings;
    const size_t bytes =
        (size_t)model->parameters.elements * storage_size(accumulator_type(model->device->ops->storage));
    plan_add(plan, bytes, &optimizer->master, "optimizer: master weights");
    plan_add(plan, bytes, &optimizer->m, "optimizer: first moments");
    plan_add(plan, bytes, &optimizer->v, "optimizer: second moments");
    plan_add(plan, sizeof(double), &optimizer->norm_square, "optimizer: gradient norm");
}

static void *part(void *array, int64_t offset, StorageType type) {
    return (char *)array + offset * (int64_t)storage_size(type);
}

void optimizer_initialize(Optimizer *optimizer, Model *model, uint64_t seed) {
    Device *device = model->device;
    const ParameterTable *table = &model->parameters;
    const StorageType accumulator = accumulator_type(device->ops->storage);
    const size_t bytes = (size_t)table->elements * storage_size(accumulator);
    // Padding between tensors stays zero.
    device->zero(device, optimizer->master, bytes);
    device->zero(device, optimizer->m, bytes);
    device->zero(device, optimizer->v, bytes);
    for (int i = 0; i < table->count; i++) {
        const Parameter *p = &table->list[i];
        float *values = (float *)host_allocate((size_t)p->count, sizeof(float), "initial weights");
        parameter_initialize(values, p, 0, p->count, seed);
        void *stored = values;
        if (accumulator == STORAGE_FLOAT64) {
            double *wide = (double *)host_allocate((size_t)p->count, sizeof(double), "initial weights");
            storage_to_double(wide, values, STORAGE_FLOAT32, (size_t)p->count);
            stored = wide;
        }
        device->upload(device, part(optimizer->master, p->offset, accumulator), stored,
                       (size_t)p->count * storage_size(accumulator));
        if (stored != values) free(stored);
        free(values);
    }
    device->ops->round_to_storage(model->weights, optimizer->master, table->elements, device->stream);
}

double optimizer_grad_norm(Optimizer *optimizer, Model *model) {
    Device *device = model->device;
    double square;
    device->ops->sum_of_squares((double *)optimizer->norm_square, model->gradients,
                                model->parameters.elements, device->stream);
    device->download(device, &square, optimizer->norm_square, sizeof(square));
    return sqrt(square);
}

void optimizer_update(Optimizer *optimizer, Model *model, int64_t step, double learning_rate,
                      double grad_norm) {
    const OptimizerSettings *s = &optimizer->settings;
    const ParameterTable *table = &model->parameters;
    const StorageType storage = model->device->ops->storage, accumulator = accumulator_type(storage);
    AdamwStep update = {step, learning_rate, s->beta1, s->beta2, s->epsilon, 0, 1};
    // As torch.nn.utils.clip_grad_norm_ does it.
    if (s->grad_clip > 0) update.gradient_scale = fmin(1, s->grad_clip / (grad_norm + 1e-6));
    // Neighbours with the same decay go in one call; the table has those with decay first.
    for (int first = 0; first < table->count;) {
        const bool decay = table->list[first].decay || s->decay_all;
        int end = first + 1;
        while (end < table->count && (table->list[end].decay || s->decay_all) == decay) end++;
        const int64_t start = table->list[first].offset;
        const int64_t count = (end < table->count ? table->list[end].offset : table->elements) - start;
        update.weight_decay = decay ? s->weight_decay : 0;
        model->device->ops->adamw(
            part(model->weights, start, storage), part(optimizer->master, start, accumulator),
            part(optimizer->m, start, accumulator), part(optimizer->v, start, accumulator),
            part(model->gradients, start, accumulator), count, &update, model->device->stream);
        first = end;
    }
}
