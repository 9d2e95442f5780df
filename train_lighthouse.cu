// train_lighthouse: options → device → data → plan → build → loop.
#include "llmc/checkpoint.h"
#include "llmc/communicator.h"
#include "llmc/dataset.h"
#include "llmc/flops.h"
#include "llmc/logger.h"
#include "llmc/optimizer.h"
#include "llmc/options.h"
#include "llmc/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif
#include <cjson/cJSON.h>
#ifdef __cplusplus
}
#endif
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// A run, from the first step to the last.
typedef struct {
    Options options;
    Device *device;
    Dataset train, validation;
    MemoryPlan plan;
    Model model;
    Optimizer optimizer;
    Schedule schedule;
    Progress progress;
    Logger logger;
    double flops_per_token;
    int32_t *inputs, *targets; // [batch_size, seq_len], on the host
} Run;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

// --- options, device, data ------------------------------------------------------------------------------

// The command line, over what the checkpoint to resume recorded. The checkpoint's path is NULL for a new run.
static Options resolve_options(int argc, char **argv, Checkpoint *checkpoint) {
    Options options = options_parse(argc, argv, NULL);
    memset(checkpoint, 0, sizeof(*checkpoint));
    if (options.resume[0]) {
        *checkpoint = checkpoint_open(options.resume, options.out);
        options = options_parse(argc, argv, checkpoint->options);
    }
    options_check(&options);
    char *latest = format_string("%s/latest", options.out);
    if (!options.resume[0] && !options.plan && access(latest, F_OK) == 0)
        fatal("--out %s already holds checkpoints; go on with --resume latest, or choose another directory",
              options.out);
    free(latest);
    return options;
}

// Opens the device that the options ask for, and settles their dtype.
static Device *open_device(Options *options) {
    const bool cuda =
        !strcmp(options->device, "cuda") || (!strcmp(options->device, "auto") && cuda_device_count() > 0);
    Device *device =
        cuda ? cuda_device_create(0) : cpu_device_create(storage_of_dtype(options->dtype, STORAGE_FLOAT32));
    const char *dtype = storage_dtype(device->ops->storage);
    if (strcmp(options->dtype, "auto") != 0 && strcmp(options->dtype, dtype) != 0)
        fatal("--dtype %s: a CUDA device trains in %s", options->dtype, dtype);
    options->dtype = dtype;
    model_config_check(&options->config, cuda ? PARAMETER_ALIGNMENT : 1);
    return device;
}

static void open_data(Run *run) {
    const Options *o = &run->options;
    run->train = dataset_open("--train-data", o->train_data, o->seq_len, o->config.vocab_size);
    if (o->val_data[0] && o->val_every > 0)
        run->validation = dataset_open("--val-data", o->val_data, o->seq_len, o->config.vocab_size);
    const size_t tokens = (size_t)(o->batch_size * o->seq_len);
    run->inputs = (int32_t *)host_allocate(tokens, sizeof(int32_t), "a batch");
    run->targets = (int32_t *)host_allocate(tokens, sizeof(int32_t), "a batch");
}

// --- plan -----------------------------------------------------------------------------------------------

static void plan_at_level(Run *run, RecomputeLevel level) {
    const Options *o = &run->options;
    ModelSettings model = {
        o->batch_size, o->seq_len, o->global_batch / o->batch_size, level, o->deterministic, 0, 0};
    OptimizerSettings optimizer = {o->beta1, o->beta2, o->eps, o->weight_decay, o->decay_all, o->grad_clip};
    model_create(&run->model, run->device, &o->config, &model, &run->plan);
    optimizer_create(&run->optimizer, &optimizer, &run->model, &run->plan);
}

// Lays out all buffers, at the recompute level asked for or (auto) the least that fits the device.
static void make_plan(Run *run) {
    RecomputeLevel level = recompute_level(run->options.recompute);
    const bool automatic = level == RECOMPUTE_LEVELS;
    if (automatic) level = RECOMPUTE_NONE;
    plan_at_level(run, level);
    while (automatic && !plan_fits(&run->plan, run->device) && level + 1 < RECOMPUTE_LEVELS) {
        model_free(&run->model);
        plan_clear(&run->plan);
        level = (RecomputeLevel)(level + 1);
        plan_at_level(run, level);
    }
}

