// The whole step: against PyTorch in float64, between devices, and the equivalences that must hold exactly.
#include "selections.h"
#include "step_fixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// --- against PyTorch ------------------------------------------------------------------------------------

static void check_number(const char *what, double a, double b) {
    check_close(what, &a, &b, 1, 1e-11);
}

typedef struct {
    const int32_t *inputs, *targets;
    int64_t rows; // of a micro-step
} FixtureTokens;

static void read_fixture(void *context, int64_t micro_step, int32_t *inputs, int32_t *targets) {
    const FixtureTokens *fixture = (const FixtureTokens *)context;
    const size_t bytes = (size_t)fixture->rows * sizeof(int32_t);
    memcpy(inputs, fixture->inputs + micro_step * fixture->rows, bytes);
    memcpy(targets, fixture->targets + micro_step * fixture->rows, bytes);
}

static void steps_match_pytorch(void *unused) {
    (void)unused;
    SafetensorsFile file = fixture_open("dense_step.safetensors");
    const ModelConfig config = fixture_config(&file);
    const OptimizerSettings optimizer = {fixture_number(&file, "adamw.beta1"),
                                         fixture_number(&file, "adamw.beta2"),
                                         fixture_number(&file, "adamw.epsilon"),
                                         fixture_number(&file, "adamw.weight_decay"),
                                         false,
                                         fixture_number(&file, "grad_clip"),
                                         false};
    const int64_t micro_steps = (int64_t)fixture_number(&file, "micro_batches");
    int64_t rows, seq_len;
    int32_t *tokens = fixture_tokens(&file, "tokens", &rows, &seq_len);
    int32_t *targets = fixture_tokens(&file, "targets", &rows, &seq_len);
    const DecoderSettings settings = {
        .batch = rows / micro_steps, .seq_len = seq_len, .micro_steps = micro_steps, .deterministic = true};

    Device *device = cpu_device_create(STORAGE_FLOAT64);
    Training *t = training_open(device, NULL, &config, &settings, NULL, &optimizer);
    const ParameterTable *table = &t->weights->table;
    double *weights = fixture_parameters(&file, table, "weights.");
    set_weights(t, weights);
    free(weights);
    FixtureTokens fixture = {tokens, targets, settings.batch * seq_len};
    const BatchSource source = {read_fixture, &fixture};
    const StepAttention dense = training_attention(t, false);
    for (int64_t step = 1; step <= 2; step++) {
        const StepResult result = step_gradients(t, &dense, &source);
        check_number("loss", result.loss, fixture_number(&file, step == 1 ? "loss" : "loss_2"));
        check_number("grad_norm", result.grad_norm,
                     fixture_number(&file, step == 1 ? "grad_norm" : "grad_norm_2"));
        if (step == 1) {
            double *expected = fixture_parameters(&file, table, "grads."), *gradients = get_gradients(t);
            check_parameters(table, gradients, expected, 1e-11);
            free(expected);
            free(gradients);
        }
        optimizer_update(t->optimizer, step, fixture_number(&file, "adamw.learning_rate"), result.grad_norm);
        double *expected = fixture_parameters(&file, table, step == 1 ? "after_1." : "after_2.");
        double *after = get_weights(t);
        check_parameters(table, after, expected, 1e-11);
        free(expected);
        free(after);
    }
    training_close(t);
    device->destroy(device);
    safetensors_close(&file);
    free(tokens);
    free(targets);
}

// --- between devices ------------------------------------------------------------------------------------

// What most tests run on: a device, with dense attention or with Lighthouse attention in two of the three
// layers.
typedef struct {
    Device *device;
    bool selection;
} Setup;

// Random tokens without near-ties in what the reference selects: the least gap is `margin`.
static OddBatch clear_batch(Training *reference, double margin) {
    OddBatch batch;
    for (bool clear = false; !clear;) {
        Selections selections = {0};
        batch = odd_batch();
        record_selections(reference->device, &selections);
        evaluate(reference, &batch, true);
        stop_recording();
        clear = smallest_gap(&selections) >= margin;
        free_selections(&selections);
    }
    return batch;
}

