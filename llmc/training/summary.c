#include "training/summary.h"

#include "base/files.h"
#include "base/version.h"
#include "run/options_advice.h"
#include "run/options_check.h"
#include "training/saves.h"

#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void print_program(void) {
    char host[256] = "", date[64] = "";
    const time_t now = time(NULL);
    gethostname(host, sizeof(host) - 1);
    strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S %Z", localtime(&now));
    printf("%s %s on %s, %s\n", PROGRAM_NAME, PROGRAM_VERSION, host, date);
}

static void print_processes(const Options *o, int processes) {
    if (processes == 1) return;
    printf("processes: %d, %ld for each sequence; %ld sequences at a time, %ld micro-steps a step\n",
           processes, (long)o->cp, (long)(processes / o->cp * o->batch_size),
           (long)options_micro_steps(o, processes));
}

// "dense steps: the first 100 and every 8th, 2088 of 16000, in spans of 4096 tokens"
static void print_dense_steps(const AttentionSchedule *s, int64_t steps) {
    if (!attention_schedule_has_dense_steps(s)) return;
    printf("dense steps: ");
    if (s->dense_first > 0)
        printf("the first %ld%s", (long)s->dense_first, s->dense_every > 0 ? " and " : "");
    if (s->dense_every > 0) printf("each whose number, from 1, is a multiple of %ld", (long)s->dense_every);
    printf("; %ld of %ld, ", (long)attention_schedule_dense_steps(s, 0, steps), (long)steps);
    if (s->dense_span > 0)
        printf("attention in spans of %ld tokens\n", (long)s->dense_span);
    else
        printf("attention over whole sequences\n");
}

static void print_attention(const Training *training, const Options *o) {
    const LighthouseShape *shape = &training->decoder->layers.lighthouse;
    const AttentionSchedule *schedule = &training->schedule;
    const long entries = (long)(shape->entries * o->cp), pyramid = (long)(shape->pyramid * o->cp);
    const long dense = (long)attention_schedule_dense_layers(schedule);
    const bool first = training->collectives->communicator->rank == 0;
    if (!attention_schedule_selects(schedule)) {
        printf("attention: dense in all layers\n");
        if (o->selection && first)
            warning("--selection on has no effect: --dense-layers %s is all layers", o->dense_layers);
    } else if (schedule->rotate > 0) {
        printf("attention: Lighthouse layers on %ld of %ld entries; in step s, from 0, the layers l with "
               "(l + s) mod %ld = 0 are dense\n",
               entries, pyramid, (long)schedule->rotate);
    } else {
        printf("attention: %ld Lighthouse layers on %ld of %ld entries, %ld dense layers\n",
               (long)schedule->layers - dense, entries, pyramid, dense);
    }
    print_dense_steps(schedule, o->steps);
    if (o->selection && o->dense_span > 0 && !attention_schedule_has_dense_steps(schedule) && first)
        warning("--dense-span %ld has no effect: no step is dense", (long)o->dense_span);
}

static void print_recompute(const Training *training) {
    const RecomputeLevel *levels = training->decoder->layers.recompute;
    printf("recompute: %s", recompute_names[levels[USUAL_STEP]]);
    if (levels[DENSE_STEP] != levels[USUAL_STEP])
        printf(", and %s in dense steps", recompute_names[levels[DENSE_STEP]]);
    printf("\n");
}

static void print_data(const Options *o, const Dataset *data) {
    const double sequences = (double)o->steps * (double)o->global_batch;
    const double tokens = sequences * (double)o->seq_len;
    if (tokens < 1e6)
        printf("run: %ld steps, %.0f tokens\n", (long)o->steps, tokens);
    else
        printf("run: %ld steps, %.1f%s tokens\n", (long)o->steps,
               tokens < 1e9 ? 1e-6 * tokens : 1e-9 * tokens, tokens < 1e9 ? "M" : "B");
    if (data->shard_count > 0)
        printf("data: %ld samples of %ld tokens in %d shards; a step takes %ld, the run %.2f epochs\n",
               (long)data->samples, (long)o->seq_len, data->shard_count, (long)o->global_batch,
               sequences / (double)data->samples);
}

static int64_t count_checkpoints(const char *out_dir) {
    StepList steps;
    if (!step_list(out_dir, &steps)) return 0;
    int64_t count = 0;
    for (int i = 0; i < steps.count; i++) count += steps.list[i].kind == STEP_WHOLE;
    free(steps.list);
    return count;
}

// How large checkpoints are, and whether the disk has room for those that are to come.
static void print_checkpoints(const Training *training, const Options *o, int64_t step) {
    const TrainingState state = training_state(training);
    const int64_t bytes = training_state_bytes(&state), room = disk_room(o->out);
    const int64_t ahead = saves_ahead(o, step, count_checkpoints(o->out));
    char each[32], all[32], left[32];
    format_bytes(each, (double)bytes);
    format_bytes(all, (double)(ahead * bytes));
    format_bytes(left, (double)room);
    printf("checkpoints: %s each, %s for those to come; %s free on the disk of %s\n", each, all,
           room < 0 ? "unknown how much is" : left, o->out);
    if (room >= 0 && room < ahead * bytes && training->collectives->communicator->rank == 0)
        warning(
            "--out %s: its disk has %s free, and the run will need %s there, for %ld more checkpoints of %s at a "
            "time; make room before they are written, or keep fewer (--keep, --keep-every)",
            o->out, left, all, (long)ahead, each);
}

void summary_print(const Training *training, const Options *o, const Dataset *data,
                   const Checkpoint *checkpoint) {
    const FlopsPerToken flops = training_mean_flops(training, o->steps);
    print_program();
    options_print(o, checkpoint->options);
    printf("device: %s\n", training->device->name);
    print_processes(o, training->collectives->communicator->size);
    printf("model: %.1fM parameters, %s\n", 1e-6 * (double)training->weights->table.model_size,
           dtype_names[o->dtype]);
    printf("work: %.3f GFLOP per token: %.3f linear, %.3f attention\n",
           1e-9 * (flops.linear + flops.attention), 1e-9 * flops.linear, 1e-9 * flops.attention);
    print_attention(training, o);
    print_data(o, data);
    print_checkpoints(training, o, checkpoint->path ? checkpoint->progress.step : 0);
    memory_plan_print(training->memory);
    if (o->plan) training_print_levels(training->collectives, o);
    print_recompute(training);
    if (training->collectives->communicator->rank == 0) {
        options_warn_unknown(checkpoint->options);
        options_advise(o, (DataSummary){data->samples, data->largest_token}, checkpoint->path != NULL);
    }
    if (checkpoint->path)
        printf("resuming %s: step %ld of %ld\n", checkpoint->path, (long)checkpoint->progress.step,
               (long)o->steps);
    fflush(stdout);
}
