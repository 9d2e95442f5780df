#include "training/training.h"

#include "base/names.h"
#include "run/options_check.h"

#include <stdlib.h>

// --- device ---------------------------------------------------------------------------------------------

// Each process of a host has a GPU of its own: of those it sees the one of its number, or, where its launcher
// lets it see one only, that one (NCCL refuses two processes on one GPU).
static int choose_gpu(const Communicator *communicator) {
    const int count = cuda_device_count(), processes = communicator->local_size;
    if (count == 1) return 0;
    if (processes > count)
        fatal("%d processes on a host with %d GPUs: each needs one of its own; start at most %d there",
              processes, count, count);
    return communicator->local_rank;
}

// Refuses what the device cannot do, while that costs nothing yet.
static void check_shape(const Device *device, const Options *options) {
    const ModelConfig *config = &options->config;
    model_config_check(config, device->alignment);
    const DecoderShape shape = {.batch = options->batch_size,
                                .dim = config->dim,
                                .heads = config->heads,
                                .head_dim = head_dim(config)};
    Reason reason;
    if (!device->supports(device, &shape, &reason)) fatal("%s", reason.text);
}

Device *training_open_device(Options *options, const Communicator *communicator) {
    static const StorageType storage_types[] = {[DTYPE_AUTO] = STORAGE_FLOAT32,
                                                [DTYPE_BFLOAT16] = STORAGE_BFLOAT16,
                                                [DTYPE_FLOAT32] = STORAGE_FLOAT32,
                                                [DTYPE_FLOAT64] = STORAGE_FLOAT64};
    const bool automatic = options->device == DEVICE_AUTO && cuda_device_count() > 0;
    const bool cuda = automatic || options->device == DEVICE_CUDA;
    Device *device = cuda ? cuda_device_create(cuda_device_count() > 0 ? choose_gpu(communicator) : 0)
                          : cpu_device_create(storage_types[options->dtype]);
    const char *dtype = storage_dtype(device->ops->storage);
    if (options->dtype != DTYPE_AUTO && storage_types[options->dtype] != device->ops->storage)
        fatal("--dtype %s: a CUDA device trains in %s", dtype_names[options->dtype], dtype);
    options->dtype = (DtypeChoice)name_index(dtype_names, dtype);
    check_shape(device, options);
    return device;
}

// --- plan -----------------------------------------------------------------------------------------------

static void settle_layer_kinds(Training *t, int64_t layers, const LayerKind *layer_kinds) {
    t->layer_kinds = host_allocate((size_t)layers, sizeof(LayerKind), "layer kinds");
    for (int64_t layer = 0; layer < layers && layer_kinds; layer++) {
        t->layer_kinds[layer] = layer_kinds[layer];
        t->lighthouse_layers += layer_kinds[layer] == LAYER_LIGHTHOUSE;
    }
}

Training training_create(Device *device, Collectives *collectives, const ModelConfig *config,
                         const DecoderSettings *decoder, const LayerKind *layer_kinds,
                         const OptimizerSettings *optimizer) {
    Training t = {.device = device, .collectives = collectives, .memory = memory_plan_create(device)};
    settle_layer_kinds(&t, config->layers, layer_kinds);
    LayerKinds *kinds = host_allocate((size_t)config->layers, sizeof(LayerKinds), "layer kinds");
    for (int64_t layer = 0; layer < config->layers; layer++) kinds[layer] = 1u << t.layer_kinds[layer];
    DecoderSettings settings = *decoder;
    settings.layer_kinds = kinds;
    settings.collectives = collectives;
    t.weights = weights_create(device, config, collectives ? collectives->communicator->size : 1, t.memory);
    t.decoder = decoder_create(device, config, &settings, t.weights, t.memory);
    t.optimizer = optimizer_create(device, optimizer, t.weights, collectives, t.memory);
    free(kinds);
    return t;
}