static void same_step(Setup setup, Device *reference, double loss_tolerance, double gradient_tolerance) {
    Training *t = odd_training(setup.device, odd_settings(), setup.selection);
    Training *r = odd_training(reference, odd_settings(), setup.selection);
    const ParameterTable *table = &t->weights->table;
    double *weights = odd_weights(table);
    set_weights(t, weights);
    set_weights(r, weights);
    const OddBatch batch = clear_batch(r, selection_margin(setup.device));
    const double loss = accumulate(t, &batch), expected = accumulate(r, &batch);
    check_close("loss", &loss, &expected, 1, loss_tolerance);
    double *gradients = get_gradients(t), *expected_gradients = get_gradients(r);
    check_parameters(table, gradients, expected_gradients, gradient_tolerance);
    free(weights);
    free(gradients);
    free(expected_gradients);
    training_close(t);
    training_close(r);
}

static void step_matches_float64(void *argument) {
    const Setup *setup = (const Setup *)argument;
    Device *reference = cpu_device_create(STORAGE_FLOAT64);
    const bool wide = setup->device->ops->storage == STORAGE_FLOAT32;
    same_step(*setup, reference, wide ? 1e-7 : 1e-3, wide ? 1e-5 : 4e-2);
    reference->destroy(reference);
}

static void step_matches_plain_c(void *argument) {
    Device *reference = cpu_device_create(STORAGE_BFLOAT16);
    same_step(*(const Setup *)argument, reference, 5e-4, 4e-2);
    reference->destroy(reference);
}

// --- equivalences ---------------------------------------------------------------------------------------

static void steps_repeat_to_the_bit(void *argument) {
    const Setup *setup = (const Setup *)argument;
    Device *device = setup->device;
    const OddBatch batch = odd_batch();
    Training *a = odd_training(device, odd_settings(), setup->selection),
             *b = odd_training(device, odd_settings(), setup->selection);
    const double loss = accumulate(a, &batch);
    accumulate(b, &batch);
    check(accumulate(b, &batch) == loss, "the loss differs");
    equal_gradient_bytes("a second step", a, b);
    training_close(a);
    training_close(b);
}

static void recompute_changes_no_bit(void *argument) {
    const Setup *setup = (const Setup *)argument;
    Device *device = setup->device;
    const OddBatch batch = odd_batch();
    Training *kept = odd_training(device, odd_settings(), setup->selection);
    accumulate(kept, &batch);
    for (int level = RECOMPUTE_NONE + 1; level < RECOMPUTE_LEVELS; level++) {
        DecoderSettings settings = odd_settings();
        settings.recompute = (RecomputeLevel)level;
        Training *recomputed = odd_training(device, settings, setup->selection);
        check(memory_plan_bytes(recomputed->memory) < memory_plan_bytes(kept->memory), "%s saves no memory",
              recompute_names[settings.recompute]);
        accumulate(recomputed, &batch);
        equal_gradient_bytes(recompute_names[settings.recompute], recomputed, kept);
        training_close(recomputed);
    }
    training_close(kept);
}

static void chunked_head_equals_whole(void *argument) {
    const Setup *setup = (const Setup *)argument;
    Device *device = setup->device;
    const OddBatch batch = odd_batch();
    DecoderSettings settings = odd_settings();
    settings.loss_chunk = 48; // the last chunk is a part
    Training *whole = odd_training(device, odd_settings(), setup->selection),
             *chunked = odd_training(device, settings, setup->selection);
    const double loss = accumulate(whole, &batch), chunked_loss = accumulate(chunked, &batch);
    check_close("loss", &chunked_loss, &loss, 1, 1e-6);
    double *expected = get_gradients(whole), *gradients = get_gradients(chunked);
    check_parameters(&whole->weights->table, gradients, expected, step_tolerance(device));
    free(expected);
    free(gradients);
    training_close(whole);
    training_close(chunked);
}

static void accumulation_equals_a_larger_batch(void *argument) {
    const Setup *setup = (const Setup *)argument;
    Device *device = setup->device;
    const OddBatch batch = odd_batch();
    DecoderSettings settings = odd_settings();
    settings.batch = 1;
    settings.micro_steps = ODD_BATCH;
    Training *whole = odd_training(device, odd_settings(), setup->selection),
             *parts = odd_training(device, settings, setup->selection);
    const double loss = accumulate(whole, &batch);
    const double parts_loss = accumulate(parts, &batch);
    check_close("loss", &parts_loss, &loss, 1, 1e-6);
    double *expected = get_gradients(whole), *gradients = get_gradients(parts);
    check_parameters(&whole->weights->table, gradients, expected, step_tolerance(device));
    free(expected);
    free(gradients);
    training_close(whole);
    training_close(parts);
}

