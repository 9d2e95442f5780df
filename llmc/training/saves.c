#include "training/saves.h"

#include "run/options_check.h"
#include "run/preemption.h"

#include <cjson/cJSON.h>
#include <stdlib.h>

Saves saves_create(const Communicator *communicator, const Options *options) {
    const Saves saves = {.saver = saver_create(communicator, options->async_save),
                         .communicator = communicator,
                         .options = options};
    return saves;
}

void saves_destroy(Saves *saves) {
    saver_destroy(saves->saver);
}

// The multiples of `every` (0: none) among the steps after `step`, up to `end`.
static int64_t multiples(int64_t every, int64_t step, int64_t end) {
    return every > 0 ? end / every - step / every : 0;
}

int64_t saves_ahead(const Options *o, int64_t step, int64_t existing) {
    if (step >= o->steps) return o->steps == 0;
    const int64_t last = o->save_every == 0 || o->steps % o->save_every != 0;
    const int64_t saves = multiples(o->save_every, step, o->steps) + last;
    // The new one is written before the oldest is deleted.
    const int64_t most = o->keep + 1 + multiples(o->keep_every, step, o->steps);
    return max_i64(1, min_i64(saves, most - min_i64(existing, o->keep)));
}

// Whether a save that failed ends the run.
static bool failure_ends(const Saves *saves, bool last) {
    const OnSaveError on_error = saves->options->on_save_error;
    return last || on_error == SAVE_ERROR_STOP || (on_error == SAVE_ERROR_FIRST && !saves->any);
}

static void print_complete(const Saves *saves) {
    char size[32];
    const Path path = step_path(saves->options->out, saves->step, STEP_WHOLE);
    printf("checkpoint of step %ld: complete in %s, %s; training waited %.2f s for it\n", (long)saves->step,
           path.text, format_bytes(size, (double)saves->bytes), saves->waited);
    fflush(stdout);
}

static void settle(Saves *saves, SaveOutcome outcome, bool last) {
    if (outcome == SAVE_NONE) return;
    const bool failed = outcome == SAVE_FAILED, ends = failed && failure_ends(saves, last);
    const bool first = saves->communicator->rank == 0;
    const char *message = saver_message(saves->saver);
    if (!failed) saves->any = true;
    if (!failed && first) print_complete(saves);
    if (ends && first)
        fatal("%s%s", message,
              last || saves->any
                  ? ""
                  : "; a run whose first checkpoint fails ends, unless --on-save-error continue");
    if (ends) communicator_barrier(saves->communicator, "the end after a checkpoint that failed");
    if (message[0] && first) warning("%s%s", message, failed ? "; training goes on without it" : "");
}

void saves_finish(Saves *saves, bool last) {
    settle(saves, saver_finish(saves->saver), last);
}

void saves_begin(Saves *saves, const Trainer *trainer) {
    const Options *o = saves->options;
    const double start = seconds_now();
    saves_finish(saves, false);
    const TrainingState state = training_state(&trainer->training);
    cJSON *record = options_record(o), *guard = guard_record(&trainer->guard);
    const SaveRequest request = {.out_dir = o->out,
                                 .progress = trainer->progress,
                                 .options = record,
                                 .guard = guard,
                                 .seq_len = o->seq_len,
                                 .separator_token = options_separator(o),
                                 .retention = {.keep = o->keep, .keep_every = o->keep_every}};
    saver_begin(saves->saver, &state, &request);
    cJSON_Delete(record);
    cJSON_Delete(guard);
    saves->step = trainer->progress.step;
    saves->bytes = training_state_bytes(&state);
    saves->waited = seconds_now() - start;
}

// The message that each rank sends to all ranks after a step.
typedef struct {
    int request;    // the request to stop: preemption_requested
    int save_state; // the rank's state in a save: saver_local_state
} RankStatus;

int saves_agree(Saves *saves) {
    const size_t size = (size_t)saves->communicator->size;
    const RankStatus mine = {preemption_requested(), saver_local_state(saves->saver)};
    RankStatus *all = host_allocate(size, sizeof(RankStatus), "the ranks' states");
    int *states = host_allocate(size, sizeof(int), "the ranks' states");
    communicator_gather(saves->communicator, all, &mine, sizeof(mine), "the ranks' agreement after a step");
    int request = 0;
    for (size_t rank = 0; rank < size; rank++) {
        states[rank] = all[rank].save_state;
        if (request == 0) request = all[rank].request;
    }
    settle(saves, saver_advance(saves->saver, states), false);
    free(all);
    free(states);
    return request;
}