static void print_start(const Run *run, const Checkpoint *checkpoint) {
    const Options *o = &run->options;
    const FlopsPerToken flops = flops_per_token(&o->config, o->seq_len);
    options_print(o, checkpoint->options);
    printf("device: %s\n", run->device->name);
    printf("model: %.1fM parameters, %s\n", 1e-6 * (double)run->model.parameters.model_size, o->dtype);
    printf("work: %.3f GFLOP per token: %.3f linear, %.3f attention (dense)\n",
           1e-9 * (flops.linear + flops.attention), 1e-9 * flops.linear, 1e-9 * flops.attention);
    if (run->train.shard_count > 0)
        printf("data: %ld samples of %ld tokens in %d shards; a step takes %ld\n", (long)run->train.samples,
               (long)o->seq_len, run->train.shard_count, (long)o->global_batch);
    plan_print(&run->plan, run->device);
    printf("recompute: %s\n", recompute_name(run->model.settings.recompute));
    if (checkpoint->path)
        printf("resuming %s: step %ld of %ld\n", checkpoint->path, (long)checkpoint->progress.step,
               (long)o->steps);
    fflush(stdout);
}

// --- build ----------------------------------------------------------------------------------------------

static TrainingState training_state(Run *run) {
    TrainingState state = {run->device,        &run->options.config,  &run->model.parameters,
                           run->model.weights, run->optimizer.master, run->optimizer.m,
                           run->optimizer.v};
    return state;
}

static void build(Run *run, const Checkpoint *checkpoint) {
    const Options *o = &run->options;
    plan_allocate(&run->plan, run->device);
    model_start(&run->model);
    if (checkpoint->path) {
        const TrainingState state = training_state(run);
        checkpoint_load(checkpoint, &state);
        run->progress = checkpoint->progress;
        if (schedule_kind(o->lr_schedule) != SCHEDULE_CONSTANT) {
            const cJSON *steps = cJSON_GetObjectItemCaseSensitive(checkpoint->options, "steps");
            if (cJSON_IsString(steps) && atoll(steps->valuestring) != o->steps)
                warning("--steps %ld was %s: the %s schedule changes with it", (long)o->steps,
                        steps->valuestring, o->lr_schedule);
        }
    } else {
        optimizer_initialize(&run->optimizer, &run->model, (uint64_t)o->seed);
    }
    Schedule schedule = {
        schedule_kind(o->lr_schedule), o->lr, o->final_lr_frac, o->decay_frac, o->warmup_steps, o->steps};
    run->schedule = schedule;
    const FlopsPerToken flops = flops_per_token(&o->config, o->seq_len);
    run->flops_per_token = flops.linear + flops.attention;
    run->logger = logger_open(o->out, run->progress.step);
}

// --- loop -----------------------------------------------------------------------------------------------

// Reads batch_size samples into the host buffers: positions of the training order from `first` on, or with
// in_order simply the samples from `first` on.
static void read_batch(Run *run, const Dataset *data, int64_t first, bool in_order) {
    const Options *o = &run->options;
    for (int64_t row = 0; row < o->batch_size; row++) {
        const int64_t sample =
            in_order ? (first + row) % data->samples : dataset_order(data, (uint64_t)o->seed, first + row);
        dataset_read(data, sample, run->inputs + row * o->seq_len, run->targets + row * o->seq_len);
    }
}

// One optimizer step: gradients of the global batch, then the update. Fills loss, grad_norm and
// learning_rate.
static void train_step(Run *run, StepReport *report) {
    const Options *o = &run->options;
    const int64_t micro_steps = o->global_batch / o->batch_size;
    const double tokens = (double)o->global_batch * (double)o->seq_len;
    model_zero_gradients(&run->model);
    for (int64_t micro_step = 0; micro_step < micro_steps; micro_step++) {
        read_batch(run, &run->train, run->progress.samples + micro_step * o->batch_size, false);
        model_accumulate(&run->model, micro_step, run->inputs, run->targets, 1 / tokens);
    }
    report->learning_rate = schedule_learning_rate(&run->schedule, run->progress.step);
    report->loss = model_losses(&run->model) / tokens;
    report->grad_norm = optimizer_grad_norm(&run->optimizer, &run->model);
    if (!isfinite(report->loss) || !isfinite(report->grad_norm))
        fatal("step %ld: loss %g, gradient norm %g; nothing was updated, and earlier checkpoints are "
              "untouched; "
              "a lower --lr or a look at samples %ld to %ld may help",
              (long)run->progress.step + 1, report->loss, report->grad_norm, (long)run->progress.samples,
              (long)(run->progress.samples + o->global_batch - 1));
    optimizer_update(&run->optimizer, &run->model, run->progress.step + 1, report->learning_rate,
                     report->grad_norm);
    run->device->synchronize(run->device);
    run->progress.step++;
    run->progress.samples += o->global_batch;
}