static void losses_see_no_future(void *argument) {
    Device *device = (Device *)argument;
    const StorageType type = accumulator_type(device->ops->storage);
    OddBatch batch = odd_batch();
    const int64_t changed = 130; // of the first sequence, from here on
    Training *t = odd_training(device, odd_settings(), false);
    const double loss = evaluate(t, &batch, true);
    double *before = download(device, memory_at(t->memory, t->decoder->losses), type, ODD_ROWS);
    for (int64_t i = changed; i < ODD_SEQ_LEN; i++)
        batch.inputs[i] = (int32_t)((batch.inputs[i] + 1) % odd_config.vocab_size);
    check(evaluate(t, &batch, true) != loss, "the change had no effect");
    double *after = download(device, memory_at(t->memory, t->decoder->losses), type, ODD_ROWS);
    for (int64_t i = 0; i < ODD_ROWS; i++)
        if (i < changed || i >= ODD_SEQ_LEN)
            check(before[i] == after[i], "the loss at row %ld changed", (long)i);
    check(before[changed] != after[changed], "the loss at the changed token did not change");
    free(before);
    free(after);
    training_close(t);
}

static void evaluation_equals_the_trained_loss(void *argument) {
    const Setup *setup = (const Setup *)argument;
    Device *device = setup->device;
    const OddBatch batch = odd_batch();
    Training *t = odd_training(device, odd_settings(), setup->selection);
    const double trained = accumulate(t, &batch);
    check(evaluate(t, &batch, true) == trained, "losses differ");
    training_close(t);
}

// Validation with dense attention, of a model trained with selection, is what a dense model gives.
static void dense_evaluation_is_dense(void *argument) {
    Device *device = (Device *)argument;
    const OddBatch batch = odd_batch();
    Training *selecting = odd_training(device, odd_settings(), true),
             *dense = odd_training(device, odd_settings(), false);
    const double loss = evaluate(dense, &batch, true);
    check(evaluate(selecting, &batch, false) == loss, "the dense loss differs");
    check(evaluate(selecting, &batch, true) != loss, "the selection has no effect");
    training_close(selecting);
    training_close(dense);
}

static void logits_give_the_loss(void *argument) {
    Device *device = (Device *)argument;
    const StorageType storage = device->ops->storage;
    const OddBatch batch = odd_batch();
    enum { FIRST = 150, COUNT = 57 };
    const size_t vocab = (size_t)odd_config.vocab_size;
    Training *t = odd_training(device, odd_settings(), false);
    const StepAttention dense = training_attention(t, false);
    double *losses = host_allocate(ODD_ROWS, sizeof(double), "losses");
    decoder_row_losses(t->decoder, &dense, losses, batch.inputs, batch.targets);
    void *raw = host_allocate(COUNT * vocab, storage_size(storage), "logits");
    double *logits = host_allocate(COUNT * vocab, sizeof(double), "logits");
    decoder_logits(t->decoder, raw, batch.inputs, FIRST, COUNT);
    storage_to_double(logits, raw, storage, COUNT * vocab);
    double expected[COUNT];
    for (int row = 0; row < COUNT; row++) {
        double sum = 0;
        for (size_t i = 0; i < vocab; i++) sum += exp(logits[(size_t)row * vocab + i]);
        expected[row] = log(sum) - logits[(size_t)row * vocab + (size_t)batch.targets[FIRST + row]];
    }
    check_close("losses", losses + FIRST, expected, COUNT, 1e-5);
    free(losses);
    free(raw);
    free(logits);
    training_close(t);
}

