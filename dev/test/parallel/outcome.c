#include "dev/test/parallel/outcome.h"

#include <stdlib.h>

void free_outcome(Outcome *outcome) {
    free(outcome->gradients);
    free_selections(&outcome->selections);
}

// The sequences as one rank's micro-steps, or as the parts that the ranks of a setup train on.
typedef struct {
    const Setup *setup; // NULL: one rank
    const Sequences *sequences;
} SequenceSource;

static void read_sequences(void *context, int64_t micro_step, int32_t *inputs, int32_t *targets) {
    const SequenceSource *source = (const SequenceSource *)context;
    const Group alone = {0, 1};
    const Group data = source->setup ? data_group(source->setup) : alone;
    const Group group = source->setup ? context_group(source->setup) : alone;
    const int64_t batch = micro_step * data.size + data.rank, tokens = SEQ_LEN / group.size;
    for (int64_t row = 0; row < BATCH; row++) {
        const int64_t start = (batch * BATCH + row) * SEQ_LEN;
        slice(inputs + row * tokens, source->sequences->inputs + start, group, tokens);
        slice(targets + row * tokens, source->sequences->targets + start, group, tokens);
    }
}

Outcome step_of_one(const Setup *s, const double *weights, const Sequences *sequences) {
    Training *t = whole_training(s, sequences->batches, weights);
    Outcome outcome = {0};
    SequenceSource all = {NULL, sequences};
    const BatchSource source = {read_sequences, &all};
    const StepAttention attention = training_attention(t, true);
    record_selections(s->device, &outcome.selections);
    step_accumulate(t, &attention, &source, NULL);
    stop_recording();
    outcome.loss = decoder_losses(t->decoder);
    outcome.gradients = get_gradients(t);
    training_close(t);
    return outcome;
}

void accumulate_with(const Setup *s, Training *t, const Sequences *sequences, bool replay,
                     const GradientsReady *ready) {
    SequenceSource parts = {s, sequences};
    const BatchSource source = {read_sequences, &parts};
    StepAttention attention = training_attention(t, true);
    attention.replay = replay;
    step_accumulate(t, &attention, &source, ready);
}

void accumulate_parallel(const Setup *s, Training *t, const Sequences *sequences) {
    const GradientsReady reduction = optimizer_reduction(t->optimizer);
    accumulate_with(s, t, sequences, false, &reduction);
}

Outcome outcome_of(const Setup *s, Training *t) {
    Outcome outcome = {.loss = decoder_losses(t->decoder)};
    communicator_sum(&s->communicator, &outcome.loss, 1, "the loss");
    optimizer_grad_norm(t->optimizer, NULL); // waits for the sums
    double *gradients = get_gradients(t);
    outcome.gradients = relaid(&t->weights->table, gradients, false);
    free(gradients);
    return outcome;
}

Outcome step_of_all(const Setup *s, Training *t, const Sequences *sequences, bool replay) {
    const GradientsReady reduction = optimizer_reduction(t->optimizer);
    Selections selections = {0};
    record_selections(s->device, &selections);
    accumulate_with(s, t, sequences, replay, &reduction);
    stop_recording();
    Outcome outcome = outcome_of(s, t);
    outcome.selections = selections;
    return outcome;
}