// The mean loss per token over the same first samples of the validation data every time.
static double validate(Run *run) {
    const Options *o = &run->options;
    const int64_t batches = min_i64(o->val_batches, divide_up(run->validation.samples, o->batch_size));
    double loss = 0;
    for (int64_t batch = 0; batch < batches; batch++) {
        read_batch(run, &run->validation, batch * o->batch_size, true);
        loss += model_evaluate(&run->model, run->inputs, run->targets);
    }
    return loss / ((double)(batches * o->batch_size) * (double)o->seq_len);
}

static void save(Run *run) {
    const Options *o = &run->options;
    const TrainingState state = training_state(run);
    const Retention retention = {o->keep, o->keep_every};
    cJSON *record = options_record(o);
    checkpoint_save(o->out, &state, &run->progress, record, o->seq_len, o->separator_token, &retention);
    cJSON_Delete(record);
}

static void report_step(Run *run, StepReport *report) {
    const Options *o = &run->options;
    size_t free_bytes, total_bytes;
    run->device->memory(run->device, &free_bytes, &total_bytes);
    report->step = run->progress.step;
    report->steps = o->steps;
    report->samples = run->progress.samples;
    report->tokens = (double)o->global_batch * (double)o->seq_len;
    report->memory = (double)(total_bytes - free_bytes);
    report->mfu = run->device->peak_flops > 0
                      ? run->flops_per_token * report->tokens / report->seconds / run->device->peak_flops
                      : NAN;
    logger_step(&run->logger, report, report->step % o->log_every == 0 || report->step == o->steps);
}

static void train(Run *run) {
    const Options *o = &run->options;
    // A run that has nothing to do still leaves its checkpoint: with --steps 0, that of the initial weights.
    if (run->progress.step == 0 && o->steps == 0) save(run);
    while (run->progress.step < o->steps) {
        StepReport report;
        memset(&report, 0, sizeof(report));
        const double start = now();
        train_step(run, &report);
        report.seconds = now() - start;
        const bool last = run->progress.step == o->steps;
        const bool validates =
            run->validation.samples > 0 && (last || run->progress.step % o->val_every == 0);
        report.validation_loss = validates ? validate(run) : NAN;
        report_step(run, &report);
        if (last || (o->save_every > 0 && run->progress.step % o->save_every == 0)) save(run);
    }
    if (run->progress.step > 0)
        printf("done: %ld steps; the model is in %s\n", (long)run->progress.step, o->out);
}

static void close_run(Run *run) {
    logger_close(&run->logger);
    plan_release(&run->plan, run->device);
    plan_clear(&run->plan);
    model_free(&run->model);
    dataset_close(&run->train);
    dataset_close(&run->validation);
    free(run->inputs);
    free(run->targets);
    run->device->destroy(run->device);
}

int main(int argc, char **argv) {
    static Run run; // the plan keeps addresses inside it
    Checkpoint checkpoint;
    run.options = resolve_options(argc, argv, &checkpoint);
    Communicator communicator = communicator_create(&argc, &argv);
    if (communicator.size != 1)
        fatal("%d processes were started: this program trains in one; start it without mpirun -np %d",
              communicator.size, communicator.size);
    run.device = open_device(&run.options);
    if (!run.options.plan) open_data(&run);
    make_plan(&run);
    print_start(&run, &checkpoint);
    if (!run.options.plan) {
        build(&run, &checkpoint);
        train(&run);
        close_run(&run);
    }
    if (checkpoint.path) checkpoint_close(&checkpoint);
    communicator_destroy(&communicator);
    return 0;
}
