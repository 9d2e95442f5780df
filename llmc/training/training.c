#include "training/training.h"

#include <stdlib.h>
#include <string.h>

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

Device *training_open_device(Options *options, const Communicator *communicator) {
    const bool wants_cuda = !strcmp(options->device, "cuda");
    const bool cuda = wants_cuda || (!strcmp(options->device, "auto") && cuda_device_count() > 0);
    Device *device = cuda ? cuda_device_create(cuda_device_count() > 0 ? choose_gpu(communicator) : 0)
                          : cpu_device_create(storage_of_dtype(options->dtype, STORAGE_FLOAT32));
    const char *dtype = storage_dtype(device->ops->storage);
    if (strcmp(options->dtype, "auto") != 0 && strcmp(options->dtype, dtype) != 0)
        fatal("--dtype %s: a CUDA device trains in %s", options->dtype, dtype);
    options->dtype = dtype;
    model_config_check(&options->config, cuda ? PARAMETER_ALIGNMENT : 1);
    return device;
}

static void plan_at_level(Training *training, const Options *o, RecomputeLevel level) {
    const Communicator *communicator = training->collectives->communicator;
    bool *dense_layers = (bool *)host_allocate((size_t)o->config.layers, sizeof(bool), "dense layers");
    options_dense_layers(o, dense_layers);
    const ModelSettings model = {.batch = o->batch_size,
                                 .seq_len = o->seq_len / communicator->groups[GROUP_CONTEXT].size,
                                 .micro_steps = options_micro_steps(o, communicator->size),
                                 .recompute = level,
                                 .deterministic = o->deterministic,
                                 .selection = o->selection,
                                 .lighthouse = options_lighthouse(o),
                                 .dense_layers = dense_layers,
                                 .collectives = training->collectives};
    const OptimizerSettings optimizer = {.beta1 = o->beta1,
                                         .beta2 = o->beta2,
                                         .epsilon = o->eps,
                                         .weight_decay = o->weight_decay,
                                         .decay_all = o->decay_all,
                                         .grad_clip = o->grad_clip,
                                         .sharded = o->zero == 1};
    model_create(&training->model, training->device, &o->config, &model, &training->plan);
    optimizer_create(&training->optimizer, &optimizer, &training->model, &training->plan);
    free(dense_layers);
}

static void start_plan(Training *training, Collectives *collectives) {
    memset(training, 0, sizeof(*training));
    training->device = collectives->device;
    training->collectives = collectives;
}

void training_plan(Training *training, Collectives *collectives, const Options *options) {
    start_plan(training, collectives);
    RecomputeLevel level = recompute_level(options->recompute);
    const bool automatic = level == RECOMPUTE_LEVELS;
    if (automatic) level = RECOMPUTE_NONE;
    plan_at_level(training, options, level);
    // All ranks take the same: what one runs again in its backward may need the others.
    while (automatic && level + 1 < RECOMPUTE_LEVELS &&
           !communicator_all(collectives->communicator, plan_fits(&training->plan, training->device),
                             "choosing what to recompute")) {
        model_free(&training->model);
        plan_clear(&training->plan);
        level = (RecomputeLevel)(level + 1);
        plan_at_level(training, options, level);
    }
}

void training_print_levels(Collectives *collectives, const Options *options) {
    printf("recompute levels\n");
    for (int level = RECOMPUTE_NONE; level < RECOMPUTE_LEVELS; level++) {
        Training training;
        start_plan(&training, collectives);
        plan_at_level(&training, options, (RecomputeLevel)level);
        char size[32];
        printf("  --recompute %-34s %12s, %s\n", recompute_name((RecomputeLevel)level),
               format_bytes(size, (double)training.plan.bytes),
               plan_fits(&training.plan, training.device) ? "fits" : "does not fit");
        model_free(&training.model);
        plan_clear(&training.plan);
    }
}

void training_allocate(Training *training) {
    plan_allocate(&training->plan, training->device);
    model_start(&training->model);
}

TrainingState training_state(const Training *training) {
    const Optimizer *optimizer = &training->optimizer;
    const Model *model = &training->model;
    TrainingState state = {.device = training->device,
                           .config = &model->config,
                           .table = &model->parameters,
                           .weights = model->weights,
                           .optimizer = optimizer_buffers(optimizer),
                           .communicator = training->collectives->communicator,
                           .sharded = optimizer->settings.sharded};
    return state;
}

FlopsPerToken training_flops(const Training *training) {
    const Model *model = &training->model;
    const int ranks = training->collectives->communicator->groups[GROUP_CONTEXT].size;
    return flops_per_token(&model->config, model->settings.seq_len * ranks, model->lighthouse_layers,
                           model->lighthouse.entries * ranks);
}

void training_free(Training *training) {
    plan_release(&training->plan, training->device);
    plan_clear(&training->plan);
    model_free(&training->model);
}
