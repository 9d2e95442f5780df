#include "training/summary.h"

#include "run/options_check.h"

static void print_processes(const Options *o, int processes) {
    if (processes == 1) return;
    printf("processes: %d, %ld for each sequence; %ld sequences at a time, %ld micro-steps a step\n",
           processes, (long)o->cp, (long)(processes / o->cp * o->batch_size),
           (long)options_micro_steps(o, processes));
}

static void print_attention(const Training *training, const Options *o) {
    const Layers *layers = &training->decoder->layers;
    if (training->lighthouse_layers > 0)
        printf("attention: %ld Lighthouse layers on %ld of %ld entries, %ld dense layers\n",
               (long)training->lighthouse_layers, (long)(layers->lighthouse.entries * o->cp),
               (long)(layers->lighthouse.pyramid * o->cp),
               (long)(layers->config.layers - training->lighthouse_layers));
    else
        printf("attention: dense in all layers\n");
    if (o->selection && training->lighthouse_layers == 0 && training->collectives->communicator->rank == 0)
        warning("--selection on has no effect: --dense-layers %s is all layers", o->dense_layers);
}

void summary_print(const Training *training, const Options *o, const Dataset *data,
                   const Checkpoint *checkpoint) {
    const FlopsPerToken flops = training_flops(training);
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
    printf("recompute: %s\n", recompute_names[training->decoder->layers.recompute]);
    if (checkpoint->path)
        printf("resuming %s: step %ld of %ld\n", checkpoint->path, (long)checkpoint->progress.step,
               (long)o->steps);
    fflush(stdout);
}
