#include "training/summary.h"

#include "run/options_check.h"

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

void summary_print(const Training *training, const Options *o, const Dataset *data,
                   const Checkpoint *checkpoint) {
    const FlopsPerToken flops = training_mean_flops(training, o->steps);
    options_print(o, checkpoint->options);
    printf("device: %s\n", training->device->name);
    print_processes(o, training->collectives->communicator->size);
    printf("model: %.1fM parameters, %s\n", 1e-6 * (double)training->weights->table.model_size,
           dtype_names[o->dtype]);
    printf("work: %.3f GFLOP per token: %.3f linear, %.3f attention\n",
           1e-9 * (flops.linear + flops.attention), 1e-9 * flops.linear, 1e-9 * flops.attention);
    print_attention(training, o);
    if (data->shard_count > 0)
        printf("data: %ld samples of %ld tokens in %d shards; a step takes %ld\n", (long)data->samples,
               (long)o->seq_len, data->shard_count, (long)o->global_batch);
    memory_plan_print(training->memory);
    if (o->plan) training_print_levels(training->collectives, o);
    print_recompute(training);
    if (checkpoint->path)
        printf("resuming %s: step %ld of %ld\n", checkpoint->path, (long)checkpoint->progress.step,
               (long)o->steps);
    fflush(stdout);
}
