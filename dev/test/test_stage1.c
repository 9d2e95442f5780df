// Steps of a run whose attention changes from step to step: dense steps, spans, dense layers that rotate.
#include "small_model.h"

#include "parallel/sequence_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// --- trainings with a schedule --------------------------------------------------------------------------

typedef struct {
    const char *name;
    int64_t every, first, span, rotate;
} Variant;

static const Variant variants[] = {{"every 2", 2, 0, 0, 0},
                                   {"first 2", 0, 2, 0, 0},
                                   {"every 2, span 34", 2, 0, 34, 0},
                                   {"rotate 2", 0, 0, 0, 2},
                                   {"rotate 3, every 4, span 17", 4, 0, 17, 3}};

static AttentionSchedule schedule_of(const Variant *v) {
    AttentionSchedule schedule = attention_schedule_fixed(odd_config.layers, odd_layer_kinds);
    schedule.dense_every = v->every;
    schedule.dense_first = v->first;
    schedule.dense_span = v->span;
    schedule.rotate = v->rotate;
    return schedule;
}

static Training *open_variant(Device *device, const Variant *v, DecoderSettings settings) {
    const AttentionSchedule schedule = schedule_of(v);
    return training_open_scheduled(device, NULL, &odd_config, &settings, &schedule, &usual_optimizer);
}

// The batch is one micro-step.
static void read_batch(void *context, int64_t micro_step, int32_t *inputs, int32_t *targets) {
    const OddBatch *batch = (const OddBatch *)context;
    (void)micro_step;
    memcpy(inputs, batch->inputs, sizeof(batch->inputs));
    memcpy(targets, batch->targets, sizeof(batch->targets));
}

static double accumulate_step(Training *t, OddBatch *batch, int64_t step, bool replay) {
    const BatchSource source = {read_batch, batch};
    StepAttention attention = training_step_attention(t, step, false);
    attention.replay = replay;
    step_accumulate(t, &attention, &source, NULL);
    return decoder_losses(t->decoder) / ODD_ROWS;
}

// --- gradients ------------------------------------------------------------------------------------------

// The loss with the weights moved along a direction.
static double loss_moved(Training *t, OddBatch *batch, int64_t step, const double *weights,
                         const double *direction, double by) {
    const size_t count = (size_t)t->weights->table.elements;
    double *moved = host_allocate(count, sizeof(double), "weights");
    for (size_t i = 0; i < count; i++) moved[i] = weights[i] + by * direction[i];
    set_weights(t, moved);
    free(moved);
    return accumulate_step(t, batch, step, true);
}

// Steps of both types follow each other on the same buffers; the selection is held.
static void check_gradients(const Variant *v) {
    const double epsilon = 1e-6;
    Device *device = cpu_device_create(STORAGE_FLOAT64);
    OddBatch batch = odd_batch();
    Training *t = open_variant(device, v, odd_settings());
    const size_t count = (size_t)t->weights->table.elements;
    double *weights = odd_weights(&t->weights->table);
    double *direction = host_allocate(count, sizeof(double), "direction");
    for (int64_t step = 0; step < 4; step++) {
        set_weights(t, weights);
        accumulate_step(t, &batch, step, false);
        double *gradient = get_gradients(t), analytic = 0;
        random_fill(direction, count);
        for (size_t i = 0; i < count; i++) analytic += gradient[i] * direction[i];
        const double numeric = (loss_moved(t, &batch, step, weights, direction, epsilon) -
                                loss_moved(t, &batch, step, weights, direction, -epsilon)) /
                               (2 * epsilon);
        check_close(v->name, &analytic, &numeric, 1, 1e-6);
        free(gradient);
    }
    free(weights);
    free(direction);
    training_close(t);
    device->destroy(device);
}

static void all_steps_have_their_gradients(void *unused) {
    (void)unused;
    for (size_t i = 0; i < COUNT_OF(variants); i++) check_gradients(&variants[i]);
}

