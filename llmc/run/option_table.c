#include "run/option_table.h"

#include "model/scorer.h"

static const char *const val_selection_names[] = {"same", "off", "both", NULL};
static const char *const save_error_names[] = {"first", "continue", "stop", NULL};
static const char *const device_names[] = {"auto", "cuda", "cpu", NULL};
const char *const dtype_names[] = {"auto", "bfloat16", "float32", "float64", NULL};

// A row's type, its field in Options and its default.
#define AT(field_) .offset = offsetof(Options, field_)
#define INTEGER(field_, fallback_, minimum_, maximum_)                                                       \
    .type = OPTION_INTEGER, AT(field_), .fallback = fallback_, .minimum = minimum_, .maximum = maximum_
#define REAL(field_, fallback_, minimum_, maximum_)                                                          \
    .type = OPTION_REAL, AT(field_), .fallback = fallback_, .minimum = minimum_, .maximum = maximum_
#define TEXT(field_, fallback_) .type = OPTION_TEXT, AT(field_), .fallback = fallback_
#define CHOICE(field_, fallback_, choices_)                                                                  \
    .type = OPTION_CHOICE, AT(field_), .fallback = fallback_, .choices = choices_
#define ON_OFF(field_, fallback_) .type = OPTION_ON_OFF, AT(field_), .fallback = fallback_
#define FLAG(field_)              .type = OPTION_FLAG, AT(field_), .fallback = "off"

#define UNLIMITED 9e15 // integers a double holds exactly

