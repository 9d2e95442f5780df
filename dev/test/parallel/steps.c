// Steps and evaluations of several ranks against those of one.
#include "dev/test/parallel/tests.h"

#include "dev/test/parallel/compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// The selection is replayed in bfloat16, where near-ties would be picked differently.
void step_equals_one_ranks(void *argument) {
    const Setup *s = (const Setup *)argument;
    const bool replays = s->selection && s->device->ops->storage == STORAGE_BFLOAT16;
    const int64_t micro_steps = replays ? 1 : 2;
    double *weights = shared_weights();
    Sequences sequences = clear_sequences(s, weights, micro_steps);
    Outcome whole = step_of_one(s, weights, &sequences);
    Training *t = parallel_training(s, settings_of(s, false, micro_steps), false, weights);
    if (replays) give_positions(s, t, &whole);
    Outcome part = step_of_all(s, t, &sequences, replays);
    const int selections = s->selection && !replays ? (int)micro_steps * SELECTING_LAYERS : 0;
    check(part.selections.count == selections, "%d selections", part.selections.count);
    check_selections(s, &part, &whole);
    check_outcome(s, &part, &whole);
    if (replays) {
        Outcome free_running = step_of_all(s, t, &sequences, false);
        int64_t of = 0;
        double counts[2] = {(double)different_picks(s, &free_running, &whole, &of), 0};
        counts[1] = (double)of;
        communicator_sum(&s->communicator, counts, 2, "the picks");
        check(counts[0] <= 0.05 * counts[1], "%.0f of %.0f picks differ", counts[0], counts[1]);
        printf("     %.3f%% of %.0f entries are picked differently when nothing is replayed\n",
               100 * counts[0] / counts[1], counts[1]);
        free_outcome(&free_running);
    }
    training_close(t);
    free_outcome(&whole);
    free_outcome(&part);
    free(weights);
    free_sequences(&sequences);
}

// As the published implementation does it: outputs end with the piece they come from. The comparison must
// see it.
void a_clipped_halo_is_seen(void *argument) {
    const Setup *s = (const Setup *)argument;
    Sequences sequences = random_sequences(s, 1);
    double *weights = shared_weights();
    Outcome whole = step_of_one(s, weights, &sequences);
    Training *t = parallel_training(s, settings_of(s, false, 1), false, weights);
    Layers *layers = &t->decoder->layers;
    layers->context = NULL; // no halo, and attention's plans have a context of their own
    layers->halo_received = layers->grad_halo_received = NO_BUFFER;
    accumulate_parallel(s, t, &sequences);
    Outcome part = outcome_of(s, t);
    const Parameter *p = parameter_find(&t->weights->table, PARAM_ATTENTION_OUT, 1);
    const int64_t first = p->offset - t->weights->table.buckets[p->bucket].offset +
                          t->weights->table.buckets[p->bucket].flat_offset;
    double difference = 0, norm = 0;
    for (int64_t i = first; i < first + p->count; i++) {
        difference += pow(part.gradients[i] - whole.gradients[i], 2);
        norm += pow(whole.gradients[i], 2);
    }
    const double beyond_any_tolerance = 0.04;
    check(sqrt(difference / norm) > beyond_any_tolerance, "clipping makes only %g of difference",
          sqrt(difference / norm));
    training_close(t);
    free_outcome(&whole);
    free_outcome(&part);
    free(weights);
    free_sequences(&sequences);
}

void evaluation_equals_one_ranks(void *argument) {
    const Setup *s = (const Setup *)argument;
    double *weights = shared_weights();
    Sequences sequences = clear_sequences(s, weights, 1);
    Training *one = whole_training(s, 1, weights);
    Training *t = parallel_training(s, settings_of(s, false, 1), false, weights);
    const int64_t tokens = SEQ_LEN / context_group(s).size;
    for (int64_t row = 0; row < BATCH; row++) {
        slice(t->inputs + row * tokens, sequences.inputs + row * SEQ_LEN, context_group(s), tokens);
        slice(t->targets + row * tokens, sequences.targets + row * SEQ_LEN, context_group(s), tokens);
    }
    for (int selection = 0; selection < 2; selection++) {
        const StepAttention attention = training_attention(t, selection == 1);
        const double expected =
            decoder_evaluate(one->decoder, &attention, sequences.inputs, sequences.targets);
        double loss = decoder_evaluate(t->decoder, &attention, t->inputs, t->targets);
        communicator_sum(&s->communicator, &loss, 1, "the loss");
        loss /= data_group(s).size; // all groups took the same sequence
        // In bfloat16 the selection is not quite the same.
        const double in_bfloat16 = selection == 1 && s->selection ? 5e-3 : 1e-3;
        check_close(selection ? "as trained" : "dense", &loss, &expected, 1,
                    s->device->ops->storage == STORAGE_BFLOAT16 ? in_bfloat16 : tolerance_of(s));
    }
    training_close(t);
    training_close(one);
    free(weights);
    free_sequences(&sequences);
}

void steps_repeat_and_recompute_to_the_bit(void *argument) {
    const Setup *s = (const Setup *)argument;
    Sequences sequences = random_sequences(s, 2);
    double *weights = shared_weights();
    void *first = NULL;
    static const RecomputeLevel levels[] = {RECOMPUTE_NONE, RECOMPUTE_NONE, RECOMPUTE_CHEAP, RECOMPUTE_BLOCK};
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        DecoderSettings settings = settings_of(s, false, 2);
        settings.recompute = levels[i];
        Training *t = parallel_training(s, settings, false, weights);
        accumulate_parallel(s, t, &sequences);
        optimizer_grad_norm(t->optimizer, NULL);
        size_t size;
        void *bytes = gradient_bytes(t, &size);
        check(!first || !memcmp(first, bytes, size), "recompute %s, run %zu: other gradients",
              recompute_names[levels[i]], i);
        if (first) free(bytes);
        if (!first) first = bytes;
        training_close(t);
    }
    free(first);
    free(weights);
    free_sequences(&sequences);
}
