#include "small_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const OptimizerSettings usual_optimizer = {0.9, 0.95, 1e-8, 0.1, false, 1.0, false};

Training *training_open(Device *device, Collectives *collectives, const ModelConfig *config,
                        const DecoderSettings *settings, const LayerKind *layer_kinds,
                        const OptimizerSettings *optimizer) {
    const AttentionSchedule schedule = attention_schedule_fixed(config->layers, layer_kinds);
    return training_open_scheduled(device, collectives, config, settings, &schedule, optimizer);
}

Training *training_open_scheduled(Device *device, Collectives *collectives, const ModelConfig *config,
                                  const DecoderSettings *settings, const AttentionSchedule *schedule,
                                  const OptimizerSettings *optimizer) {
    Training *t = host_allocate(1, sizeof(Training), "a training");
    *t = training_create(device, collectives, config, settings, schedule, optimizer);
    training_allocate(t);
    optimizer_initialize(t->optimizer, 1);
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
    const size_t count = (size_t)t->weights->table.elements;
    upload(t->device, weights_values_from(t->weights, 0), t->device->ops->storage, values, count);
    if (!t->optimizer->settings.sharded)
        upload(t->device, memory_at(t->memory, t->optimizer->master), accumulator_of(t), values, count);
}

double *get_gradients(const Training *t) {
    return download(t->device, weights_gradients_from(t->weights, 0), accumulator_of(t),
                    (size_t)t->weights->table.elements);
}

double *get_weights(const Training *t) {
    return download(t->device, weights_values_from(t->weights, 0), t->device->ops->storage,
                    (size_t)t->weights->table.elements);
}

void *gradient_bytes(const Training *t, size_t *size) {
    *size = (size_t)t->weights->table.elements * storage_size(accumulator_of(t));
    void *bytes = host_allocate(*size, 1, "gradients");
    t->device->download(t->device, bytes, weights_gradients_from(t->weights, 0), *size);
    return bytes;
}

double step_tolerance(const Device *device) {
    if (device->ops->storage == STORAGE_FLOAT64) return 1e-12;
    return device->ops->storage == STORAGE_FLOAT32 ? 1e-5 : 2e-2;
}

void equal_gradient_bytes(const char *what, const Training *a, const Training *b) {
    size_t size, other_size;
    void *bytes = gradient_bytes(a, &size), *other = gradient_bytes(b, &other_size);
    check(size == other_size && !memcmp(bytes, other, size), "%s: the gradients' bytes differ", what);
    free(bytes);
    free(other);
}

void check_parameters(const ParameterTable *table, const double *a, const double *b, double tolerance) {
    for (int i = 0; i < table->count; i++)
        check_close(table->list[i].name, a + table->list[i].offset, b + table->list[i].offset,
                    (size_t)table->list[i].count, tolerance);
}

// --- the odd model --------------------------------------------------------------------------------------

const ModelConfig odd_config = {264, 192, 3, 6, 2, 136, 1e4, 1e-5};
const LayerKind odd_layer_kinds[] = {LAYER_DENSE, LAYER_LIGHTHOUSE, LAYER_LIGHTHOUSE};

OddBatch odd_batch(void) {
    OddBatch batch;
    for (int i = 0; i < ODD_ROWS; i++) {
        batch.inputs[i] = (int32_t)random_below((uint64_t)odd_config.vocab_size);
        batch.targets[i] = (int32_t)random_below((uint64_t)odd_config.vocab_size);
    }
    return batch;
}

DecoderSettings odd_settings(void) {
    DecoderSettings settings = {.batch = ODD_BATCH,
                                .seq_len = ODD_SEQ_LEN,
                                .micro_steps = 1,
                                .deterministic = true,
                                .lighthouse = {3, 2, 12, 4}}; // 3 chunks of 17 coarsest entries
    return settings;
}

Training *odd_training(Device *device, DecoderSettings settings, bool selection) {
    return training_open(device, NULL, &odd_config, &settings, selection ? odd_layer_kinds : NULL,
                         &usual_optimizer);
}

double *odd_weights(const ParameterTable *table) {
    const size_t count = (size_t)table->elements;
    double *values = host_allocate(count, sizeof(double), "weights");
    random_fill(values, count);
    for (int i = 0; i < table->count; i++) {
        const Parameter *p = &table->list[i];
        for (int64_t j = 0; j < p->count; j++) {
            double *value = &values[p->offset + j];
            *value = p->dims == 1 ? 1 + 0.2 * *value : *value / sqrt((double)p->shape[1]);
        }
    }
    uint16_t *rounded = host_allocate(count, sizeof(uint16_t), "weights");
    storage_from_double(rounded, STORAGE_BFLOAT16, values, count);
    storage_to_double(values, rounded, STORAGE_BFLOAT16, count);
    free(rounded);
    return values;
}

// Hands out the batch's rows, as many as a micro-step takes.
typedef struct {
    const OddBatch *batch;
    int64_t rows;
} OddSource;

static void read_odd(void *context, int64_t micro_step, int32_t *inputs, int32_t *targets) {
    const OddSource *source = (const OddSource *)context;
    const size_t bytes = (size_t)source->rows * sizeof(int32_t);
    memcpy(inputs, source->batch->inputs + micro_step * source->rows, bytes);
    memcpy(targets, source->batch->targets + micro_step * source->rows, bytes);
}

StepAttention training_attention(const Training *t, bool selection) {
    const StepAttention dense = {0};
    return selection ? training_step_attention(t, 0, false) : dense;
}

double accumulate(Training *t, const OddBatch *batch) {
    OddSource odd = {batch, t->decoder->layers.batch * t->decoder->layers.seq_len};
    const BatchSource source = {read_odd, &odd};
    const StepAttention attention = training_attention(t, true);
    step_accumulate(t, &attention, &source, NULL);
    return decoder_losses(t->decoder) / ODD_ROWS;
}

double evaluate(Training *t, const OddBatch *batch, bool selection) {
    const StepAttention attention = training_attention(t, selection);
    return decoder_evaluate(t->decoder, &attention, batch->inputs, batch->targets) / ODD_ROWS;
}