static Training plan_at_level(Collectives *collectives, const Options *o, RecomputeLevel level) {
    const Communicator *communicator = collectives->communicator;
    const DecoderSettings decoder = {.batch = o->batch_size,
                                     .seq_len = o->seq_len / communicator->groups[GROUP_CONTEXT].size,
                                     .micro_steps = options_micro_steps(o, communicator->size),
                                     .recompute = level,
                                     .deterministic = o->deterministic,
                                     .lighthouse = options_lighthouse(o),
                                     .scorer = &scorers[o->scorer],
                                     .rope_pooling = o->rope_pooling};
    const OptimizerSettings optimizer = {.beta1 = o->beta1,
                                         .beta2 = o->beta2,
                                         .epsilon = o->eps,
                                         .weight_decay = o->weight_decay,
                                         .decay_all = o->decay_all,
                                         .grad_clip = o->grad_clip,
                                         .sharded = o->zero == 1};
    const int64_t layers = o->config.layers;
    bool *dense = host_allocate((size_t)layers, sizeof(bool), "dense layers");
    LayerKind *kinds = host_allocate((size_t)layers, sizeof(LayerKind), "layer kinds");
    options_dense_layers(o, dense);
    for (int64_t layer = 0; layer < layers; layer++)
        kinds[layer] = o->selection && !dense[layer] ? LAYER_LIGHTHOUSE : LAYER_DENSE;
    const Training training =
        training_create(collectives->device, collectives, &o->config, &decoder, kinds, &optimizer);
    free(dense);
    free(kinds);
    return training;
}

Training training_plan(Collectives *collectives, const Options *options) {
    const bool automatic = options->recompute == RECOMPUTE_AUTO;
    RecomputeLevel level = automatic ? RECOMPUTE_NONE : options->recompute;
    Training training = plan_at_level(collectives, options, level);
    // All ranks take the same: what one runs again in its backward may need the others.
    while (automatic && level + 1 < RECOMPUTE_LEVELS &&
           !communicator_all(collectives->communicator, memory_plan_fits(training.memory),
                             "choosing what to recompute")) {
        training_free(&training);
        level = (RecomputeLevel)(level + 1);
        training = plan_at_level(collectives, options, level);
    }
    return training;
}

void training_print_levels(Collectives *collectives, const Options *options) {
    printf("recompute levels\n");
    for (int level = RECOMPUTE_NONE; level < RECOMPUTE_LEVELS; level++) {
        Training training = plan_at_level(collectives, options, (RecomputeLevel)level);
        char size[32];
        printf("  --recompute %-34s %12s, %s\n", recompute_names[level],
               format_bytes(size, (double)memory_plan_bytes(training.memory)),
               memory_plan_fits(training.memory) ? "fits" : "does not fit");
        training_free(&training);
    }
}

void training_allocate(Training *t) {
    const size_t rows = (size_t)(t->decoder->layers.batch * t->decoder->layers.seq_len);
    memory_plan_allocate(t->memory);
    decoder_start(t->decoder);
    t->inputs = host_allocate(rows, sizeof(int32_t), "a batch");
    t->targets = host_allocate(rows, sizeof(int32_t), "a batch");
}

void training_free(Training *t) {
    free(t->inputs);
    free(t->targets);
    free(t->layer_kinds);
    optimizer_free(t->optimizer);
    decoder_free(t->decoder);
    weights_free(t->weights);
    memory_plan_free(t->memory);
    *t = (Training){0};
}

// --- what others ask ------------------------------------------------------------------------------------

StepAttention training_attention(const Training *training, bool selection) {
    const StepAttention attention = {selection ? training->layer_kinds : NULL, false};
    return attention;
}

TrainingState training_state(const Training *training) {
    const Optimizer *optimizer = training->optimizer;
    TrainingState state = {.device = training->device,
                           .config = &training->decoder->layers.config,
                           .table = &training->weights->table,
                           .weights = weights_values_from(training->weights, 0),
                           .optimizer = optimizer_buffers(optimizer),
                           .communicator = training->collectives->communicator,
                           .sharded = optimizer->settings.sharded};
    return state;
}

FlopsPerToken training_flops(const Training *training) {
    const Layers *layers = &training->decoder->layers;
    const int ranks = training->collectives->communicator->groups[GROUP_CONTEXT].size;
    return flops_per_token(&layers->config, layers->seq_len * ranks, training->lighthouse_layers,
                           layers->lighthouse.entries * ranks);
}
