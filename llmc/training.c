#include "training.h"

#include <stdlib.h>
#include <string.h>

Device *training_open_device(Options *options) {
    const bool wants_cuda = !strcmp(options->device, "cuda");
    const bool cuda = wants_cuda || (!strcmp(options->device, "auto") && cuda_device_count() > 0);
    Device *device =
        cuda ? cuda_device_create(0) : cpu_device_create(storage_of_dtype(options->dtype, STORAGE_FLOAT32));
    const char *dtype = storage_dtype(device->ops->storage);
    if (strcmp(options->dtype, "auto") != 0 && strcmp(options->dtype, dtype) != 0)
        fatal("--dtype %s: a CUDA device trains in %s", options->dtype, dtype);
    options->dtype = dtype;
    model_config_check(&options->config, cuda ? PARAMETER_ALIGNMENT : 1);
    return device;
}

static void plan_at_level(Training *training, const Options *o, RecomputeLevel level) {
    bool *dense_layers = (bool *)host_allocate((size_t)o->config.layers, sizeof(bool), "dense layers");
    options_dense_layers(o, dense_layers);
    const ModelSettings model = {.batch = o->batch_size,
                                 .seq_len = o->seq_len,
                                 .micro_steps = o->global_batch / o->batch_size,
                                 .recompute = level,
                                 .deterministic = o->deterministic,
                                 .selection = o->selection,
                                 .lighthouse = options_lighthouse(o),
                                 .dense_layers = dense_layers};
    const OptimizerSettings optimizer = {.beta1 = o->beta1,
                                         .beta2 = o->beta2,
                                         .epsilon = o->eps,
                                         .weight_decay = o->weight_decay,
                                         .decay_all = o->decay_all,
                                         .grad_clip = o->grad_clip};
    model_create(&training->model, training->device, &o->config, &model, &training->plan);
    optimizer_create(&training->optimizer, &optimizer, &training->model, &training->plan);
    free(dense_layers);
}

void training_plan(Training *training, Device *device, const Options *options) {
    memset(training, 0, sizeof(*training));
    training->device = device;
    RecomputeLevel level = recompute_level(options->recompute);
    const bool automatic = level == RECOMPUTE_LEVELS;
    if (automatic) level = RECOMPUTE_NONE;
    plan_at_level(training, options, level);
    while (automatic && !plan_fits(&training->plan, device) && level + 1 < RECOMPUTE_LEVELS) {
        model_free(&training->model);
        plan_clear(&training->plan);
        level = (RecomputeLevel)(level + 1);
        plan_at_level(training, options, level);
    }
}

void training_print_levels(Device *device, const Options *options) {
    printf("recompute levels\n");
    for (int level = RECOMPUTE_NONE; level < RECOMPUTE_LEVELS; level++) {
        Training training;
        memset(&training, 0, sizeof(training));
        training.device = device;
        plan_at_level(&training, options, (RecomputeLevel)level);
        char size[32];
        printf("  --recompute %-34s %12s, %s\n", recompute_name((RecomputeLevel)level),
               format_bytes(size, (double)training.plan.bytes),
               plan_fits(&training.plan, device) ? "fits" : "does not fit");
        model_free(&training.model);
        plan_clear(&training.plan);
    }
}

void training_allocate(Training *training) {
    plan_allocate(&training->plan, training->device);
    model_start(&training->model);
}

TrainingState training_state(const Training *training, const Communicator *communicator) {
    const Optimizer *optimizer = &training->optimizer;
    const Model *model = &training->model;
    TrainingState state = {training->device, &model->config,    &model->parameters,
                           model->weights,   optimizer->master, optimizer->m,
                           optimizer->v,     communicator,      false};
    return state;
}

FlopsPerToken training_flops(const Training *training) {
    const Model *model = &training->model;
    return flops_per_token(&model->config, model->settings.seq_len, model->lighthouse_layers,
                           model->lighthouse.entries);
}

void training_free(Training *training) {
    plan_release(&training->plan, training->device);
    plan_clear(&training->plan);
    model_free(&training->model);
}
