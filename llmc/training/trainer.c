#include "training/trainer.h"

#include "run/options_check.h"
#include "run/preemption.h"

#include <math.h>
#include <stdlib.h>

static const Communicator *communicator_of(const Trainer *trainer) {
    return trainer->training.collectives->communicator;
}
static bool is_first(const Trainer *trainer) {
    return communicator_of(trainer)->rank == 0;
}

// --- build ----------------------------------------------------------------------------------------------

static Schedule schedule_of(const Options *o) {
    const Schedule schedule = {.kind = o->lr_schedule,
                               .peak = o->lr,
                               .final_frac = o->final_lr_frac,
                               .decay_frac = o->decay_frac,
                               .warmup_steps = o->warmup_steps,
                               .steps = o->steps};
    return schedule;
}

static void load(Trainer *trainer, const Options *o, const Checkpoint *checkpoint) {
    const TrainingState state = training_state(&trainer->training);
    checkpoint_load(checkpoint, &state);
    trainer->progress = checkpoint->progress;
    guard_restore(&trainer->guard, checkpoint->guard);
    char *steps = options_recorded(checkpoint->options, "steps");
    if (trainer->schedule.kind != SCHEDULE_CONSTANT && steps && atoll(steps) != o->steps && is_first(trainer))
        warning("--steps %ld was %s: the %s schedule changes with it", (long)o->steps, steps,
                schedule_names[o->lr_schedule]);
    free(steps);
}

Trainer trainer_create(const Training *training, const Dataset *data, const Options *options,
                       const Checkpoint *checkpoint) {
    const GuardSettings guard = options_guard(options);
    Trainer trainer = {.training = *training, .schedule = schedule_of(options)};
    training_allocate(&trainer.training);
    trainer.batches = batches_create(data, options, communicator_of(&trainer));
    trainer.guard = guard_create(&guard);
    if (checkpoint->path)
        load(&trainer, options, checkpoint);
    else
        optimizer_initialize(trainer.training.optimizer, (uint64_t)options->seed);
    return trainer;
}

void trainer_free(Trainer *trainer) {
    guard_destroy(&trainer->guard);
    training_free(&trainer->training);
}

// --- a step ---------------------------------------------------------------------------------------------

// What a rank saw of a step, before its gradients were summed with the others'.
typedef struct {
    double loss, grad_norm; // the loss summed over its tokens
} RankResult;

// "; rank 3 (sequences 6 to 7 of each micro-step): loss nan, norm nan" for each rank whose own loss or
// gradients are not finite. The caller frees it.
static char *name_nonfinite_ranks(const Trainer *trainer, const Options *o, const StepResult *result) {
    const Communicator *communicator = communicator_of(trainer);
    const int size = communicator->size;
    const RankResult here = {result->loss_here, result->grad_norm_here};
    RankResult *all = host_allocate((size_t)size, sizeof(RankResult), "the ranks' losses");
    communicator_gather(communicator, all, &here, sizeof(here), "the ranks' losses");
    char *where = format_string("%s", "");
    for (int rank = 0; rank < size && size > 1; rank++) {
        if (isfinite(all[rank].loss) && isfinite(all[rank].grad_norm)) continue;
        const int64_t first = rank / o->cp * o->batch_size;
        char *more = format_string("%s; rank %d (sequences %ld to %ld of each micro-step): loss %g, norm %g",
                                   where, rank, (long)first, (long)(first + o->batch_size - 1),
                                   plain_nan(all[rank].loss), plain_nan(all[rank].grad_norm));
        free(where);
        where = more;
    }
    free(all);
    return where;
}

static void report_nonfinite(const Trainer *trainer, const Options *o, const StepResult *result) {
    const int64_t first = trainer->progress.samples;
    char *where = name_nonfinite_ranks(trainer, o, result);
    if (is_first(trainer))
        warning("step %ld: loss %g, gradient norm %g, samples %ld to %ld of the order: no update, %ld in a "
                "row of at most %ld%s",
                (long)trainer->progress.step + 1, plain_nan(result->loss), plain_nan(result->grad_norm),
                (long)first, (long)(first + o->global_batch - 1), (long)trainer->guard.nonfinite,
                (long)o->max_nonfinite, where);
    free(where);
}

void trainer_stop(const Trainer *trainer, const Options *o, const StepReport *report) {
    const int64_t first = trainer->progress.samples;
    if (!is_first(trainer)) communicator_barrier(communicator_of(trainer), "the end of a run that failed");
    fatal("step %ld: loss %g, gradient norm %g: more than --max-nonfinite %ld steps in a row without finite "
          "values; nothing was updated, and the last checkpoint is untouched; a lower --lr or a look at "
          "samples %ld to %ld of the order may help",
          (long)trainer->progress.step + 1, plain_nan(report->loss), plain_nan(report->grad_norm),
          (long)o->max_nonfinite, (long)first, (long)(first + o->global_batch - 1));
}