// --- dense steps and spans ------------------------------------------------------------------------------

static void a_dense_step_is_as_without_selection(void *argument) {
    Device *device = (Device *)argument;
    const Variant every = {"every 2", 2, 0, 0, 0};
    OddBatch batch = odd_batch();
    Training *t = open_variant(device, &every, odd_settings()),
             *selecting = odd_training(device, odd_settings(), true),
             *dense = odd_training(device, odd_settings(), false);
    accumulate_step(t, &batch, 0, false);
    accumulate(selecting, &batch);
    equal_gradient_bytes("the usual step", t, selecting);
    accumulate_step(t, &batch, 1, false);
    accumulate(dense, &batch);
    equal_gradient_bytes("the dense step", t, dense);
    training_close(t);
    training_close(selecting);
    training_close(dense);
}

enum { HALF = ODD_SEQ_LEN / 2, HALVES = 2 };

// The first halves of the batch's sequences as the first micro-step, the second halves, at the positions that they
// have there, as the second.
typedef struct {
    const OddBatch *batch;
    Training *whole, *halves;
} HalvesSource;

static void read_halves(void *context, int64_t micro_step, int32_t *inputs, int32_t *targets) {
    const HalvesSource *source = (const HalvesSource *)context;
    const Layers *whole = &source->whole->decoder->layers, *halves = &source->halves->decoder->layers;
    const StorageType type = accumulator_of(source->whole);
    const size_t angles = (size_t)(HALF * head_dim(&odd_config));
    double *turned = download(whole->device, memory_at(whole->memory, whole->angles), type, 2 * angles);
    upload(halves->device, memory_at(halves->memory, halves->angles), type,
           turned + (size_t)micro_step * angles, angles);
    free(turned);
    for (int row = 0; row < ODD_BATCH; row++) {
        const int64_t start = row * ODD_SEQ_LEN + micro_step * HALF;
        memcpy(inputs + row * HALF, source->batch->inputs + start, HALF * sizeof(int32_t));
        memcpy(targets + row * HALF, source->batch->targets + start, HALF * sizeof(int32_t));
    }
}

static void spans_are_shorter_sequences(void *argument) {
    Device *device = (Device *)argument;
    const Variant span = {"span", 1, 0, HALF, 0};
    OddBatch batch = odd_batch();
    DecoderSettings settings = odd_settings();
    settings.seq_len = HALF;
    settings.micro_steps = HALVES;
    Training *whole = open_variant(device, &span, odd_settings()),
             *halves = odd_training(device, settings, false);
    double *weights = odd_weights(&whole->weights->table);
    set_weights(whole, weights);
    set_weights(halves, weights);
    const double loss = accumulate_step(whole, &batch, 0, false);
    HalvesSource parts = {&batch, whole, halves};
    const BatchSource source = {read_halves, &parts};
    const StepAttention dense = {0};
    step_accumulate(halves, &dense, &source, NULL);
    const double expected_loss = decoder_losses(halves->decoder) / ODD_ROWS;
    check_close("loss", &loss, &expected_loss, 1, step_tolerance(device) / 10);
    double *gradients = get_gradients(whole), *expected = get_gradients(halves);
    check_parameters(&whole->weights->table, gradients, expected, step_tolerance(device));
    free(weights);
    free(gradients);
    free(expected);
    training_close(whole);
    training_close(halves);
}

