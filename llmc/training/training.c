#include "training/training.h"

#include "base/host_memory.h"
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
    device->host_sharers = (int)max_i64(communicator->local_size, 1);
    return device;
}

// --- plan -----------------------------------------------------------------------------------------------

Training training_create(Device *device, Collectives *collectives, const ModelConfig *config,
                         const DecoderSettings *decoder, const AttentionSchedule *schedule,
                         const OptimizerSettings *optimizer) {
    Training t = {.device = device,
                  .collectives = collectives,
                  .memory = memory_plan_create(device),
                  .schedule = *schedule};
    const size_t layers = (size_t)config->layers;
    t.layer_kinds = host_allocate(layers, sizeof(LayerKind), "layer kinds");
    attention_schedule_layers(schedule, 0, t.layer_kinds);
    LayerKinds *kinds = host_allocate(layers, sizeof(LayerKinds), "layer kinds");
    for (int64_t layer = 0; layer < config->layers; layer++)
        kinds[layer] = attention_schedule_kinds_of(schedule, layer);
    DecoderSettings settings = *decoder;
    settings.layer_kinds = kinds;
    settings.dense_steps = attention_schedule_has_dense_steps(schedule);
    settings.dense_span = settings.dense_steps ? schedule->dense_span : 0;
    settings.collectives = collectives;
    t.weights = weights_create(device, config, collectives ? collectives->communicator->size : 1, t.memory);
    t.decoder = decoder_create(device, config, &settings, t.weights, t.memory);
    t.optimizer = optimizer_create(device, optimizer, t.weights, collectives, t.memory);
    free(kinds);
    return t;
}

// What to recompute in usual steps and in dense ones.
static Training plan_at_levels(Collectives *collectives, const Options *o, RecomputeLevel usual,
                               RecomputeLevel dense) {
    const Communicator *communicator = collectives->communicator;
    const DecoderSettings decoder = {.batch = o->batch_size,
                                     .seq_len = o->seq_len / communicator->groups[GROUP_CONTEXT].size,
                                     .micro_steps = options_micro_steps(o, communicator->size),
                                     .recompute = usual,
                                     .dense_recompute = dense,
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
    const AttentionSchedule schedule = attention_schedule_create(o);
    return training_create(collectives->device, collectives, &o->config, &decoder, &schedule, &optimizer);
}

// Replaces a plan that is too large by the one that recomputes a little more: in dense steps, and when all is
// recomputed there, in usual steps. (In dense steps it is no use to keep what usual steps do not.) False if
// there is none.
static bool recompute_more(Training *training, const Options *o) {
    const Layers *layers = &training->decoder->layers;
    int usual = layers->recompute[USUAL_STEP], dense = layers->recompute[DENSE_STEP];
    const bool dense_steps = attention_schedule_has_dense_steps(&training->schedule);
    if (dense_steps && dense + 1 < RECOMPUTE_LEVELS)
        dense++;
    else
        dense = ++usual;
    if (usual == RECOMPUTE_LEVELS) return false;
    Collectives *collectives = training->collectives;
    training_free(training);
    *training = plan_at_levels(collectives, o, (RecomputeLevel)usual, (RecomputeLevel)dense);
    return true;
}

Training training_plan(Collectives *collectives, const Options *options) {
    const bool automatic = options->recompute == RECOMPUTE_AUTO;
    const RecomputeLevel level = automatic ? RECOMPUTE_NONE : options->recompute;
    Training training = plan_at_levels(collectives, options, level, level);
    // All ranks take the same: what one runs again in its backward may need the others. And none goes on to
    // allocate before all have seen what is free.
    while (!communicator_all(collectives->communicator, memory_plan_fits(training.memory),
                             "choosing what to recompute"))
        if (!automatic || !recompute_more(&training, options)) break;
    const TrainingState state = training_state(&training);
    if (options->async_save) memory_plan_add_copy(training.memory, (size_t)training_state_bytes_here(&state));
    return training;
}

void training_print_levels(Collectives *collectives, const Options *options) {
    printf("recompute levels\n");
    for (int level = RECOMPUTE_NONE; level < RECOMPUTE_LEVELS; level++) {
        Training training =
            plan_at_levels(collectives, options, (RecomputeLevel)level, (RecomputeLevel)level);
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

size_t training_memory(const Training *t) {
    return t->device->on_host ? process_memory("") : memory_plan_bytes(t->memory);
}

void training_free(Training *t) {
    free(t->inputs);
    free(t->targets);
    free(t->layer_kinds);
    attention_schedule_free(&t->schedule);
    optimizer_free(t->optimizer);
    decoder_free(t->decoder);
    weights_free(t->weights);
    memory_plan_free(t->memory);
    *t = (Training){0};
}

// --- what others ask ------------------------------------------------------------------------------------

StepAttention training_step_attention(const Training *t, int64_t step, bool as_usual) {
    StepAttention attention = {0};
    if (!as_usual) attention.type = attention_schedule_type(&t->schedule, step);
    if (attention.type == DENSE_STEP) return attention;
    attention_schedule_layers(&t->schedule, step, t->layer_kinds);
    attention.layers = t->layer_kinds;
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

// --- work -----------------------------------------------------------------------------------------------

static FlopsPerToken flops_of(const Training *t, double dense_layers, StepType type) {
    const Layers *layers = &t->decoder->layers;
    const int ranks = t->collectives ? t->collectives->communicator->groups[GROUP_CONTEXT].size : 1;
    const int64_t seq_len = layers->seq_len * ranks, span = t->schedule.dense_span;
    return flops_per_token(&layers->config, seq_len, type == DENSE_STEP && span > 0 ? span : seq_len,
                           (double)layers->config.layers - dense_layers, layers->lighthouse.entries * ranks);
}

FlopsPerToken training_step_flops(const Training *t, const StepAttention *attention) {
    return flops_of(t, (double)step_dense_layers(attention, t->schedule.layers), attention->type);
}

FlopsPerToken training_type_flops(const Training *t, StepType type) {
    const double usual = attention_schedule_dense_layers(&t->schedule);
    return flops_of(t, type == DENSE_STEP ? (double)t->schedule.layers : usual, type);
}

FlopsPerToken training_mean_flops(const Training *t, int64_t steps) {
    FlopsPerToken mean = training_type_flops(t, USUAL_STEP);
    const int64_t dense_steps = attention_schedule_dense_steps(&t->schedule, 0, steps);
    if (dense_steps == 0) return mean;
    const double share = (double)dense_steps / (double)steps;
    const double dense = training_type_flops(t, DENSE_STEP).attention;
    mean.attention += share * (dense - mean.attention);
    return mean;
}