// Floating-point operations of a step.
static double step_flops(const Options *o, FlopsPerToken flops) {
    return (flops.linear + flops.attention) * (double)o->global_batch * (double)o->seq_len;
}

static void report_attention(const Trainer *trainer, const Options *o, const StepAttention *attention,
                             StepReport *report) {
    const Training *t = &trainer->training;
    report->type = attention->type;
    report->dense_layers = step_dense_layers(attention, t->schedule.layers);
    report->selection = report->dense_layers < t->schedule.layers;
    report->flops = step_flops(o, training_step_flops(t, attention));
}

void trainer_look_ahead(const Trainer *trainer, const Options *o, StepReport *report) {
    const Training *t = &trainer->training;
    const int64_t done = trainer->progress.step;
    const int64_t dense = attention_schedule_dense_steps(&t->schedule, done, o->steps);
    const int64_t left[STEP_TYPES] = {o->steps - done - dense, dense};
    for (int type = 0; type < STEP_TYPES; type++)
        report->left[type] = (StepsLeft){left[type], step_flops(o, training_type_flops(t, (StepType)type))};
}

GuardVerdict trainer_step(Trainer *trainer, const Options *o, StepReport *report) {
    Training *t = &trainer->training;
    Progress *progress = &trainer->progress;
    const StepAttention attention = training_step_attention(t, progress->step, false);
    const BatchSource source = batches_of_step(&trainer->batches, progress->samples);
    const StepResult result = step_gradients(t, &attention, &source);
    report->learning_rate = schedule_learning_rate(&trainer->schedule, progress->step);
    report->loss = result.loss;
    report->grad_norm = result.grad_norm;
    report_attention(trainer, o, &attention, report);
    const GuardVerdict verdict = guard_judge(&trainer->guard, result.loss, result.grad_norm);
    report->skipped = verdict != GUARD_UPDATE;
    if (verdict == GUARD_NONFINITE || verdict == GUARD_STOP) report_nonfinite(trainer, o, &result);
    if (verdict == GUARD_STOP) return verdict;
    if (verdict == GUARD_OUTLIER && is_first(trainer))
        warning("step %ld: loss %g, gradient norm %g: no update, more than --skip-outliers %g deviations "
                "above the mean",
                (long)progress->step + 1, result.loss, result.grad_norm, o->skip_outliers);
    if (verdict == GUARD_UPDATE)
        optimizer_update(t->optimizer, progress->step - progress->skipped + 1, report->learning_rate,
                         result.grad_norm);
    t->device->synchronize(t->device);
    progress->step++;
    progress->samples += o->global_batch;
    progress->skipped += report->skipped;
    return verdict;
}

// --- validation -----------------------------------------------------------------------------------------

// The mean loss per token over the same first samples every time, which the data-parallel groups divide. False if a
// request to stop broke it off.
static bool validate(Trainer *trainer, const Options *o, const Dataset *validation, StepAttention attention,
                     double *mean) {
    Training *t = &trainer->training;
    const Batches batches = batches_create(validation, o, communicator_of(trainer));
    const int64_t count = min_i64(o->val_batches, divide_up(validation->samples, o->batch_size));
    double loss = 0;
    for (int64_t first = 0; first < count; first += batches.data_group.size) {
        if (preemption_agree(communicator_of(trainer), "the ranks' agreement in a validation")) return false;
        const int64_t batch = first + batches.data_group.rank;
        if (batch >= count) continue;
        batches_read_in_order(&batches, batch * o->batch_size, t->inputs, t->targets);
        loss += decoder_evaluate(t->decoder, &attention, t->inputs, t->targets);
    }
    communicator_sum(communicator_of(trainer), &loss, 1, "the validation loss");
    *mean = loss / ((double)(count * o->batch_size) * (double)o->seq_len);
    return true;
}

void trainer_validate(Trainer *trainer, const Options *o, const Dataset *validation, StepReport *report) {
    const Training *t = &trainer->training;
    const int64_t step = trainer->progress.step;
    // Of a dense step too, the loss as trained is that of a usual step in its place.
    const StepAttention usual = training_step_attention(t, step - 1, true), dense = {0};
    const bool selects = step_dense_layers(&usual, t->schedule.layers) < t->schedule.layers;
    if (validation->samples == 0 || (step != o->steps && step % o->val_every != 0)) return;
    const bool as_trained = !selects || o->val_selection != VALIDATE_OFF;
    const bool also_dense = selects && o->val_selection != VALIDATE_SAME;
    report->validated = as_trained && validate(trainer, o, validation, usual, &report->validation_loss);
    report->validated_dense =
        also_dense && validate(trainer, o, validation, dense, &report->validation_dense);
}
