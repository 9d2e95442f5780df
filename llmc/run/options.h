// The option table: one row per command-line option. It drives parsing, --help, the printed configuration,
// and what a checkpoint records.
#pragma once
#include "model/config.h"
#include "run/guard.h"
#include "model/geometry.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cJSON;

typedef struct {
    // data
    const char *train_data, *val_data; // globs; empty: none
    int64_t seed, separator_token;
    // model: the resolved shape is in `config`
    const char *model;
    ModelConfig config;
    // batch
    int64_t seq_len, batch_size, global_batch;
    // attention
    bool selection;
    int64_t levels, pool, topk, topk_tile;
    const char *scorer;
    const char *dense_layers; // "none", or the layers' numbers: "0,1,28,29"
    // optimizer
    int64_t steps, warmup_steps;
    double lr, final_lr_frac, decay_frac;
    const char *lr_schedule;
    double beta1, beta2, eps, weight_decay, grad_clip;
    bool decay_all;
    int64_t max_nonfinite, outlier_window;
    double skip_outliers;
    // run
    const char *out, *resume; // resume is empty for a new run
    int64_t save_every, keep, keep_every, val_every, val_batches, log_every;
    const char *val_selection;
    bool async_save;
    const char *on_save_error;
    const char *verify_checkpoint; // empty: none
    double time_limit;             // minutes
    // device
    const char *device, *dtype, *recompute;
    bool plan, deterministic;
    // parallel
    int64_t cp, zero, collective_timeout;
} Options;

// The options of a command line, over those that a checkpoint recorded (`recorded`, or NULL), over the
// defaults. Fails with a hint on anything unknown or malformed, and on a change to the recorded options that
// would silently break the run. --help prints the table and exits with code 0.
Options options_parse(int argc, char **argv, const struct cJSON *recorded);

// Prints the table and exits with code 0 if the command line asks for --help.
void options_help(int argc, char **argv);

LighthouseSettings options_lighthouse(const Options *options);
GuardSettings options_guard(const Options *options);

// Refuses options that do not go together, or not with so many processes.
void options_check(const Options *options, int processes);

// How many micro-steps an optimizer step takes with so many processes.
int64_t options_micro_steps(const Options *options, int processes);

// Sets dense[config.layers] from dense_layers.
void options_dense_layers(const Options *options, bool *dense);

// The options that a checkpoint records, resolved. The caller deletes it.
struct cJSON *options_record(const Options *options);

// The value that a record has of an option, as text that the caller frees; NULL if it has none.
char *options_recorded(const struct cJSON *record, const char *name);

// Prints the options, group by group; with `recorded`, also marks those that differ from it.
void options_print(const Options *options, const struct cJSON *recorded);

#ifdef __cplusplus
}
#endif