// An update too small for bfloat16 must not be lost: the master weights collect it.
static void master_weights_collect_small_updates(void *argument) {
    Device *device = (Device *)argument;
    const OddBatch batch = odd_batch();
    Training *t = odd_training(device, odd_settings(), false);
    const size_t count = (size_t)t->weights->table.elements;
    double *before = download(device, memory_at(t->memory, t->optimizer->master), accumulator_of(t), count);
    for (int64_t step = 1; step <= 3; step++) {
        accumulate(t, &batch);
        optimizer_update(t->optimizer, step, 1e-5, optimizer_grad_norm(t->optimizer, NULL));
    }
    double *after = download(device, memory_at(t->memory, t->optimizer->master), accumulator_of(t), count);
    double *weights = get_weights(t);
    const Parameter *p = parameter_find(&t->weights->table, PARAM_DOWN, 1);
    size_t moved = 0;
    for (int64_t i = p->offset; i < p->offset + p->count; i++) {
        const double change = fabs(after[i] - before[i]);
        moved += change > 1.5e-5 && change < 3.5e-5; // three steps of about 1e-5 each, mostly one way
        check(fabs(weights[i] - after[i]) <= fabs(after[i]) * 0x1p-8, "weight %ld is not its rounded master",
              (long)i);
    }
    check(moved > (size_t)p->count / 2, "only %zu of %ld master weights moved as they should", moved,
          (long)p->count);
    free(before);
    free(after);
    free(weights);
    training_close(t);
}

// Against angles formed in long double: in float they would be off by 0.06 here.
static void angles_are_right_at_a_million(void *argument) {
    Device *device = (Device *)argument;
    const StorageType type = accumulator_type(device->ops->storage);
    enum { HALF = 4, FROM_END = 1000 };
    const ModelConfig config = {264, 16, 1, 2, 2, 16, 1e4, 1e-5};
    const DecoderSettings settings = {
        .batch = 1, .seq_len = (1 << 20) + 1, .micro_steps = 1, .loss_chunk = 128};
    Training *t = training_open(device, NULL, &config, &settings, NULL, &usual_optimizer);
    const int64_t first = settings.seq_len - FROM_END;
    const char *last = (const char *)memory_at(t->memory, t->decoder->layers.angles) +
                       (size_t)(first * 2 * HALF) * storage_size(type);
    double *angles = download(device, last, type, FROM_END * 2 * HALF);
    for (int64_t i = 0; i < FROM_END; i++)
        for (int j = 0; j < HALF; j++) {
            const long double angle = (long double)(first + i) * powl(1e4L, -2.0L * j / (2 * HALF));
            const double *turn = &angles[(i * HALF + j) * 2];
            check(fabs(turn[0] - (double)cosl(angle)) < 1e-7 && fabs(turn[1] - (double)sinl(angle)) < 1e-7,
                  "position %ld, pair %d: %.9g and %.9g", (long)(first + i), j, turn[0], turn[1]);
        }
    free(angles);
    training_close(t);
}

// --- attention in pieces --------------------------------------------------------------------------------

