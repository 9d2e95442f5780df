// train_lighthouse: options → device → data → plan → build → loop.
#include "parallel/sequence_parts.h"
#include "run/dataset.h"
#include "run/guard.h"
#include "run/logger.h"
#include "run/preemption.h"
#include "checkpoint/saver.h"
#include "run/schedule.h"
#include "training/training.h"
#include "parallel/watchdog.h"

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
#include <unistd.h>

// A run, from the first step to the last.
typedef struct {
    Options options;
    Communicator communicator;
    Device *device;
    Collectives *collectives;
    Dataset train, validation;
    Training training;
    Schedule schedule;
    Progress progress;
    Guard guard;
    Logger logger;
    Saver *saver;
    double flops_per_token;
    // On the host: what this process takes of a micro-step's sequences, and one whole sequence.
    int32_t *inputs, *targets; // [batch_size, seq_len / cp]
    int32_t *whole_inputs, *whole_targets;
} Run;

// --- options, device, data ------------------------------------------------------------------------------

// What only rank 0 looks at: what is wrong with the options is said once.
static void check_options(const Run *run) {
    const Options *o = &run->options;
    options_check(o, run->communicator.size);
    char *latest = format_string("%s/latest", o->out);
    if (!o->resume[0] && !o->plan && access(latest, F_OK) == 0)
        fatal("--out %s already holds checkpoints; go on with --resume latest, or choose another directory",
              o->out);
    free(latest);
}

// The command line, over what the checkpoint to resume recorded (NULL: nothing); rank 0 goes first.
static void parse_options(Run *run, int argc, char **argv, const cJSON *recorded, bool check) {
    const Communicator *communicator = &run->communicator;
    if (communicator->rank == 0) {
        run->options = options_parse(argc, argv, recorded);
        if (check) check_options(run);
    }
    communicator_barrier(communicator, "rank 0's look at the options");
    if (communicator->rank > 0) run->options = options_parse(argc, argv, recorded);
}

// The checkpoint's path is NULL for a new run.
static void settle_options(Run *run, int argc, char **argv, Checkpoint *checkpoint) {
    memset(checkpoint, 0, sizeof(*checkpoint));
    parse_options(run, argc, argv, NULL, false);
    const Options *o = &run->options;
    if (o->verify_checkpoint[0]) return;
    if (o->resume[0]) *checkpoint = checkpoint_open(&run->communicator, o->resume, o->out);
    parse_options(run, argc, argv, checkpoint->options, true);
    communicator_divide(&run->communicator, (int)o->cp);
}

// The tokens of each sequence that this process holds.
static int64_t tokens_here(const Run *run) {
    return run->options.seq_len / run->options.cp;
}

static int32_t *allocate_tokens(int64_t count) {
    return (int32_t *)host_allocate((size_t)count, sizeof(int32_t), "a batch");
}

static void open_data(Run *run) {
    const Options *o = &run->options;
    const bool first = run->communicator.local_rank == 0; // one process of each host reads all tokens
    run->train = dataset_open("--train-data", o->train_data, o->seq_len, o->config.vocab_size, first);
    if (o->val_data[0] && o->val_every > 0)
        run->validation = dataset_open("--val-data", o->val_data, o->seq_len, o->config.vocab_size, first);
    communicator_barrier(&run->communicator, "the check of the data");
    run->inputs = allocate_tokens(o->batch_size * tokens_here(run));
    run->targets = allocate_tokens(o->batch_size * tokens_here(run));
    run->whole_inputs = allocate_tokens(o->seq_len);
    run->whole_targets = allocate_tokens(o->seq_len);
}

// --- what a run shows first ------------------------------------------------------------------------------

static void print_attention(const Run *run) {
    const Model *model = &run->training.model;
    const int64_t ranks = run->options.cp;
    if (model->lighthouse_layers > 0)
        printf("attention: %ld Lighthouse layers on %ld of %ld entries, %ld dense layers\n",
               (long)model->lighthouse_layers, (long)(model->lighthouse.entries * ranks),
               (long)(model->lighthouse.pyramid * ranks),
               (long)(model->config.layers - model->lighthouse_layers));
    else
        printf("attention: dense in all layers\n");
    if (run->options.selection && model->lighthouse_layers == 0 && run->communicator.rank == 0)
        warning("--selection on has no effect: --dense-layers %s is all layers", run->options.dense_layers);
}

