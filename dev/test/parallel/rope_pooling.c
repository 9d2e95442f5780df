// --rope-pooling after of several ranks that share a sequence, each turning entries by the positions that it has,
// against one rank. In float64, where no near-ties are picked differently.
#include "dev/test/small_model.h"

#include "parallel/sequence_parts.h"

#include <stdlib.h>
#include <string.h>

// 16 chunks of 5 coarsest entries: up to 8 ranks can share a sequence.
enum { SEQ_LEN = 320, BATCH = 2 };

typedef struct {
    Device *device;
    const Communicator *communicator; // all of whose ranks share a sequence
    Collectives *collectives;
} Setup;

typedef struct {
    int32_t inputs[BATCH * SEQ_LEN], targets[BATCH * SEQ_LEN];
} Tokens;

static Tokens random_tokens(void) {
    Tokens tokens;
    for (int i = 0; i < BATCH * SEQ_LEN; i++) {
        tokens.inputs[i] = (int32_t)random_below((uint64_t)odd_config.vocab_size);
        tokens.targets[i] = (int32_t)random_below((uint64_t)odd_config.vocab_size);
    }
    return tokens;
}

static Training *open_training(const Setup *s, Collectives *collectives, RecomputeLevel recompute) {
    const int ranks = collectives ? s->communicator->size : 1;
    const DecoderSettings settings = {.batch = BATCH,
                                      .seq_len = SEQ_LEN / ranks,
                                      .micro_steps = 1,
                                      .recompute = recompute,
                                      .deterministic = true,
                                      .lighthouse = {3, 2, 64, 4},
                                      .rope_pooling = ROPE_AFTER_POOLING};
    return training_open(s->device, collectives, &odd_config, &settings, odd_layer_kinds, &usual_optimizer);
}

// values[table->elements] from those of a table for one rank, or (gather) the other way round.
static void relay(double *values, double *of_one, const ParameterTable *table, bool gather) {
    for (int i = 0; i < table->bucket_count; i++) {
        const ParameterBucket *b = &table->buckets[i];
        double *here = values + b->offset, *there = of_one + b->flat_offset;
        memcpy(gather ? there : here, gather ? here : there, (size_t)b->flat_count * sizeof(double));
    }
}

// Gives the training the weights of a table for one rank, and back the gradients, for one rank too, and the sum of
// the losses of this rank's part of the tokens.
static double *step(const Setup *s, Training *t, double *weights, const Tokens *tokens, double *loss) {
    const ParameterTable *table = &t->weights->table;
    const Group alone = {0, 1}, group = t->collectives ? s->communicator->groups[GROUP_CONTEXT] : alone;
    const int64_t length = SEQ_LEN / group.size;
    double *spread = host_allocate((size_t)table->elements, sizeof(double), "weights");
    relay(spread, weights, table, false);
    set_weights(t, spread);
    weights_zero_gradients(t->weights);
    for (int64_t i = 0; i < BATCH * length; i++) {
        const int64_t from = i / length * SEQ_LEN + context_position(group, length, i % length);
        t->inputs[i] = tokens->inputs[from];
        t->targets[i] = tokens->targets[from];
    }
    const GradientsReady reduction = optimizer_reduction(t->optimizer);
    const StepAttention attention = training_attention(t, true);
    decoder_accumulate(t->decoder, &attention, 0, t->inputs, t->targets, 1.0 / (BATCH * SEQ_LEN),
                       t->collectives ? &reduction : NULL);
    *loss = decoder_losses(t->decoder);
    if (t->collectives) optimizer_grad_norm(t->optimizer, NULL); // waits for the sums
    double *gradients = get_gradients(t);
    double *of_one = host_allocate((size_t)table->flat_elements, sizeof(double), "gradients");
    relay(gradients, of_one, table, true);
    free(spread);
    free(gradients);
    return of_one;
}

static void a_step_equals_one_ranks(void *argument) {
    const Setup *s = (const Setup *)argument;
    const Tokens tokens = random_tokens();
    const RecomputeLevel levels[] = {RECOMPUTE_NONE, RECOMPUTE_CHEAP, RECOMPUTE_BLOCK};
    double expected_loss, losses[COUNT_OF(levels)], *gradients[COUNT_OF(levels)];
    Training *one = open_training(s, NULL, RECOMPUTE_NONE);
    const ParameterTable *table = &one->weights->table;
    const size_t bytes = (size_t)table->elements * sizeof(double);
    double *weights = odd_weights(table), *expected = step(s, one, weights, &tokens, &expected_loss);
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        Training *t = open_training(s, s->collectives, levels[i]);
        gradients[i] = step(s, t, weights, &tokens, &losses[i]);
        communicator_sum(s->communicator, &losses[i], 1, "the loss");
        training_close(t);
    }
    check_close("loss", &losses[0], &expected_loss, 1, 1e-12);
    check_parameters(table, gradients[0], expected, 1e-10);
    for (size_t i = 1; i < COUNT_OF(levels); i++)
        check(losses[i] == losses[0] && !memcmp(gradients[i], gradients[0], bytes),
              "recompute %s: other gradients", recompute_names[levels[i]]);
    for (size_t i = 0; i < COUNT_OF(levels); i++) free(gradients[i]);
    free(expected);
    free(weights);
    training_close(one);
}

void test_parallel_rope_pooling(const Communicator *communicator) {
    Communicator shared = *communicator;
    communicator_divide(&shared, shared.size);
    Device *device = cpu_device_create(STORAGE_FLOAT64);
    Setup setup = {device, &shared, collectives_create(device, &shared)};
    char *name =
        format_string("--rope-pooling after, %d ranks a sequence: a step equals one rank's", shared.size);
    test_run(name, a_step_equals_one_ranks, &setup);
    free(name);
    collectives_destroy(setup.collectives);
    device->destroy(device);
}
