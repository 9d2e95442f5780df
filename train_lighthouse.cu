// train_lighthouse: options → device → data → plan → build → loop.
#include "llmc/communicator.h"
#include "llmc/dataset.h"
#include "llmc/logger.h"
#include "llmc/saver.h"
#include "llmc/schedule.h"
#include "llmc/training.h"

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
    Communicator communicator;
    Device *device;
    Dataset train, validation;
    Training training;
    Schedule schedule;
    Progress progress;
    Logger logger;
    Saver *saver;
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
static Options resolve_options(int argc, char **argv, const Communicator *communicator,
                               Checkpoint *checkpoint) {
    Options options = options_parse(argc, argv, NULL);
    memset(checkpoint, 0, sizeof(*checkpoint));
    if (options.verify_checkpoint[0]) return options;
    if (options.resume[0]) {
        *checkpoint = checkpoint_open(communicator, options.resume, options.out);
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

static void open_data(Run *run) {
    const Options *o = &run->options;
    run->train = dataset_open("--train-data", o->train_data, o->seq_len, o->config.vocab_size);
    if (o->val_data[0] && o->val_every > 0)
        run->validation = dataset_open("--val-data", o->val_data, o->seq_len, o->config.vocab_size);
    const size_t tokens = (size_t)(o->batch_size * o->seq_len);
    run->inputs = (int32_t *)host_allocate(tokens, sizeof(int32_t), "a batch");
    run->targets = (int32_t *)host_allocate(tokens, sizeof(int32_t), "a batch");
}

// --- what a run shows first ------------------------------------------------------------------------------

static void print_attention(const Run *run) {
    const Model *model = &run->training.model;
    if (model->lighthouse_layers > 0)
        printf("attention: %ld Lighthouse layers on %ld of %ld entries, %ld dense layers\n",
               (long)model->lighthouse_layers, (long)model->lighthouse.entries,
               (long)model->lighthouse.pyramid, (long)(model->config.layers - model->lighthouse_layers));
    else
        printf("attention: dense in all layers\n");
    if (run->options.selection && model->lighthouse_layers == 0)
        warning("--selection on has no effect: --dense-layers %s is all layers", run->options.dense_layers);
}

static void print_start(const Run *run, const Checkpoint *checkpoint) {
    const Options *o = &run->options;
    const FlopsPerToken flops = training_flops(&run->training);
    options_print(o, checkpoint->options);
    printf("device: %s\n", run->device->name);
    printf("model: %.1fM parameters, %s\n", 1e-6 * (double)run->training.model.parameters.model_size,
           o->dtype);
    printf("work: %.3f GFLOP per token: %.3f linear, %.3f attention\n",
           1e-9 * (flops.linear + flops.attention), 1e-9 * flops.linear, 1e-9 * flops.attention);
    print_attention(run);
    if (run->train.shard_count > 0)
        printf("data: %ld samples of %ld tokens in %d shards; a step takes %ld\n", (long)run->train.samples,
               (long)o->seq_len, run->train.shard_count, (long)o->global_batch);
    plan_print(&run->training.plan, run->device);
    if (o->plan) training_print_levels(run->device, o);
    printf("recompute: %s\n", recompute_name(run->training.model.settings.recompute));
    if (checkpoint->path)
        printf("resuming %s: step %ld of %ld\n", checkpoint->path, (long)checkpoint->progress.step,
               (long)o->steps);
    fflush(stdout);
}

// --- build ----------------------------------------------------------------------------------------------

static void build(Run *run, const Checkpoint *checkpoint) {
    const Options *o = &run->options;
    training_allocate(&run->training);
    if (checkpoint->path) {
        const TrainingState state = training_state(&run->training, &run->communicator);
        checkpoint_load(checkpoint, &state);
        run->progress = checkpoint->progress;
        if (schedule_kind(o->lr_schedule) != SCHEDULE_CONSTANT) {
            const cJSON *steps = cJSON_GetObjectItemCaseSensitive(checkpoint->options, "steps");
            if (cJSON_IsString(steps) && atoll(steps->valuestring) != o->steps)
                warning("--steps %ld was %s: the %s schedule changes with it", (long)o->steps,
                        steps->valuestring, o->lr_schedule);
        }
    } else {
        optimizer_initialize(&run->training.optimizer, &run->training.model, (uint64_t)o->seed);
    }
    Schedule schedule = {
        schedule_kind(o->lr_schedule), o->lr, o->final_lr_frac, o->decay_frac, o->warmup_steps, o->steps};
    run->schedule = schedule;
    const FlopsPerToken flops = training_flops(&run->training);
    run->flops_per_token = flops.linear + flops.attention;
    run->logger = logger_open(o->out, run->progress.step);
    run->saver = saver_create(&run->communicator, o->async_save);
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
    model_zero_gradients(&run->training.model);
    for (int64_t micro_step = 0; micro_step < micro_steps; micro_step++) {
        read_batch(run, &run->train, run->progress.samples + micro_step * o->batch_size, false);
        model_accumulate(&run->training.model, micro_step, run->inputs, run->targets, 1 / tokens);
    }
    report->learning_rate = schedule_learning_rate(&run->schedule, run->progress.step);
    report->loss = model_losses(&run->training.model) / tokens;
    report->grad_norm = optimizer_grad_norm(&run->training.optimizer, &run->training.model);
    if (!isfinite(report->loss) || !isfinite(report->grad_norm))
        fatal("step %ld: loss %g, gradient norm %g; nothing was updated, and earlier checkpoints are "
              "untouched; "
              "a lower --lr or a look at samples %ld to %ld may help",
              (long)run->progress.step + 1, report->loss, report->grad_norm, (long)run->progress.samples,
              (long)(run->progress.samples + o->global_batch - 1));
    optimizer_update(&run->training.optimizer, &run->training.model, run->progress.step + 1,
                     report->learning_rate, report->grad_norm);
    run->device->synchronize(run->device);
    run->progress.step++;
    run->progress.samples += o->global_batch;
}

// The mean loss per token over the same first samples of the validation data every time.
static double validate(Run *run, bool selection) {
    const Options *o = &run->options;
    const int64_t batches = min_i64(o->val_batches, divide_up(run->validation.samples, o->batch_size));
    double loss = 0;
    for (int64_t batch = 0; batch < batches; batch++) {
        read_batch(run, &run->validation, batch * o->batch_size, true);
        loss += model_evaluate(&run->training.model, run->inputs, run->targets, selection);
    }
    return loss / ((double)(batches * o->batch_size) * (double)o->seq_len);
}

// Fills the validation losses of the steps that have them, as --val-selection wants them.
static void validate_step(Run *run, StepReport *report) {
    const Options *o = &run->options;
    const bool last = run->progress.step == o->steps, selects = run->training.model.lighthouse_layers > 0;
    report->validation_loss = report->validation_dense = NAN;
    if (run->validation.samples == 0 || (!last && run->progress.step % o->val_every != 0)) return;
    if (!selects || strcmp(o->val_selection, "off") != 0) report->validation_loss = validate(run, true);
    if (selects && strcmp(o->val_selection, "same") != 0) report->validation_dense = validate(run, false);
}

// What became of a save. A failure ends the run if --on-save-error says so or no further save will follow.
static void settle_save(Run *run, SaveOutcome outcome, bool last) {
    const bool ends = outcome == SAVE_FAILED && (last || !strcmp(run->options.on_save_error, "stop"));
    const char *message = saver_message(run->saver);
    if (outcome == SAVE_NONE || !message[0]) return;
    if (ends && run->communicator.rank == 0) fatal("%s", message);
    if (ends) communicator_barrier(&run->communicator, "the end after a checkpoint that failed");
    if (run->communicator.rank == 0)
        warning("%s%s", message, outcome == SAVE_FAILED ? "; training goes on without it" : "");
}

static void save(Run *run) {
    const Options *o = &run->options;
    settle_save(run, saver_finish(run->saver), false);
    const TrainingState state = training_state(&run->training, &run->communicator);
    cJSON *record = options_record(o);
    const SaveRequest request = {o->out,     run->progress,      record,
                                 o->seq_len, o->separator_token, {o->keep, o->keep_every}};
    saver_begin(run->saver, &state, &request);
    cJSON_Delete(record);
}

static void report_step(Run *run, StepReport *report) {
    const Options *o = &run->options;
    size_t free_bytes, total_bytes;
    run->device->memory(run->device, &free_bytes, &total_bytes);
    report->step = run->progress.step;
    report->steps = o->steps;
    report->samples = run->progress.samples;
    report->selection = run->training.model.lighthouse_layers > 0;
    report->tokens = (double)o->global_batch * (double)o->seq_len;
    report->memory = (double)(total_bytes - free_bytes);
    report->mfu = run->device->peak_flops > 0
                      ? run->flops_per_token * report->tokens / report->seconds / run->device->peak_flops
                      : NAN;
    logger_step(&run->logger, report, report->step % o->log_every == 0 || report->step == o->steps);
}

static void train(Run *run) {
    const Options *o = &run->options;
    if (run->progress.step > 0 && run->progress.step >= o->steps)
        warning("nothing to do: the checkpoint has step %ld, and --steps is %ld", (long)run->progress.step,
                (long)o->steps);
    // A run that has nothing to do still leaves its checkpoint: with --steps 0, that of the initial weights.
    if (run->progress.step == 0 && o->steps == 0) save(run);
    while (run->progress.step < o->steps) {
        StepReport report;
        memset(&report, 0, sizeof(report));
        const double start = now();
        train_step(run, &report);
        report.seconds = now() - start;
        validate_step(run, &report);
        report_step(run, &report);
        const bool last = run->progress.step == o->steps;
        if (last || (o->save_every > 0 && run->progress.step % o->save_every == 0)) save(run);
        if (!last) settle_save(run, saver_poll(run->saver), false);
    }
    settle_save(run, saver_finish(run->saver), true);
    if (run->progress.step > 0)
        printf("done: %ld steps; the model is in %s\n", (long)run->progress.step, o->out);
}

static void close_run(Run *run) {
    logger_close(&run->logger);
    saver_destroy(run->saver);
    training_free(&run->training);
    dataset_close(&run->train);
    dataset_close(&run->validation);
    free(run->inputs);
    free(run->targets);
    run->device->destroy(run->device);
}

int main(int argc, char **argv) {
    static Run run; // the plan keeps addresses inside it
    Checkpoint checkpoint;
    run.communicator = communicator_create(&argc, &argv);
    if (run.communicator.size != 1)
        fatal("%d processes were started: this program trains in one; start it without mpirun -np %d",
              run.communicator.size, run.communicator.size);
    run.options = resolve_options(argc, argv, &run.communicator, &checkpoint);
    if (run.options.verify_checkpoint[0]) {
        printf("%s\n", checkpoint_verify(run.options.verify_checkpoint));
        communicator_destroy(&run.communicator);
        return 0;
    }
    run.device = training_open_device(&run.options);
    if (!run.options.plan) open_data(&run);
    training_plan(&run.training, run.device, &run.options);
    print_start(&run, &checkpoint);
    if (!run.options.plan) {
        build(&run, &checkpoint);
        train(&run);
        close_run(&run);
    }
    if (checkpoint.path) checkpoint_close(&checkpoint);
    communicator_destroy(&run.communicator);
    return 0;
}