static void print_start(const Run *run, const Checkpoint *checkpoint) {
    const Options *o = &run->options;
    const FlopsPerToken flops = training_flops(&run->training);
    options_print(o, checkpoint->options);
    printf("device: %s\n", run->device->name);
    if (run->communicator.size > 1)
        printf("processes: %d, %ld for each sequence; %ld sequences at a time, %ld micro-steps a step\n",
               run->communicator.size, (long)o->cp, (long)(run->communicator.size / o->cp * o->batch_size),
               (long)options_micro_steps(o, run->communicator.size));
    printf("model: %.1fM parameters, %s\n", 1e-6 * (double)run->training.model.parameters.model_size,
           o->dtype);
    printf("work: %.3f GFLOP per token: %.3f linear, %.3f attention\n",
           1e-9 * (flops.linear + flops.attention), 1e-9 * flops.linear, 1e-9 * flops.attention);
    print_attention(run);
    if (run->train.shard_count > 0)
        printf("data: %ld samples of %ld tokens in %d shards; a step takes %ld\n", (long)run->train.samples,
               (long)o->seq_len, run->train.shard_count, (long)o->global_batch);
    plan_print(&run->training.plan, run->device);
    if (o->plan) training_print_levels(run->collectives, o);
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
    const GuardSettings guard = options_guard(o);
    run->guard = guard_create(&guard);
    if (checkpoint->path) {
        const TrainingState state = training_state(&run->training);
        checkpoint_load(checkpoint, &state);
        run->progress = checkpoint->progress;
        guard_restore(&run->guard, checkpoint->guard);
        if (schedule_kind(o->lr_schedule) != SCHEDULE_CONSTANT) {
            const cJSON *steps = cJSON_GetObjectItemCaseSensitive(checkpoint->options, "steps");
            if (cJSON_IsString(steps) && atoll(steps->valuestring) != o->steps && run->communicator.rank == 0)
                warning("--steps %ld was %s: the %s schedule changes with it", (long)o->steps,
                        steps->valuestring, o->lr_schedule);
        }
    } else {
        optimizer_initialize(&run->training.optimizer, (uint64_t)o->seed);
    }
    Schedule schedule = {
        schedule_kind(o->lr_schedule), o->lr, o->final_lr_frac, o->decay_frac, o->warmup_steps, o->steps};
    run->schedule = schedule;
    const FlopsPerToken flops = training_flops(&run->training);
    run->flops_per_token = flops.linear + flops.attention;
    if (run->communicator.rank == 0) run->logger = logger_open(o->out, run->progress.step);
    run->saver = saver_create(&run->communicator, o->async_save);
}

// --- loop -----------------------------------------------------------------------------------------------

// Reads batch_size samples into the host buffers: positions of the training order from `first` on, or with
// in_order simply the samples from `first` on.
static void read_batch(Run *run, const Dataset *data, int64_t first, bool in_order) {
    const Options *o = &run->options;
    const Group context = run->communicator.groups[GROUP_CONTEXT];
    const int64_t tokens = tokens_here(run);
    for (int64_t row = 0; row < o->batch_size; row++) {
        const int64_t sample =
            in_order ? (first + row) % data->samples : dataset_order(data, (uint64_t)o->seed, first + row);
        dataset_read(data, sample, run->whole_inputs, run->whole_targets);
        context_slice(run->inputs + row * tokens, run->whole_inputs, context, tokens);
        context_slice(run->targets + row * tokens, run->whole_targets, context, tokens);
    }
}

