#include "training/step.h"

// Tokens of the global batch.
static double global_tokens(const Training *t) {
    const Decoder *d = t->decoder;
    const int ranks = t->collectives ? t->collectives->communicator->size : 1;
    return (double)(d->layers.batch * d->layers.seq_len) * (double)d->micro_steps * ranks;
}

void step_accumulate(Training *t, const StepAttention *attention, const BatchSource *source,
                     const GradientsReady *ready) {
    const int64_t micro_steps = t->decoder->micro_steps;
    weights_zero_gradients(t->weights);
    for (int64_t micro_step = 0; micro_step < micro_steps; micro_step++) {
        source->read(source->context, micro_step, t->inputs, t->targets);
        decoder_accumulate(t->decoder, attention, micro_step, t->inputs, t->targets, 1 / global_tokens(t),
                           micro_step + 1 == micro_steps ? ready : NULL);
    }
}

StepResult step_gradients(Training *t, const StepAttention *attention, const BatchSource *source) {
    const GradientsReady reduction = optimizer_reduction(t->optimizer);
    step_accumulate(t, attention, source, &reduction);
    StepResult result = {.loss_here = decoder_losses(t->decoder)};
    result.loss = result.loss_here;
    if (t->collectives) communicator_sum(t->collectives->communicator, &result.loss, 1, "the step's loss");
    result.loss /= global_tokens(t);
    result.grad_norm = optimizer_grad_norm(t->optimizer, &result.grad_norm_here);
    return result;
}
