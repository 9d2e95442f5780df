// What a run advances from step to step: the training with its data, learning rate, guard and progress.
#pragma once
#include "run/guard.h"
#include "run/logger.h"
#include "run/schedule.h"
#include "training/batches.h"

typedef struct {
    Training training;
    Batches batches;
    Schedule schedule;
    Guard guard;
    Progress progress;
} Trainer;

// Allocates what `training` planned, and fills it: from the checkpoint, or (path NULL) with initial weights.
// The data and the training are the trainer's from here on, until trainer_free.
Trainer trainer_create(const Training *training, const Dataset *data, const Options *options,
                       const Checkpoint *checkpoint);
void trainer_free(Trainer *trainer);

// One optimizer step: gradients of the global batch, then the update, unless the guard is against it. Fills
// the report's loss, grad_norm, learning_rate, skipped, type, dense_layers, selection and flops. With GUARD_STOP the process
// is to end:
// trainer_stop says why.
GuardVerdict trainer_step(Trainer *trainer, const Options *options, StepReport *report);

// Ends the run that trainer_step judged with GUARD_STOP: rank 0 with a message, after the others' arrival.
NORETURN void trainer_stop(const Trainer *trainer, const Options *options, const StepReport *report);

// Fills how many steps of each type are left, and their work.
void trainer_look_ahead(const Trainer *trainer, const Options *options, StepReport *report);

// Fills the validation losses of a step that has them, as --val-selection wants them. It has none if a request to stop, of
// any rank, comes before the end of the validation, which is then broken off.
void trainer_validate(Trainer *trainer, const Options *options, const Dataset *validation,
                      StepReport *report);