// The gradients of this process's share of the global batch; those of the last micro-step are summed over all
// while they are made.
static void accumulate(Run *run) {
    const Options *o = &run->options;
    const Group data = run->communicator.groups[GROUP_DATA];
    const int64_t micro_steps = options_micro_steps(o, run->communicator.size);
    const double tokens = (double)o->global_batch * (double)o->seq_len;
    const GradientsReady reduction = optimizer_reduction(&run->training.optimizer);
    model_zero_gradients(&run->training.model);
    for (int64_t micro_step = 0; micro_step < micro_steps; micro_step++) {
        const int64_t batch = micro_step * data.size + data.rank;
        read_batch(run, &run->train, run->progress.samples + batch * o->batch_size, false);
        model_accumulate(&run->training.model, micro_step, run->inputs, run->targets, 1 / tokens,
                         micro_step + 1 == micro_steps ? &reduction : NULL);
    }
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

// What a rank saw of a step, before its gradients were summed with the others'.
typedef struct {
    double loss, grad_norm; // the loss summed over its tokens
} StepHere;

// Whatever its sign, NaN is "nan".
static double plain(double value) {
    return isnan(value) ? NAN : value;
}

// Names what is not finite, and where: the ranks whose own loss or gradients are not, and their samples.
static void report_nonfinite(Run *run, const StepReport *report, StepHere here) {
    const int size = run->communicator.size;
    const int64_t first = run->progress.samples, cp = run->options.cp, batch = run->options.batch_size;
    StepHere *all = (StepHere *)host_allocate((size_t)size, sizeof(StepHere), "the ranks' losses");
    communicator_gather(&run->communicator, all, &here, sizeof(here), "the ranks' losses");
    char *where = format_string("%s", "");
    for (int rank = 0; rank < size && size > 1; rank++) {
        if (isfinite(all[rank].loss) && isfinite(all[rank].grad_norm)) continue;
        char *more =
            format_string("%s; rank %d (sequences %ld to %ld of each micro-step): loss %g, norm %g", where,
                          rank, (long)(rank / cp * batch), (long)(rank / cp * batch + batch - 1),
                          plain(all[rank].loss), plain(all[rank].grad_norm));
        free(where);
        where = more;
    }
    if (run->communicator.rank == 0)
        warning("step %ld: loss %g, gradient norm %g, samples %ld to %ld of the order: no update, %ld in a "
                "row of at most %ld%s",
                (long)run->progress.step + 1, plain(report->loss), plain(report->grad_norm), (long)first,
                (long)(first + run->options.global_batch - 1), (long)run->guard.nonfinite,
                (long)run->options.max_nonfinite, where);
    free(where);
    free(all);
}

// Rank 0 speaks and ends the run, when a save that is under way has come to its end; the others wait for it.
NORETURN static void stop_nonfinite(Run *run, const StepReport *report) {
    settle_save(run, saver_finish(run->saver), false);
    if (run->communicator.rank > 0) communicator_barrier(&run->communicator, "the end of a run that failed");
    fatal("step %ld: loss %g, gradient norm %g: more than --max-nonfinite %ld steps in a row without finite "
          "values; nothing was updated, and the last checkpoint is untouched; a lower --lr or a look at "
          "samples %ld to %ld of the order may help",
          (long)run->progress.step + 1, plain(report->loss), plain(report->grad_norm),
          (long)run->options.max_nonfinite, (long)run->progress.samples,
          (long)(run->progress.samples + run->options.global_batch - 1));
}

// One optimizer step: gradients of the global batch, then the update, unless the guard is against it. Fills
// loss, grad_norm, learning_rate and skipped.
static void train_step(Run *run, StepReport *report) {
    const Options *o = &run->options;
    Optimizer *optimizer = &run->training.optimizer;
    accumulate(run);
    report->learning_rate = schedule_learning_rate(&run->schedule, run->progress.step);
    StepHere here = {model_losses(&run->training.model), 0};
    double loss = here.loss;
    communicator_sum(&run->communicator, &loss, 1, "the step's loss");
    report->loss = loss / ((double)o->global_batch * (double)o->seq_len);
    report->grad_norm = optimizer_grad_norm(optimizer, &here.grad_norm);
    const GuardVerdict verdict = guard_judge(&run->guard, report->loss, report->grad_norm);
    report->skipped = verdict != GUARD_UPDATE;
    if (verdict == GUARD_NONFINITE || verdict == GUARD_STOP) report_nonfinite(run, report, here);
    if (verdict == GUARD_STOP) stop_nonfinite(run, report);
    if (verdict == GUARD_OUTLIER && run->communicator.rank == 0)
        warning("step %ld: loss %g, gradient norm %g: no update, more than --skip-outliers %g deviations "
                "above the mean",
                (long)run->progress.step + 1, report->loss, report->grad_norm, o->skip_outliers);
    if (verdict == GUARD_UPDATE)
        optimizer_update(optimizer, run->progress.step - run->progress.skipped + 1, report->learning_rate,
                         report->grad_norm);
    run->device->synchronize(run->device);
    run->progress.step++;
    run->progress.samples += o->global_batch;
    run->progress.skipped += report->skipped;
}

// The mean loss per token over the same first samples of the validation data every time, which the
// data-parallel groups divide.
static double validate(Run *run, bool selection) {
    const Options *o = &run->options;
    const Group data = run->communicator.groups[GROUP_DATA];
    const int64_t batches = min_i64(o->val_batches, divide_up(run->validation.samples, o->batch_size));
    double loss = 0;
    for (int64_t batch = data.rank; batch < batches; batch += data.size) {
        read_batch(run, &run->validation, batch * o->batch_size, true);
        loss += model_evaluate(&run->training.model, run->inputs, run->targets, selection);
    }
    communicator_sum(&run->communicator, &loss, 1, "the validation loss");
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

static void save(Run *run) {
    const Options *o = &run->options;
    const double start = seconds_now();
    settle_save(run, saver_finish(run->saver), false);
    const TrainingState state = training_state(&run->training);
    cJSON *record = options_record(o), *guard = guard_record(&run->guard);
    SaveRequest request;
    memset(&request, 0, sizeof(request));
    request.out_dir = o->out;
    request.progress = run->progress;
    request.options = record;
    request.guard = guard;
    request.seq_len = o->seq_len;
    request.separator_token = o->separator_token;
    request.retention.keep = o->keep;
    request.retention.keep_every = o->keep_every;
    saver_begin(run->saver, &state, &request);
    cJSON_Delete(record);
    cJSON_Delete(guard);
    printf("checkpoint of step %ld: training waited %.2f s for it\n", (long)run->progress.step,
           seconds_now() - start);
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
    const double peak = run->device->peak_flops * run->communicator.size;
    report->mfu = peak > 0 ? run->flops_per_token * report->tokens / report->seconds / peak : NAN;
    if (run->communicator.rank == 0)
        logger_step(&run->logger, report, report->step % o->log_every == 0 || report->step == o->steps);
}

// What each rank tells the others after a step.
typedef struct {
    int request;    // to stop: preemption_requested
    int save_state; // saver_local_state
} StepStatus;

// The request to stop, from whichever rank; and what becomes of the save under way. The same for all ranks.
static int agree(Run *run) {
    const size_t size = (size_t)run->communicator.size;
    const StepStatus mine = {preemption_requested(), saver_local_state(run->saver)};
    StepStatus *all = (StepStatus *)host_allocate(size, sizeof(StepStatus), "the ranks' states");
    int *states = (int *)host_allocate(size, sizeof(int), "the ranks' states");
    communicator_gather(&run->communicator, all, &mine, sizeof(mine), "the ranks' agreement after a step");
    int request = 0;
    for (size_t rank = 0; rank < size; rank++) {
        states[rank] = all[rank].save_state;
        if (request == 0) request = all[rank].request;
    }
    settle_save(run, saver_advance(run->saver, states), false);
    free(all);
    free(states);
    return request;
}

// Until the last step, or (the result) a request to stop.
static int train(Run *run) {
    const Options *o = &run->options;
    if (run->progress.step > 0 && run->progress.step >= o->steps && run->communicator.rank == 0)
        warning("nothing to do: the checkpoint has step %ld, and --steps is %ld", (long)run->progress.step,
                (long)o->steps);
    // A run that has nothing to do still leaves its checkpoint: with --steps 0, that of the initial weights.
    if (run->progress.step == 0 && o->steps == 0) save(run);
    int request = 0;
    while (run->progress.step < o->steps && request == 0) {
        StepReport report;
        memset(&report, 0, sizeof(report));
        const double start = seconds_now();
        train_step(run, &report);
        report.seconds = seconds_now() - start;
        validate_step(run, &report);
        report_step(run, &report);
        const bool last = run->progress.step == o->steps;
        if (!last) request = agree(run);
        if (last || request != 0 || (o->save_every > 0 && run->progress.step % o->save_every == 0)) save(run);
    }
    settle_save(run, saver_finish(run->saver), true);
    if (request != 0)
        printf("stopped by %s after step %ld of %ld; go on with --resume latest\n", preemption_name(request),
               (long)run->progress.step, (long)o->steps);
    else if (run->progress.step > 0)
        printf("done: %ld steps; the model is in %s\n", (long)run->progress.step, o->out);
    return request;
}

static void close_run(Run *run) {
    if (run->communicator.rank == 0) logger_close(&run->logger);
    saver_destroy(run->saver);
    guard_destroy(&run->guard);
    training_free(&run->training);
    dataset_close(&run->train);
    dataset_close(&run->validation);
    int32_t *const tokens[] = {run->inputs, run->targets, run->whole_inputs, run->whole_targets};
    for (size_t i = 0; i < COUNT_OF(tokens); i++) free(tokens[i]);
}

int main(int argc, char **argv) {
    static Run run; // the plan keeps addresses inside it
    Checkpoint checkpoint;
    run.communicator = communicator_create(&argc, &argv);
    options_help(argc, argv);
    settle_options(&run, argc, argv, &checkpoint);
    if (run.options.verify_checkpoint[0]) {
        const StateBuffers optimizer = optimizer_buffers(NULL);
        printf("%s\n", checkpoint_verify(run.options.verify_checkpoint, &optimizer));
        communicator_destroy(&run.communicator);
        return 0;
    }
    preemption_watch(run.options.time_limit);
    run.device = training_open_device(&run.options, &run.communicator);
    if (!run.options.plan) open_data(&run);
    // Not before: reading all tokens takes as long as it takes.
    if (run.communicator.size > 1) watchdog_start(run.options.collective_timeout);
    run.collectives = collectives_create(run.device, &run.communicator);
    watchdog_look(run.collectives->look, run.collectives);
    training_plan(&run.training, run.collectives, &run.options);
    print_start(&run, &checkpoint);
    int request = 0;
    if (!run.options.plan) {
        build(&run, &checkpoint);
        request = train(&run);
        close_run(&run);
    }
    if (checkpoint.path) checkpoint_close(&checkpoint);
    watchdog_look(NULL, NULL);
    collectives_destroy(run.collectives);
    run.device->destroy(run.device);
    watchdog_stop();
    communicator_destroy(&run.communicator);
    return request ? PREEMPTED_EXIT_CODE : 0;
}
