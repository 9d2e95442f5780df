#include "small_model.h"

#include <math.h>
#include <stdlib.h>

const OptimizerSettings usual_optimizer = {0.9, 0.95, 1e-8, 0.1, false, 1.0, false};

Training *training_open(Device *device, const ModelConfig *config, const ModelSettings *settings,
                        const OptimizerSettings *optimizer) {
    Training *t = (Training *)host_allocate(1, sizeof(Training), "a training");
    t->device = device;
    model_create(&t->model, device, config, settings, &t->plan);
    optimizer_create(&t->optimizer, optimizer, &t->model, &t->plan);
    training_allocate(t);
    optimizer_initialize(&t->optimizer, 1);
    return t;
}

void training_close(Training *t) {
    training_free(t);
    free(t);
}

StorageType accumulator_of(const Training *t) {
    return accumulator_type(t->device->ops->storage);
}

void set_weights(Training *t, const double *values) {
    const size_t count = (size_t)t->model.parameters.elements;
    upload(t->device, t->model.weights, t->device->ops->storage, values, count);
    if (!t->optimizer.settings.sharded)
        upload(t->device, t->optimizer.master, accumulator_of(t), values, count);
}

double *get_gradients(const Training *t) {
    return download(t->device, t->model.gradients, accumulator_of(t), (size_t)t->model.parameters.elements);
}

void *gradient_bytes(const Training *t, size_t *size) {
    *size = (size_t)t->model.parameters.elements * storage_size(accumulator_of(t));
    void *bytes = host_allocate(*size, 1, "gradients");
    t->device->download(t->device, bytes, t->model.gradients, *size);
    return bytes;
}

void check_parameters(const ParameterTable *table, const double *a, const double *b, double tolerance) {
    for (int i = 0; i < table->count; i++)
        check_close(table->list[i].name, a + table->list[i].offset, b + table->list[i].offset,
                    (size_t)table->list[i].count, tolerance);
}

// --- the odd model --------------------------------------------------------------------------------------

const ModelConfig odd_config = {264, 192, 3, 6, 2, 136, 1e4, 1e-5};
const bool odd_dense_layers[] = {true, false, false};

OddBatch odd_batch(void) {
    OddBatch batch;
    for (int i = 0; i < ODD_ROWS; i++) {
        batch.inputs[i] = (int32_t)random_below((uint64_t)odd_config.vocab_size);
        batch.targets[i] = (int32_t)random_below((uint64_t)odd_config.vocab_size);
    }
    return batch;
}

ModelSettings odd_settings(bool selection) {
    ModelSettings settings = {.batch = ODD_BATCH,
                              .seq_len = ODD_SEQ_LEN,
                              .micro_steps = 1,
                              .deterministic = true,
                              .selection = selection,
                              .lighthouse = {3, 2, 12, 4}, // 3 chunks of 17 coarsest entries
                              .dense_layers = odd_dense_layers};
    return settings;
}

Training *odd_training(Device *device, ModelSettings settings) {
    return training_open(device, &odd_config, &settings, &usual_optimizer);
}

double *odd_weights(const ParameterTable *table) {
    const size_t count = (size_t)table->elements;
    double *values = (double *)host_allocate(count, sizeof(double), "weights");
    random_fill(values, count);
    for (int i = 0; i < table->count; i++) {
        const Parameter *p = &table->list[i];
        for (int64_t j = 0; j < p->count; j++) {
            double *value = &values[p->offset + j];
            *value = p->dims == 1 ? 1 + 0.2 * *value : *value / sqrt((double)p->shape[1]);
        }
    }
    uint16_t *rounded = (uint16_t *)host_allocate(count, sizeof(uint16_t), "weights");
    storage_from_double(rounded, STORAGE_BFLOAT16, values, count);
    storage_to_double(values, rounded, STORAGE_BFLOAT16, count);
    free(rounded);
    return values;
}

double accumulate(Training *t, const OddBatch *batch) {
    model_zero_gradients(&t->model);
    model_accumulate(&t->model, 0, batch->inputs, batch->targets, 1.0 / ODD_ROWS, NULL);
    return model_losses(&t->model) / ODD_ROWS;
}
