// Steps of several ranks whose attention changes from step to step, against the same steps of one: run by mpirun.
#include "small_model.h"

#include "parallel/sequence_parts.h"

#include <stdlib.h>
#include <string.h>

// 16 chunks of 5 coarsest entries: up to 8 ranks can share a sequence, and a span is a half of their pieces.
enum { SEQ_LEN = 320, SPAN = 10, STEPS = 2 };

typedef struct {
    Device *device;
    Communicator communicator; // divided for this setup
    Collectives *collectives;
    int64_t every, span, rotate;
} Setup;

static Group data_group(const Setup *s) {
    return s->communicator.groups[GROUP_DATA];
}
static Group context_group(const Setup *s) {
    return s->communicator.groups[GROUP_CONTEXT];
}

// A sequence for each data-parallel group.
typedef struct {
    Group data, context;
    int32_t *inputs, *targets; // [groups, SEQ_LEN]
} Sequences;

static void read_sequence(void *context, int64_t micro_step, int32_t *inputs, int32_t *targets) {
    const Sequences *s = (const Sequences *)context;
    const int64_t tokens = SEQ_LEN / s->context.size, row = micro_step * s->data.size + s->data.rank;
    for (int64_t i = 0; i < tokens; i++) {
        const int64_t from = row * SEQ_LEN + context_position(s->context, tokens, i);
        inputs[i] = s->inputs[from];
        targets[i] = s->targets[from];
    }
}

static Training *open_training(const Setup *s, Collectives *collectives, int64_t seq_len,
                               int64_t micro_steps) {
    AttentionSchedule schedule = attention_schedule_fixed(odd_config.layers, odd_layer_kinds);
    schedule.dense_every = s->every;
    schedule.dense_span = s->span;
    schedule.rotate = s->rotate;
    const DecoderSettings settings = {.batch = 1,
                                      .seq_len = seq_len,
                                      .micro_steps = micro_steps,
                                      .deterministic = true,
                                      .lighthouse = {3, 2, 64, 4}};
    return training_open_scheduled(s->device, collectives, &odd_config, &settings, &schedule,
                                   &usual_optimizer);
}

// From one table's layout to another's.
static double *relaid(const ParameterTable *from, const ParameterTable *to, const double *values) {
    double *other = host_allocate((size_t)to->elements, sizeof(double), "values");
    for (int i = 0; i < from->count; i++)
        memcpy(other + to->list[i].offset, values + from->list[i].offset,
               (size_t)from->list[i].count * sizeof(double));
    return other;
}

static double tolerance_of(const Setup *s) {
    const StorageType storage = s->device->ops->storage;
    return storage == STORAGE_FLOAT64 ? 1e-10 : storage == STORAGE_FLOAT32 ? 1e-5 : 2e-2;
}

// In bfloat16 a step that selects would need the selection replayed; dense ones do not.
static int64_t first_step(const Setup *s) {
    return s->device->ops->storage == STORAGE_BFLOAT16 ? STEPS - 1 : 0;
}

static void compare_step(const Setup *s, Training *whole, Training *part, Sequences *alone, Sequences *here,
                         int64_t step) {
    const ParameterTable *table = &whole->weights->table;
    const BatchSource all = {read_sequence, alone}, mine = {read_sequence, here};
    const StepAttention attention = training_step_attention(whole, step, false);
    step_accumulate(whole, &attention, &all, NULL);
    const StepResult result = step_gradients(part, &attention, &mine);
    const double loss = decoder_losses(whole->decoder) / (double)(data_group(s).size * SEQ_LEN);
    check_close("loss", &result.loss, &loss, 1, tolerance_of(s) / 10);
    double *expected = get_gradients(whole), *gradients = get_gradients(part);
    double *as_whole = relaid(&part->weights->table, table, gradients);
    check_parameters(table, as_whole, expected, tolerance_of(s));
    free(expected);
    free(gradients);
    free(as_whole);
}

static void steps_equal_one_ranks(void *argument) {
    const Setup *s = (const Setup *)argument;
    const Group nobody_else = {0, 1};
    const size_t tokens = (size_t)(data_group(s).size * SEQ_LEN);
    Sequences here = {data_group(s), context_group(s), NULL, NULL};
    here.inputs = host_allocate(tokens, sizeof(int32_t), "tokens");
    here.targets = host_allocate(tokens, sizeof(int32_t), "tokens");
    for (size_t i = 0; i < tokens; i++) {
        here.inputs[i] = (int32_t)random_below((uint64_t)odd_config.vocab_size);
        here.targets[i] = (int32_t)random_below((uint64_t)odd_config.vocab_size);
    }
    Sequences alone = {nobody_else, nobody_else, here.inputs, here.targets};
    Training *whole = open_training(s, NULL, SEQ_LEN, data_group(s).size),
             *part = open_training(s, s->collectives, SEQ_LEN / context_group(s).size, 1);
    double *weights = odd_weights(&whole->weights->table);
    double *spread = relaid(&whole->weights->table, &part->weights->table, weights);
    set_weights(whole, weights);
    set_weights(part, spread);
    for (int64_t step = first_step(s); step < STEPS; step++)
        compare_step(s, whole, part, &alone, &here, step);
    training_close(whole);
    training_close(part);
    free(weights);
    free(spread);
    free(here.inputs);
    free(here.targets);
}

static void run(const char *what, Setup *s) {
    char *name = format_string("%s, %d ranks, %d a sequence: stage 1, %s: steps equal one rank's",
                               storage_dtype(s->device->ops->storage), s->communicator.size,
                               context_group(s).size, what);
    test_run(name, steps_equal_one_ranks, s);
    free(name);
}

void test_stage1_parallel(Device *device, const Communicator *communicator) {
    for (int cp = 1; cp <= communicator->size; cp *= 2) {
        if (communicator->size % cp != 0) continue;
        Setup s = {.device = device, .communicator = *communicator};
        communicator_divide(&s.communicator, cp);
        s.collectives = collectives_create(device, &s.communicator);
        s.every = 2;
        run("every 2nd dense", &s);
        s.span = SPAN;
        run("every 2nd dense in spans", &s);
        // In step 0 layer 0 is dense: before any attention equal tokens have equal norms.
        s.rotate = 2;
        run("dense layers rotate", &s);
        collectives_destroy(s.collectives);
    }
}
