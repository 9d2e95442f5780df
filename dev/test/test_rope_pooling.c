// --rope-pooling after: a model whose Lighthouse layers pool unturned queries and keys and turn the selected
// entries. Against PyTorch, against differences, and what must hold to the bit.
#include "step_fixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static DecoderSettings after_settings(void) {
    DecoderSettings settings = odd_settings();
    settings.rope_pooling = ROPE_AFTER_POOLING;
    return settings;
}

// The mean loss of a batch on the selection that the layers hold.
static double replayed_loss(Training *t, const OddBatch *batch) {
    StepAttention attention = training_attention(t, true);
    attention.replay = true;
    return decoder_evaluate(t->decoder, &attention, batch->inputs, batch->targets) / ODD_ROWS;
}

// --- against PyTorch ------------------------------------------------------------------------------------

static Training *fixture_training(const SafetensorsFile *file, Device *device) {
    const Tensor *tokens = safetensors_find(file, "tokens");
    const ModelConfig config = fixture_config(file);
    const DecoderSettings settings = {.batch = tokens->shape[0],
                                      .seq_len = tokens->shape[1],
                                      .micro_steps = 1,
                                      .deterministic = true,
                                      .lighthouse = {fixture_size(file, "levels"), fixture_size(file, "pool"),
                                                     fixture_size(file, "topk"), fixture_size(file, "tile")},
                                      .rope_pooling = ROPE_AFTER_POOLING};
    return training_open(device, NULL, &config, &settings, odd_layer_kinds, &usual_optimizer);
}

static void step_matches_pytorch(void *unused) {
    (void)unused;
    SafetensorsFile file = fixture_open("rope_pooling.safetensors");
    Device *device = cpu_device_create(STORAGE_FLOAT64);
    Training *t = fixture_training(&file, device);
    const ParameterTable *table = &t->weights->table;
    int64_t sequences, seq_len;
    int32_t *inputs = fixture_tokens(&file, "tokens", &sequences, &seq_len);
    int32_t *targets = fixture_tokens(&file, "targets", &sequences, &seq_len);
    const double rows = (double)(sequences * seq_len);
    double *weights = fixture_parameters(&file, table, "weights.");
    double *expected = fixture_parameters(&file, table, "grads.");
    set_weights(t, weights);
    weights_zero_gradients(t->weights);
    const StepAttention attention = training_attention(t, true);
    decoder_accumulate(t->decoder, &attention, 0, inputs, targets, 1 / rows, NULL);
    const double loss = decoder_losses(t->decoder) / rows, expected_loss = fixture_number(&file, "loss");
    check_close("loss", &loss, &expected_loss, 1, 1e-11);
    double *gradients = get_gradients(t);
    check_parameters(table, gradients, expected, 1e-11);
    double *const all[] = {weights, expected, gradients};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    free(inputs);
    free(targets);
    training_close(t);
    device->destroy(device);
    safetensors_close(&file);
}

// --- against differences --------------------------------------------------------------------------------

// Of the loss, with the selection held, along a random direction in the parameters [first, first + count).
static void check_direction(Training *t, const OddBatch *batch, const double *weights,
                            const double *gradients, int64_t first, int64_t count, const char *what) {
    const double epsilon = 1e-6;
    const size_t all = (size_t)t->weights->table.elements;
    double *direction = host_allocate((size_t)count, sizeof(double), "a direction");
    double *moved = host_allocate(all, sizeof(double), "weights");
    double analytic = 0, squares = 0, losses[2];
    random_fill(direction, (size_t)count);
    for (int64_t i = 0; i < count; i++) {
        analytic += gradients[first + i] * direction[i];
        squares += gradients[first + i] * gradients[first + i];
    }
    for (int side = 0; side < 2; side++) {
        memcpy(moved, weights, all * sizeof(double));
        for (int64_t i = 0; i < count; i++) moved[first + i] += (side ? epsilon : -epsilon) * direction[i];
        set_weights(t, moved);
        losses[side] = replayed_loss(t, batch);
    }
    const double numeric = (losses[1] - losses[0]) / (2 * epsilon);
    const double usual = sqrt(squares); // the root mean square of slopes along random directions
    check(usual > 0 && fabs(analytic - numeric) <= 1e-6 * usual, "%s: %.9g, by differences %.9g", what,
          analytic, numeric);
    free(direction);
    free(moved);
}

static void model_has_its_gradient(void *unused) {
    (void)unused;
    Device *device = cpu_device_create(STORAGE_FLOAT64);
    const OddBatch batch = odd_batch();
    Training *t = odd_training(device, after_settings(), true);
    const ParameterTable *table = &t->weights->table;
    double *weights = odd_weights(table);
    set_weights(t, weights);
    accumulate(t, &batch);
    double *gradients = get_gradients(t);
    check_direction(t, &batch, weights, gradients, 0, table->elements, "all parameters");
    for (int64_t layer = 0; layer < odd_config.layers; layer++) {
        const Parameter *p = parameter_find(table, PARAM_QUERY, layer);
        check_direction(t, &batch, weights, gradients, p->offset, p->count, p->name);
    }
    free(weights);
    free(gradients);
    training_close(t);
    device->destroy(device);
}

// --- what must hold -------------------------------------------------------------------------------------

