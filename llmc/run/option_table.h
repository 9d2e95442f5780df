// The option table: one row per command-line option. It drives parsing, --help, the printed configuration,
// and what a checkpoint records.
#pragma once
#include "model/activations.h"
#include "model/config.h"
#include "model/rotary.h"
#include "run/schedule.h"

// Which validation losses: as trained, dense (the model that will be served), or both.
typedef enum { VALIDATE_SAME, VALIDATE_OFF, VALIDATE_BOTH } ValSelection;

// What a checkpoint that cannot be written does to the run.
// SAVE_ERROR_FIRST: ends it if none has been written since the program's start.
typedef enum { SAVE_ERROR_FIRST, SAVE_ERROR_CONTINUE, SAVE_ERROR_STOP } OnSaveError;

typedef enum { DEVICE_AUTO, DEVICE_CUDA, DEVICE_CPU } DeviceChoice;

// The storage type of weights and activations; automatic: the device's usual one.
typedef enum { DTYPE_AUTO, DTYPE_BFLOAT16, DTYPE_FLOAT32, DTYPE_FLOAT64 } DtypeChoice;
extern const char *const dtype_names[]; // of those, as --dtype takes them; ends with NULL

typedef struct {
    // data
    const char *train_data, *val_data; // globs; empty: none
    int64_t seed;
    const char *separator; // a token's number, "none" or "auto"
    // model
    int model; // in model_preset_names; the resolved shape is in `config`
    ModelConfig config;
    // batch
    int64_t seq_len, batch_size, global_batch;
    // attention
    bool selection;
    int64_t levels, pool, topk, topk_tile;
    int scorer;               // in scorer_names
    RopePooling rope_pooling; // of layers with selection
    const char *dense_layers; // "none", the layers' numbers as "0,1,28,29", or "rotate:R"
    int64_t dense_every, dense_first, dense_span;
    // optimizer
    int64_t steps, warmup_steps;
    double lr, final_lr_frac, decay_frac;
    ScheduleKind lr_schedule;
    double beta1, beta2, eps, weight_decay, grad_clip;
    bool decay_all;
    int64_t max_nonfinite, outlier_window;
    double skip_outliers;
    // run
    const char *out, *resume; // resume is empty for a new run
    int64_t save_every, keep, keep_every, val_every, val_batches, log_every;
    ValSelection val_selection;
    bool async_save;
    OnSaveError on_save_error;
    const char *verify_checkpoint; // empty: none
    double time_limit;             // minutes
    // device
    DeviceChoice device;
    DtypeChoice dtype;
    RecomputeLevel recompute; // or RECOMPUTE_AUTO
    bool plan, deterministic;
    // parallel
    int64_t cp, zero, collective_timeout, step_timeout;
} Options;

// What an option's field in Options is. OPTION_CHOICE: an enumeration, an int.
typedef enum {
    OPTION_INTEGER,
    OPTION_REAL,
    OPTION_TEXT,
    OPTION_CHOICE,
    OPTION_ON_OFF,
    OPTION_FLAG
} OptionType;

// What a checkpoint does with an option.
typedef enum {
    RECORD,     // resume restores it; the command line may change it
    FIXED,      // resume restores it, and changing it would silently break the run
    SHAPE,      // likewise; part of the model's shape, so a preset gives its default
    UNRECORDED, // belongs to one start of the program
} Keeping;

typedef struct {
    const char *group; // the heading of the options from this one on; NULL: that of the one before
    const char *name;
    OptionType type;
    size_t offset;           // in Options
    const char *fallback;    // the default, as it would be given; empty for a shape: the preset's
    const char *absent;      // what programs without the option did, and so its value where a checkpoint does
                             // not record it; NULL: the default
    double minimum, maximum; // of numbers
    const char *const *choices; // of OPTION_CHOICE: names in the order of the values, ending with NULL
    Keeping keeping;
    const char *unit; // or placeholder, for --help
    const char *help;
} Option;

extern const Option option_table[];
extern const int option_count;
