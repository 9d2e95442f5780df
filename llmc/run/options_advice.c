#include "run/options_advice.h"

static void advise_on_schedule(const Options *o) {
    if (o->steps == 0) return;
    if (o->warmup_steps > o->steps)
        warning("--warmup-steps %ld: the run has %ld steps, and ends at %.3g of --lr %g",
                (long)o->warmup_steps, (long)o->steps, (double)o->steps / (double)o->warmup_steps, o->lr);
    if (o->lr_schedule != SCHEDULE_CONSTANT && o->warmup_steps >= o->steps)
        warning("--lr-schedule %s has no effect: none of %ld steps follows --warmup-steps %ld",
                schedule_names[o->lr_schedule], (long)o->steps, (long)o->warmup_steps);
}

static void advise_on_vocabulary(const Options *o, int64_t largest_token) {
    const ModelConfig *config = &o->config;
    const int64_t used = largest_token + 1, unused = config->vocab_size - used;
    if (unused < used || unused < 1000) return;
    warning(
        "--vocab-size %ld: the largest token seen is %ld, so %.1fM of the parameters, in embedding and head, are "
        "not used; --vocab-size %ld would do",
        (long)config->vocab_size, (long)largest_token, 2e-6 * (double)unused * (double)config->dim,
        (long)round_up(used, 8));
}

void options_advise(const Options *options, DataSummary data, bool resumed) {
    advise_on_schedule(options);
    if (data.samples == 0) return;
    if (options->global_batch > data.samples)
        warning(
            "--global-batch %ld: the data have %ld samples, so every step trains some of them more than once",
            (long)options->global_batch, (long)data.samples);
    if (!resumed) advise_on_vocabulary(options, data.largest_token);
}