// With the selection held, no token's loss knows of later tokens.
static void losses_see_no_future(void *argument) {
    Device *device = (Device *)argument;
    const int64_t changes[] = {1, 67, 68, 130, ODD_SEQ_LEN - 1}; // of the first sequence, from here on
    const OddBatch batch = odd_batch();
    Training *t = odd_training(device, after_settings(), true);
    evaluate(t, &batch, true); // selects
    const double loss = replayed_loss(t, &batch);
    double *before = download(device, memory_at(t->memory, t->decoder->losses), accumulator_of(t), ODD_ROWS);
    for (size_t i = 0; i < COUNT_OF(changes); i++) {
        OddBatch other = batch;
        for (int64_t j = changes[i]; j < ODD_SEQ_LEN; j++)
            other.inputs[j] = (int32_t)((other.inputs[j] + 1) % odd_config.vocab_size);
        check(replayed_loss(t, &other) != loss, "the change had no effect");
        double *after =
            download(device, memory_at(t->memory, t->decoder->losses), accumulator_of(t), ODD_ROWS);
        for (int64_t j = 0; j < ODD_ROWS; j++)
            check(before[j] == after[j] || (j >= changes[i] && j < ODD_SEQ_LEN),
                  "the loss at row %ld knows of a change at %ld", (long)j, (long)changes[i]);
        free(after);
    }
    free(before);
    training_close(t);
}

static void step_matches_float64(void *argument) {
    Device *device = (Device *)argument, *float64 = cpu_device_create(STORAGE_FLOAT64);
    const OddBatch batch = odd_batch();
    Training *t = odd_training(device, after_settings(), true);
    Training *r = odd_training(float64, after_settings(), true);
    double *weights = odd_weights(&t->weights->table);
    set_weights(t, weights);
    set_weights(r, weights);
    const double loss = accumulate(t, &batch), expected = accumulate(r, &batch);
    check_close("loss", &loss, &expected, 1, 1e-7);
    double *gradients = get_gradients(t), *expected_gradients = get_gradients(r);
    check_parameters(&t->weights->table, gradients, expected_gradients, 1e-5);
    double *const all[] = {weights, gradients, expected_gradients};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    training_close(t);
    training_close(r);
    float64->destroy(float64);
}

static void replay(Training *t, const OddBatch *batch) {
    StepAttention attention = training_attention(t, true);
    attention.replay = true;
    weights_zero_gradients(t->weights);
    decoder_accumulate(t->decoder, &attention, 0, batch->inputs, batch->targets, 1.0 / ODD_ROWS, NULL);
}

static void check_gradient_bytes(const Training *t, const void *expected, const char *what) {
    size_t size;
    void *bytes = gradient_bytes(t, &size);
    check(!memcmp(expected, bytes, size), "%s, recompute %s: other gradients", what,
          recompute_names[t->decoder->layers.recompute[USUAL_STEP]]);
    free(bytes);
}

static void repeats_replays_and_recompute_change_no_bit(void *argument) {
    Device *device = (Device *)argument;
    const OddBatch batch = odd_batch();
    size_t size;
    void *first = NULL;
    for (int level = RECOMPUTE_NONE; level < RECOMPUTE_LEVELS; level++) {
        DecoderSettings settings = after_settings();
        settings.recompute = (RecomputeLevel)level;
        Training *t = odd_training(device, settings, true);
        accumulate(t, &batch);
        if (!first) first = gradient_bytes(t, &size);
        check_gradient_bytes(t, first, "a step");
        replay(t, &batch);
        check_gradient_bytes(t, first, "the step replayed");
        accumulate(t, &batch);
        check_gradient_bytes(t, first, "the step repeated");
        training_close(t);
    }
    free(first);
}

// Dense layers turn tokens as ever; what Lighthouse layers turn makes another function.
static void only_selection_is_concerned(void *argument) {
    Device *device = (Device *)argument;
    const OddBatch batch = odd_batch();
    Training *after = odd_training(device, after_settings(), true);
    Training *before = odd_training(device, odd_settings(), true);
    check(evaluate(after, &batch, false) == evaluate(before, &batch, false), "the dense loss differs");
    check(evaluate(after, &batch, true) != evaluate(before, &batch, true), "the option has no effect");
    training_close(after);
    training_close(before);
}

void test_rope_pooling(Device *device) {
    static const struct {
        const char *name;
        void (*test)(void *device);
    } tests[] = {
        {"losses see no future, the selection held", losses_see_no_future},
        {"repeats, replays and recompute change no bit", repeats_replays_and_recompute_change_no_bit},
        {"dense attention does not change", only_selection_is_concerned},
    };
    if (device->ops->storage == STORAGE_FLOAT32) {
        test_run("--rope-pooling after: a step matches PyTorch in float64", step_matches_pytorch, NULL);
        test_run("--rope-pooling after: gradients match differences in float64", model_has_its_gradient,
                 NULL);
        // In bfloat16 near-ties would be chosen differently.
        test_run("--rope-pooling after: a step matches float64", step_matches_float64, device);
    }
    for (size_t i = 0; i < COUNT_OF(tests); i++) {
        char *name = format_string("%s %s: --rope-pooling after: %s", device->kind,
                                   storage_dtype(device->ops->storage), tests[i].name);
        test_run(name, tests[i].test, device);
        free(name);
    }
}