static void spans_see_nothing_before(void *argument) {
    Device *device = (Device *)argument;
    enum { SPAN = 68 };
    const StorageType type = accumulator_type(device->ops->storage);
    const Variant span = {"span", 1, 0, SPAN, 0};
    OddBatch batch = odd_batch();
    Training *t = open_variant(device, &span, odd_settings()),
             *dense = odd_training(device, odd_settings(), false);
    const double whole = evaluate(dense, &batch, false);
    check(accumulate_step(t, &batch, 0, false) != whole, "spans have no effect");
    check(evaluate(t, &batch, false) == whole, "dense evaluation is not over whole sequences");
    accumulate_step(t, &batch, 0, false);
    double *before = download(device, memory_at(t->memory, t->decoder->losses), type, ODD_ROWS);
    for (int i = 0; i < SPAN; i++) batch.inputs[i] = (int32_t)((batch.inputs[i] + 1) % odd_config.vocab_size);
    accumulate_step(t, &batch, 0, false);
    double *after = download(device, memory_at(t->memory, t->decoder->losses), type, ODD_ROWS);
    check(memcmp(before, after, SPAN * sizeof(double)) != 0, "the change has no effect");
    for (int i = SPAN; i < ODD_ROWS; i++) check(before[i] == after[i], "the loss at row %d changed", i);
    free(before);
    free(after);
    training_close(t);
    training_close(dense);
}

// --- memory ---------------------------------------------------------------------------------------------

static DecoderSettings settings_at(RecomputeLevel usual, RecomputeLevel dense) {
    DecoderSettings settings = odd_settings();
    settings.recompute = usual;
    settings.dense_recompute = dense;
    return settings;
}

// Whether all layers have buffers of their own for the activation.
static bool each_keeps(const Training *t, ActivationKind kind) {
    const Activations *a = t->decoder->layers.activations;
    for (int64_t layer = 1; layer < a->layers; layer++)
        if (activation_get(a, kind, layer) == activation_get(a, kind, layer - 1)) return false;
    return true;
}

// What a layer keeps in one step or another has a place of its own, and no more than that.
static void the_plan_holds_all_steps(void *argument) {
    Device *device = (Device *)argument;
    const Variant every = {"every 2", 2, 0, 0, 0}, rotate = {"rotate 2", 0, 0, 0, 2},
                  none = {"none", 0, 0, 0, 0};
    Training *usual = open_variant(device, &none, settings_at(RECOMPUTE_NONE, RECOMPUTE_NONE)),
             *both = open_variant(device, &every, settings_at(RECOMPUTE_NONE, RECOMPUTE_NONE)),
             *least = open_variant(device, &every, settings_at(RECOMPUTE_NONE, RECOMPUTE_BLOCK)),
             *rotating = open_variant(device, &rotate, settings_at(RECOMPUTE_NONE, RECOMPUTE_NONE));
    check(!each_keeps(usual, ACT_QKV), "layers that select keep what dense layers would");
    check(each_keeps(both, ACT_QKV) && each_keeps(both, ACT_LOGSUMEXP), "dense steps do not keep theirs");
    check(!each_keeps(least, ACT_QKV) && each_keeps(least, ACT_GATE_UP),
          "each type of step at its own level");
    check(each_keeps(rotating, ACT_QKV) && each_keeps(rotating, ACT_GATHERED),
          "a layer keeps one kind's only");
    check(memory_plan_bytes(least->memory) < memory_plan_bytes(both->memory), "recomputing saves nothing");
    training_close(usual);
    training_close(both);
    training_close(least);
    training_close(rotating);
}

static void recompute_changes_no_bit(void *argument) {
    Device *device = (Device *)argument;
    const Variant mixed = {"rotate 2, every 4, span 34", 4, 0, 34, 2};
    static const RecomputeLevel levels[][STEP_TYPES] = {
        {RECOMPUTE_CHEAP, RECOMPUTE_CHEAP}, {RECOMPUTE_FFN, RECOMPUTE_FFN},
        {RECOMPUTE_QKV, RECOMPUTE_QKV},     {RECOMPUTE_BLOCK, RECOMPUTE_BLOCK},
        {RECOMPUTE_NONE, RECOMPUTE_BLOCK},  {RECOMPUTE_CHEAP, RECOMPUTE_QKV}};
    OddBatch batch = odd_batch();
    Training *kept = open_variant(device, &mixed, settings_at(RECOMPUTE_NONE, RECOMPUTE_NONE));
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        Training *t = open_variant(device, &mixed, settings_at(levels[i][USUAL_STEP], levels[i][DENSE_STEP]));
        for (int64_t step = 0; step < 4; step++) {
            accumulate_step(kept, &batch, step, false);
            accumulate_step(t, &batch, step, false);
            char *what =
                format_string("%s, in dense steps %s, step %ld", recompute_names[levels[i][USUAL_STEP]],
                              recompute_names[levels[i][DENSE_STEP]], (long)step);
            equal_gradient_bytes(what, t, kept);
            free(what);
        }
        training_close(t);
    }
    training_close(kept);
}