static void pieces_equal_whole(void *argument) {
    Device *device = (Device *)argument;
    const StorageType storage = device->ops->storage, accumulator = accumulator_type(storage);
    const int64_t batch = 2, seq_len = 331;
    const int heads = 6, kv_heads = 2, dim = 32;
    AttentionPlan plan = attention_plan(device, batch, seq_len, heads, kv_heads, dim, true, SIZE_MAX, NULL);
    AttentionPlan cut = plan;
    cut.kv_heads_per_call = 1;
    cut.piece_len = 128;
    attention_plan_sizes(device, &cut);
    AttentionPlan by_heads = plan;
    by_heads.kv_heads_per_call = 1;
    attention_plan_sizes(device, &by_heads);

    const size_t qkv_count = (size_t)(batch * seq_len * (heads + 2 * kv_heads) * dim);
    const size_t out_count = (size_t)(batch * seq_len * heads * dim);
    const size_t most =
        plan.workspace_bytes > cut.workspace_bytes ? plan.workspace_bytes : cut.workspace_bytes;
    const size_t bytes[] = {
        qkv_count * storage_size(storage),
        out_count * storage_size(storage),
        (size_t)(batch * heads * seq_len) * storage_size(accumulator),
        out_count * storage_size(storage),
        qkv_count * storage_size(storage),
        most + by_heads.workspace_bytes,
    };
    MemoryPlan *memory = memory_plan_create(device);
    size_t offsets[COUNT_OF(bytes)];
    for (size_t i = 0; i < COUNT_OF(bytes); i++)
        offsets[i] = memory_plan_add(memory, bytes[i], "buffer %zu", i);
    memory_plan_allocate(memory);
    void *qkv = memory_at(memory, offsets[0]), *out = memory_at(memory, offsets[1]);
    void *logsumexp = memory_at(memory, offsets[2]), *grad_out = memory_at(memory, offsets[3]);
    void *grad_qkv = memory_at(memory, offsets[4]), *workspace = memory_at(memory, offsets[5]);
    double *values = host_allocate(qkv_count, sizeof(double), "values");
    random_fill(values, qkv_count);
    upload(device, qkv, storage, values, qkv_count);
    random_fill(values, out_count);
    upload(device, grad_out, storage, values, out_count);
    free(values);

    attention_forward(device, &plan, out, logsumexp, qkv, workspace);
    attention_backward(device, &plan, grad_qkv, grad_out, qkv, out, logsumexp, workspace);
    double *whole = download(device, grad_qkv, storage, qkv_count);
    const AttentionPlan *const cuts[] = {&cut, &by_heads};
    const double tolerance = storage == STORAGE_FLOAT64 ? 1e-13 : storage == STORAGE_FLOAT32 ? 1e-5 : 8e-3;
    for (size_t i = 0; i < COUNT_OF(cuts); i++) {
        device->zero(device, grad_qkv, qkv_count * storage_size(storage));
        attention_backward(device, cuts[i], grad_qkv, grad_out, qkv, out, logsumexp, workspace);
        double *pieces = download(device, grad_qkv, storage, qkv_count);
        check_close(i == 0 ? "cut by length" : "cut by heads", pieces, whole, qkv_count, tolerance);
        free(pieces);
    }
    free(whole);
    memory_plan_free(memory);
}

static void float64_equivalences(void *unused) {
    (void)unused;
    Setup setup = {cpu_device_create(STORAGE_FLOAT64), false};
    for (int selection = 0; selection < 2; selection++) {
        setup.selection = selection;
        chunked_head_equals_whole(&setup);
        accumulation_equals_a_larger_batch(&setup);
    }
    pieces_equal_whole(setup.device);
    setup.device->destroy(setup.device);
}

void test_model(Device *device) {
    const bool cuda = !strcmp(device->kind, "cuda"), exact = device->ops->storage == STORAGE_FLOAT32;
    Setup dense = {device, false}, lighthouse = {device, true};
    if (exact) {
        test_run("model: two steps match PyTorch in float64", steps_match_pytorch, NULL);
        test_run("model: equivalences in float64", float64_equivalences, NULL);
        // In bfloat16 near-ties would be chosen differently.
        test_run("model: a step with selection matches float64", step_matches_float64, &lighthouse);
    }
    test_run("model: a step matches float64", step_matches_float64, &dense);
    if (cuda) test_run("model: a step matches plain C in bfloat16", step_matches_plain_c, &dense);
    test_run("model: steps repeat to the bit", steps_repeat_to_the_bit, &dense);
    test_run("model: steps with selection repeat to the bit", steps_repeat_to_the_bit, &lighthouse);
    test_run("model: recompute changes no bit", recompute_changes_no_bit, &dense);
    test_run("model: recompute with selection changes no bit", recompute_changes_no_bit, &lighthouse);
    test_run("model: chunked head equals whole", chunked_head_equals_whole, &dense);
    test_run("model: accumulation equals a larger batch", accumulation_equals_a_larger_batch, &dense);
    test_run("model: losses see no future", losses_see_no_future, device);
    test_run("model: evaluation equals the trained loss", evaluation_equals_the_trained_loss, &dense);
    test_run("model: evaluation with selection equals the trained loss", evaluation_equals_the_trained_loss,
             &lighthouse);
    test_run("model: dense evaluation is dense", dense_evaluation_is_dense, device);
    test_run("model: logits give the loss", logits_give_the_loss, device);
    test_run("model: master weights collect small updates", master_weights_collect_small_updates, device);
    test_run("model: rotary angles are right at a million", angles_are_right_at_a_million, device);
    test_run("model: attention in pieces equals whole", pieces_equal_whole, device);
}