// clang-format off
const Option option_table[] = {
    {.group = "data",
     .name = "train-data", TEXT(train_data, ""), .unit = "GLOB",
     .help = "token shards to train on"},
    {.name = "val-data", TEXT(val_data, ""), .unit = "GLOB",
     .help = "token shards to validate on"},
    {.name = "seed", INTEGER(seed, "1", 0, UNLIMITED), .keeping = FIXED, .unit = "N",
     .help = "of the initial weights and the order of the data"},
    {.name = "separator-token", TEXT(separator, "auto"), .unit = "N|none",
     .help = "token between documents, recorded in config.json; auto: 256 where the data are bytes, else none"},
    {.group = "model",
     .name = "model", CHOICE(model, "530M", model_preset_names), .unit = "PRESET",
     .help = "shape to start from; the options below change it"},
    {.name = "vocab-size", INTEGER(config.vocab_size, "", 2, 1 << 30), .keeping = SHAPE, .unit = "N",
     .help = "tokens in the vocabulary"},
    {.name = "dim", INTEGER(config.dim, "", 2, 1 << 20), .keeping = SHAPE, .unit = "N",
     .help = "width of the residual stream"},
    {.name = "layers", INTEGER(config.layers, "", 1, 10000), .keeping = SHAPE, .unit = "N",
     .help = "decoder layers"},
    {.name = "heads", INTEGER(config.heads, "", 1, 10000), .keeping = SHAPE, .unit = "N",
     .help = "query heads"},
    {.name = "kv-heads", INTEGER(config.kv_heads, "", 1, 10000), .keeping = SHAPE, .unit = "N",
     .help = "key/value heads"},
    {.name = "ffn-dim", INTEGER(config.ffn_dim, "", 1, 1 << 24), .keeping = SHAPE, .unit = "N",
     .help = "width of the feed-forward"},
    {.name = "rope-theta", REAL(config.rope_theta, "", 1, 1e12), .keeping = SHAPE, .unit = "X",
     .help = "base of the rotary frequencies"},
    {.name = "norm-eps", REAL(config.norm_eps, "", 1e-12, 1), .keeping = SHAPE, .unit = "X",
     .help = "added to the mean square in RMSNorm"},
    {.group = "batch",
     .name = "seq-len", INTEGER(seq_len, "98304", 1, 1 << 30), .keeping = FIXED, .unit = "TOKENS",
     .help = "context length"},
    {.name = "batch-size", INTEGER(batch_size, "1", 1, 1 << 20), .unit = "SEQUENCES",
     .help = "per process and micro-step"},
    {.name = "global-batch", INTEGER(global_batch, "32", 1, 1 << 30), .unit = "SEQUENCES",
     .help = "per optimizer step; gradients accumulate over its micro-steps"},
    {.group = "attention (Lighthouse)",
     .name = "selection", ON_OFF(selection, "on"), .unit = "on|off",
     .help = "off: ordinary dense attention in all layers"},
    {.name = "levels", INTEGER(levels, "3", 2, 32), .unit = "L",
     .help = "of the pyramid, the tokens included"},
    {.name = "pool", INTEGER(pool, "4", 2, 1 << 20), .unit = "P",
     .help = "entries of a level that one of the next covers"},
    {.name = "topk", INTEGER(topk, "1536", 1, 1 << 30), .unit = "K",
     .help = "entries that each level refines"},
    {.name = "topk-tile", INTEGER(topk_tile, "128", 2, 1 << 30), .unit = "T",
     .help = "entries that one chunk refines; topk / topk-tile chunks choose on their own"},
    {.name = "scorer", CHOICE(scorer, "norm", scorer_names), .unit = "KIND",
     .help = "what entries are chosen by"},
    {.name = "rope-pooling", CHOICE(rope_pooling, "before", rope_pooling_names), .absent = "before",
     .unit = "before|after",
     .help = "turn tokens before they are pooled, or selected entries after it, at their last token"},
    {.name = "dense-layers", TEXT(dense_layers, "auto"), .unit = "LIST|none|rotate:R",
     .help = "layers without selection, as 0,1,28,29; auto: the first two and the last two; rotate:R: at step s, "
             "from 0, the layers l with (l + s) mod R = 0"},
    {.name = "dense-every", INTEGER(dense_every, "0", 0, UNLIMITED), .absent = "0", .unit = "N",
     .help = "every N-th step is dense in all layers; 0: none"},
    {.name = "dense-first", INTEGER(dense_first, "0", 0, UNLIMITED), .absent = "0", .unit = "STEPS",
     .help = "that are dense in all layers before selection begins"},
    {.name = "dense-span", INTEGER(dense_span, "0", 0, 1 << 30), .absent = "0", .unit = "TOKENS",
     .help = "of an equal part of the sequence beyond which no token attends in those steps; 0: all"},
    {.group = "optimizer (AdamW)",
     .name = "steps", INTEGER(steps, "16000", 0, UNLIMITED), .unit = "N",
     .help = "optimizer steps of the whole run"},
    {.name = "lr", REAL(lr, "2e-3", 0, 1e3), .unit = "X",
     .help = "peak learning rate"},
    {.name = "warmup-steps", INTEGER(warmup_steps, "2000", 0, UNLIMITED), .unit = "N",
     .help = "steps of linear warmup"},
    {.name = "lr-schedule", CHOICE(lr_schedule, "constant", schedule_names), .unit = "KIND",
     .help = "after warmup"},
    {.name = "final-lr-frac", REAL(final_lr_frac, "0", 0, 1), .unit = "X",
     .help = "of the peak, at the last step (not for constant)"},
    {.name = "decay-frac", REAL(decay_frac, "0.1", 0, 1), .unit = "X",
     .help = "share of all steps in which wsd decays"},
    {.name = "beta1", REAL(beta1, "0.9", 0, 0.9999999), .unit = "X",
     .help = "decay of the first moment"},
    {.name = "beta2", REAL(beta2, "0.95", 0, 0.9999999), .unit = "X",
     .help = "decay of the second moment"},
    {.name = "eps", REAL(eps, "1e-8", 1e-30, 1), .unit = "X",
     .help = "added to the root of the second moment"},
    {.name = "weight-decay", REAL(weight_decay, "0.1", 0, 1e3), .unit = "X",
     .help = "decoupled, times the learning rate"},
    {.name = "decay-all", ON_OFF(decay_all, "off"), .unit = "on|off",
     .help = "decay the norms' weights too, not only matrices"},
    {.name = "grad-clip", REAL(grad_clip, "1", 0, 1e30), .unit = "X",
     .help = "largest gradient norm; 0: no clipping"},
    {.name = "max-nonfinite", INTEGER(max_nonfinite, "3", 0, UNLIMITED), .unit = "STEPS",
     .help = "in a row without a finite loss and gradient norm, which are not updated; with more the run "
             "stops"},
    {.name = "skip-outliers", REAL(skip_outliers, "0", 0, 1e6), .unit = "X",
     .help = "no update where loss or gradient norm is X standard deviations above its mean; 0: always"},
    {.name = "outlier-window", INTEGER(outlier_window, "128", 2, 1 << 20), .unit = "STEPS",
     .help = "that this mean and deviation are taken over"},
    {.group = "run",
     .name = "out", TEXT(out, ""), .keeping = UNRECORDED, .unit = "DIR",
     .help = "checkpoints and metrics.jsonl; default out, or where --resume points"},
    {.name = "resume", TEXT(resume, ""), .keeping = UNRECORDED, .unit = "DIR|latest",
     .help = "go on from this checkpoint, or the newest good one in --out"},
    {.name = "save-every", INTEGER(save_every, "1000", 0, UNLIMITED), .unit = "STEPS",
     .help = "between checkpoints; 0: only at the end"},
    {.name = "keep", INTEGER(keep, "2", 1, UNLIMITED), .unit = "N",
     .help = "newest checkpoints to keep"},
    {.name = "keep-every", INTEGER(keep_every, "0", 0, UNLIMITED), .unit = "STEPS",
     .help = "checkpoints of these steps are never deleted; 0: none"},
    {.name = "async-save", ON_OFF(async_save, "on"), .unit = "on|off",
     .help = "write checkpoints while training goes on; off: it waits"},
    {.name = "on-save-error", CHOICE(on_save_error, "first", save_error_names), .unit = "KIND",
     .help = "which checkpoints that cannot be written stop the run: the first since its start, none (it goes on), or "
             "any; the last one of a run ends it with an error anyway"},
    {.name = "verify-checkpoint", TEXT(verify_checkpoint, ""), .keeping = UNRECORDED, .unit = "DIR",
     .help = "check every file of this checkpoint, say whether it is good, and exit"},
    {.name = "time-limit", REAL(time_limit, "0", 0, 1e9), .keeping = UNRECORDED, .unit = "MINUTES",
     .help = "after which the run saves and ends as if it had been sent SIGTERM (exit code 75); 0: none"},
    {.name = "step-timeout", INTEGER(step_timeout, "0", 0, 1e6), .absent = "0", .unit = "SECONDS",
     .help = "a step that takes longer ends the run with exit code 1 (a GPU that hangs); the first one, in which "
             "kernels are chosen, counts too; 0: none"},
    {.name = "val-every", INTEGER(val_every, "100", 0, UNLIMITED), .unit = "STEPS",
     .help = "between validations; 0: never"},
    {.name = "val-batches", INTEGER(val_batches, "8", 1, UNLIMITED), .unit = "N",
     .help = "of --batch-size sequences in a validation, always the same ones"},
    {.name = "val-selection", CHOICE(val_selection, "both", val_selection_names), .unit = "KIND",
     .help = "validate as trained, dense (the model that will be served), or both"},
    {.name = "log-every", INTEGER(log_every, "1", 1, UNLIMITED), .unit = "STEPS",
     .help = "between printed lines"},
    {.group = "device",
     .name = "device", CHOICE(device, "auto", device_names), .keeping = UNRECORDED, .unit = "KIND",
     .help = "auto: a CUDA GPU if there is one"},
    {.name = "dtype", CHOICE(dtype, "auto", dtype_names), .keeping = FIXED, .unit = "TYPE",
     .help = "of weights and activations; auto: bfloat16 on cuda, float32 on cpu"},
    {.name = "recompute", CHOICE(recompute, "auto", recompute_names), .unit = "LEVEL",
     .help = "activations made again in the backward; auto: the least that fits"},
    {.name = "deterministic", ON_OFF(deterministic, "off"), .unit = "on|off",
     .help = "the same bits every time, in cuDNN's attention backward too"},
    {.name = "plan", FLAG(plan), .keeping = UNRECORDED,
     .help = "print the memory plan and exit"},
    {.group = "parallel (mpirun -np P ./train_lighthouse …: one process a device)",
     .name = "cp", INTEGER(cp, "1", 1, 1 << 20), .unit = "W",
     .help = "processes that share each sequence (context parallelism); P / W sequences are trained at a "
             "time"},
    {.name = "zero", INTEGER(zero, "0", 0, 1), .unit = "STAGE",
     .help = "1: each process keeps the optimizer's state of its part of the weights only"},
    {.name = "collective-timeout", INTEGER(collective_timeout, "600", 0, 1e6), .unit = "SECONDS",
     .help = "a process that waits longer for others in training ends the run; 0: never"},
};
// clang-format on

const int option_count = COUNT_OF(option_table);