static size_t available; // on the device, as it says

static void say_available(Device *device, size_t *free_bytes, size_t *total_bytes) {
    (void)device;
    *free_bytes = available;
    *total_bytes = 0;
}

// Bytes of the plan with so much available, and its levels.
static size_t plan_within(size_t bytes, Collectives *collectives, const Options *options,
                          RecomputeLevel levels[STEP_TYPES]) {
    available = bytes;
    Training t = training_plan(collectives, options);
    const size_t planned = memory_plan_bytes(t.memory);
    memcpy(levels, t.decoder->layers.recompute, STEP_TYPES * sizeof(*levels));
    training_free(&t);
    return planned;
}

// With ever less memory dense steps recompute more and more, and then usual ones.
static void each_type_recomputes_the_least_that_fits(void *unused) {
    (void)unused;
    Device *device = cpu_device_create(STORAGE_FLOAT32);
    device->memory = say_available;
    const Communicator alone = {.size = 1, .local_size = 1, .groups = {{0, 1}, {0, 1}, {0, 1}}};
    Collectives *collectives = collectives_create(device, &alone);
    char *words[] = {"",       "--model", "tiny", "--seq-len",     "4096", "--topk",         "256",
                     "--plan", "--pool",  "2",    "--dense-every", "8",    "--dense-layers", "0",
                     NULL};
    const Options options = options_parse((int)COUNT_OF(words) - 1, words, NULL);
    RecomputeLevel now[STEP_TYPES], before[STEP_TYPES] = {RECOMPUTE_NONE, RECOMPUTE_NONE};
    size_t bytes = plan_within(SIZE_MAX / 2, collectives, &options, now);
    check(now[USUAL_STEP] == RECOMPUTE_NONE && now[DENSE_STEP] == RECOMPUTE_NONE, "with memory for all");
    for (int plans = 0; now[USUAL_STEP] < RECOMPUTE_BLOCK; plans++) {
        memcpy(before, now, sizeof(before));
        const size_t less = plan_within(bytes - 1, collectives, &options, now);
        check(less < bytes && plans < 20, "%zu bytes planned, with %zu less one available", less, bytes);
        check(now[DENSE_STEP] >= now[USUAL_STEP], "dense steps keep what usual ones do not");
        if (now[USUAL_STEP] > before[USUAL_STEP])
            check(before[DENSE_STEP] == RECOMPUTE_BLOCK,
                  "usual steps recompute before dense ones do all they can");
        if (plans == 0) check(now[USUAL_STEP] == RECOMPUTE_NONE, "usual steps recompute first");
        bytes = less;
        if (plans > 20) break;
    }
    collectives_destroy(collectives);
    device->destroy(device);
}

void test_stage1(Device *device) {
    if (device->ops->storage == STORAGE_FLOAT32) {
        test_run("stage 1: all types of steps have their gradients", all_steps_have_their_gradients, NULL);
        test_run("stage 1: each type of step recomputes the least that fits",
                 each_type_recomputes_the_least_that_fits, NULL);
    }
    test_run("stage 1: a dense step is as without selection", a_dense_step_is_as_without_selection, device);
    test_run("stage 1: spans are shorter sequences", spans_are_shorter_sequences, device);
    test_run("stage 1: spans see nothing before", spans_see_nothing_before, device);
    test_run("stage 1: the plan holds all steps", the_plan_holds_all_steps, device);
    test_run("stage 1: recompute changes no bit", recompute_changes_no_bit, device);
}
