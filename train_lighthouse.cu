// train_lighthouse: options → device → data → plan → build → loop.
#include "parallel/watchdog.h" // a deadline for what processes wait for
#include "run/options_check.h" // which options go together
#include "run/preemption.h"    // being asked to stop
#include "training/saves.h"    // when to save, and what becomes of it
#include "training/summary.h"  // what a run shows first
#include "training/trainer.h"  // what a run advances from step to step

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

// --- options --------------------------------------------------------------------------------------------

// What only rank 0 looks at: what is wrong with the options is said once.
static void check_options(const Options *o, int processes) {
    options_check(o, processes);
    char *latest = format_string("%s/latest", o->out);
    if (!o->resume[0] && !o->plan && access(latest, F_OK) == 0)
        fatal("--out %s already holds checkpoints; go on with --resume latest, or choose another directory",
              o->out);
    free(latest);
}

// The command line, over what the checkpoint to resume recorded (NULL: nothing); rank 0 goes first.
static Options parse_options(const Communicator *communicator, int argc, char **argv,
                             const struct cJSON *recorded, bool check) {
    Options options = {0};
    if (communicator->rank == 0) {
        options = options_parse(argc, argv, recorded);
        if (check) check_options(&options, communicator->size);
    }
    communicator_barrier(communicator, "rank 0's look at the options");
    if (communicator->rank > 0) options = options_parse(argc, argv, recorded);
    return options;
}

// The options of the run, and the checkpoint that it resumes; the checkpoint's path is NULL for a new run.
static Options settle_options(Communicator *communicator, int argc, char **argv, Checkpoint *checkpoint) {
    Options options = parse_options(communicator, argc, argv, NULL, false);
    if (options.verify_checkpoint[0]) return options;
    if (options.resume[0]) *checkpoint = checkpoint_open(communicator, options.resume, options.out);
    options = parse_options(communicator, argc, argv, checkpoint->options, true);
    communicator_divide(communicator, (int)options.cp);
    return options;
}

// --- data -----------------------------------------------------------------------------------------------

typedef struct {
    Dataset train, validation; // of no shards: none
} Data;

static Data open_data(const Options *o, const Communicator *communicator) {
    Data data = {0};
    if (o->plan) return data;
    const bool first = communicator->local_rank == 0; // one process of each host reads all tokens
    data.train = dataset_open("--train-data", o->train_data, o->seq_len, o->config.vocab_size, first);
    if (o->val_data[0] && o->val_every > 0)
        data.validation = dataset_open("--val-data", o->val_data, o->seq_len, o->config.vocab_size, first);
    communicator_barrier(communicator, "the check of the data");
    return data;
}

// --- loop -----------------------------------------------------------------------------------------------

// What else there is to say of a step; rank 0 says it.
static void report_step(const Trainer *trainer, const Options *o, Logger *logger, StepReport *report) {
    const Training *training = &trainer->training;
    const Communicator *communicator = training->collectives->communicator;
    report->step = trainer->progress.step;
    report->steps = o->steps;
    report->samples = trainer->progress.samples;
    report->tokens = (double)o->global_batch * (double)o->seq_len;
    report->memory = (double)training_memory(training);
    const double peak = training->device->peak_flops * communicator->size;
    report->mfu = peak > 0 ? report->flops / report->seconds / peak : NAN;
    trainer_look_ahead(trainer, o, report);
    if (communicator->rank == 0)
        logger_step(logger, report, report->step % o->log_every == 0 || report->step == o->steps);
}

// A step within its deadline, and how long it took.
static GuardVerdict timed_step(Trainer *trainer, const Options *o, StepReport *report) {
    const double start = seconds_now();
    watchdog_step_begins(trainer->progress.step + 1);
    const GuardVerdict verdict = trainer_step(trainer, o, report);
    watchdog_step_ends();
    report->seconds = seconds_now() - start;
    return verdict;
}

// Until the last step, or (the result) a request to stop.
static int train(Trainer *trainer, const Options *o, const Dataset *validation, Logger *logger,
                 Saves *saves) {
    const Progress *progress = &trainer->progress;
    const int64_t first = progress->step;
    int request = preemption_begin(saves->communicator);
    if (progress->step > 0 && progress->step >= o->steps && saves->communicator->rank == 0)
        warning("nothing to do: the checkpoint has step %ld, and --steps is %ld", (long)progress->step,
                (long)o->steps);
    // A run that has nothing to do still leaves its checkpoint: with --steps 0, that of the initial weights.
    if (request == 0 && progress->step == 0 && o->steps == 0) saves_begin(saves, trainer);
    while (progress->step < o->steps && request == 0) {
        StepReport report = {0};
        if (timed_step(trainer, o, &report) == GUARD_STOP) {
            saves_finish(saves, false);
            trainer_stop(trainer, o, &report);
        }
        trainer_validate(trainer, o, validation, &report);
        report_step(trainer, o, logger, &report);
        const bool last = progress->step == o->steps;
        if (!last) request = saves_agree(saves);
        if (last || request != 0 || (o->save_every > 0 && progress->step % o->save_every == 0))
            saves_begin(saves, trainer);
    }
    saves_finish(saves, true);
    if (request != 0 && progress->step == first)
        printf("stopped by %s before the first step\n", preemption_name(request));
    else if (request != 0)
        printf("stopped by %s after step %ld of %ld; go on with --resume latest\n", preemption_name(request),
               (long)progress->step, (long)o->steps);
    else if (progress->step > 0)
        printf("done: %ld steps; the model is in %s\n", (long)progress->step, o->out);
    return request;
}

// Builds what was planned, trains it, and puts everything away; the result is a request to stop, or 0.
static int build_and_train(const Training *training, const Options *o, const Data *data,
                           const Checkpoint *checkpoint) {
    const Communicator *communicator = training->collectives->communicator;
    Trainer trainer = trainer_create(training, &data->train, o, checkpoint);
    Logger logger = {0};
    if (communicator->rank == 0) logger = logger_open(o->out, trainer.progress.step);
    Saves saves = saves_create(communicator, o);
    const int request = train(&trainer, o, &data->validation, &logger, &saves);
    if (communicator->rank == 0) logger_close(&logger);
    saves_destroy(&saves);
    trainer_free(&trainer);
    return request;
}

// --- the whole run --------------------------------------------------------------------------------------

// Reads the data, plans, and unless only the plan was asked for trains.
static int run(Options *o, const Communicator *communicator, const Checkpoint *checkpoint) {
    preemption_limit(o->time_limit);
    Device *device = training_open_device(o, communicator);
    Data data = open_data(o, communicator);
    if (!o->plan) options_settle_separator(o, data.train.largest_token);
    // Started only now: checking the data may take longer than the timeout.
    if (communicator->size > 1 || o->step_timeout > 0) watchdog_start(o->collective_timeout, o->step_timeout);
    if (o->deterministic) collectives_deterministic();
    Collectives *collectives = collectives_create(device, communicator);
    watchdog_look(collectives->look, collectives);
    Training training = training_plan(collectives, o);
    summary_print(&training, o, &data.train, checkpoint);
    int request = 0;
    if (o->plan)
        training_free(&training);
    else
        request = build_and_train(&training, o, &data, checkpoint);
    dataset_close(&data.train);
    dataset_close(&data.validation);
    watchdog_look(NULL, NULL);
    collectives_destroy(collectives);
    device->destroy(device);
    watchdog_stop();
    return request;
}

int main(int argc, char **argv) {
    preemption_listen();
    Communicator communicator = communicator_create(&argc, &argv);
    preemption_start();
    options_help(argc, argv);
    Checkpoint checkpoint = {0};
    Options options = settle_options(&communicator, argc, argv, &checkpoint);
    int request = 0;
    if (options.verify_checkpoint[0]) {
        const StateBuffers optimizer = optimizer_buffers(NULL);
        printf("%s\n", checkpoint_verify(options.verify_checkpoint, &optimizer));
    } else {
        request = run(&options, &communicator, &checkpoint);
    }
    if (checkpoint.path) checkpoint_close(&checkpoint);
    communicator_destroy(&communicator);
    return request ? PREEMPTED_EXIT_CODE : 0;
}
