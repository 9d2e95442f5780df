#include "run/options.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <getopt.h>
#include <libgen.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum { INTEGER, REAL, TEXT, CHOICE, ON_OFF, FLAG } OptionType;

// What a checkpoint does with an option.
typedef enum {
    RECORD,     // resume restores it; the command line may change it
    FIXED,      // resume restores it, and changing it would silently break the run
    SHAPE,      // likewise; part of the model's shape, so a preset gives its default
    UNRECORDED, // belongs to one start of the program
} Keeping;

typedef struct {
    const char *name;
    OptionType type;
    size_t offset; // in Options
    const char *fallback;
    double minimum, maximum; // of INTEGER and REAL
    const char *choices;     // of CHOICE: "a|b|c"
    Keeping keeping;
    const char *unit; // or placeholder, for --help
    const char *help;
} Option;

#define AT(field)  offsetof(Options, field)
#define INT(field) INTEGER, AT(field)
#define UNLIMITED  9e15 // integers a double holds exactly

#define HEADING(title)                                                                                       \
    { title, FLAG, 0, NULL, 0, 0, NULL, UNRECORDED, NULL, NULL }

// A row without help is the heading of a group.
static const Option options_table[] = {
    HEADING("data"),
    {"train-data", TEXT, AT(train_data), "", 0, 0, NULL, RECORD, "GLOB", "token shards to train on"},
    {"val-data", TEXT, AT(val_data), "", 0, 0, NULL, RECORD, "GLOB", "token shards to validate on"},
    {"seed", INT(seed), "1", 0, UNLIMITED, NULL, FIXED, "N",
     "of the initial weights and the order of the data"},
    {"separator-token", INT(separator_token), "256", -1, UNLIMITED, NULL, RECORD, "N",
     "token between documents, recorded in config.json; -1: none"},

    HEADING("model"),
    {"model", CHOICE, AT(model), "530M", 0, 0, "", RECORD, "PRESET",
     "shape to start from; the options below change it"},
    {"vocab-size", INT(config.vocab_size), "", 2, 1 << 30, NULL, SHAPE, "N", "tokens in the vocabulary"},
    {"dim", INT(config.dim), "", 2, 1 << 20, NULL, SHAPE, "N", "width of the residual stream"},
    {"layers", INT(config.layers), "", 1, 10000, NULL, SHAPE, "N", "decoder layers"},
    {"heads", INT(config.heads), "", 1, 10000, NULL, SHAPE, "N", "query heads"},
    {"kv-heads", INT(config.kv_heads), "", 1, 10000, NULL, SHAPE, "N", "key/value heads"},
    {"ffn-dim", INT(config.ffn_dim), "", 1, 1 << 24, NULL, SHAPE, "N", "width of the feed-forward"},
    {"rope-theta", REAL, AT(config.rope_theta), "", 1, 1e12, NULL, SHAPE, "X",
     "base of the rotary frequencies"},
    {"norm-eps", REAL, AT(config.norm_eps), "", 1e-12, 1, NULL, SHAPE, "X",
     "added to the mean square in RMSNorm"},

    HEADING("batch"),
    {"seq-len", INT(seq_len), "98304", 1, 1 << 30, NULL, FIXED, "TOKENS", "context length"},
    {"batch-size", INT(batch_size), "1", 1, 1 << 20, NULL, RECORD, "SEQUENCES", "per process and micro-step"},
    {"global-batch", INT(global_batch), "32", 1, 1 << 30, NULL, RECORD, "SEQUENCES",
     "per optimizer step; gradients accumulate over its micro-steps"},

    HEADING("attention (Lighthouse)"),
    {"selection", ON_OFF, AT(selection), "on", 0, 0, NULL, RECORD, "on|off",
     "off: ordinary dense attention in all layers"},
    {"levels", INT(levels), "3", 2, 32, NULL, RECORD, "L", "of the pyramid, the tokens included"},
    {"pool", INT(pool), "4", 2, 1 << 20, NULL, RECORD, "P", "entries of a level that one of the next covers"},
    {"topk", INT(topk), "1536", 1, 1 << 30, NULL, RECORD, "K", "entries that each level refines"},
    {"topk-tile", INT(topk_tile), "128", 2, 1 << 30, NULL, RECORD, "T",
     "entries that one chunk refines; topk / topk-tile chunks choose on their own"},
    {"scorer", CHOICE, AT(scorer), "norm", 0, 0, "norm", RECORD, "KIND", "what entries are chosen by"},
    {"dense-layers", TEXT, AT(dense_layers), "auto", 0, 0, NULL, RECORD, "LIST|none",
     "layers without selection, as 0,1,28,29; auto: the first two and the last two"},

    HEADING("optimizer (AdamW)"),
    {"steps", INT(steps), "16000", 0, UNLIMITED, NULL, RECORD, "N", "optimizer steps of the whole run"},
    {"lr", REAL, AT(lr), "2e-3", 0, 1e3, NULL, RECORD, "X", "peak learning rate"},
    {"warmup-steps", INT(warmup_steps), "2000", 0, UNLIMITED, NULL, RECORD, "N", "steps of linear warmup"},
    {"lr-schedule", CHOICE, AT(lr_schedule), "constant", 0, 0, "constant|linear|cosine|wsd", RECORD, "KIND",
     "after warmup"},
    {"final-lr-frac", REAL, AT(final_lr_frac), "0", 0, 1, NULL, RECORD, "X",
     "of the peak, at the last step (not for constant)"},
    {"decay-frac", REAL, AT(decay_frac), "0.1", 0, 1, NULL, RECORD, "X",
     "share of all steps in which wsd decays"},
    {"beta1", REAL, AT(beta1), "0.9", 0, 0.9999999, NULL, RECORD, "X", "decay of the first moment"},
    {"beta2", REAL, AT(beta2), "0.95", 0, 0.9999999, NULL, RECORD, "X", "decay of the second moment"},
    {"eps", REAL, AT(eps), "1e-8", 1e-30, 1, NULL, RECORD, "X", "added to the root of the second moment"},
    {"weight-decay", REAL, AT(weight_decay), "0.1", 0, 1e3, NULL, RECORD, "X",
     "decoupled, times the learning rate"},
    {"decay-all", ON_OFF, AT(decay_all), "off", 0, 0, NULL, RECORD, "on|off",
     "decay the norms' weights too, not only matrices"},
    {"grad-clip", REAL, AT(grad_clip), "1", 0, 1e30, NULL, RECORD, "X",
     "largest gradient norm; 0: no clipping"},
    {"max-nonfinite", INT(max_nonfinite), "3", 0, UNLIMITED, NULL, RECORD, "STEPS",
     "in a row without a finite loss and gradient norm, which are not updated; with more the run stops"},
    {"skip-outliers", REAL, AT(skip_outliers), "0", 0, 1e6, NULL, RECORD, "X",
     "no update where loss or gradient norm is X standard deviations above its mean; 0: always"},
    {"outlier-window", INT(outlier_window), "128", 2, 1 << 20, NULL, RECORD, "STEPS",
     "that this mean and deviation are taken over"},

    HEADING("run"),
    {"out", TEXT, AT(out), "", 0, 0, NULL, UNRECORDED, "DIR",
     "checkpoints and metrics.jsonl; default out, or where --resume points"},
    {"resume", TEXT, AT(resume), "", 0, 0, NULL, UNRECORDED, "DIR|latest",
     "go on from this checkpoint, or the newest good one in --out"},
    {"save-every", INT(save_every), "1000", 0, UNLIMITED, NULL, RECORD, "STEPS",
     "between checkpoints; 0: only at the end"},
    {"keep", INT(keep), "2", 1, UNLIMITED, NULL, RECORD, "N", "newest checkpoints to keep"},
    {"keep-every", INT(keep_every), "0", 0, UNLIMITED, NULL, RECORD, "STEPS",
     "checkpoints of these steps are never deleted; 0: none"},
    {"async-save", ON_OFF, AT(async_save), "on", 0, 0, NULL, RECORD, "on|off",
     "write checkpoints while training goes on; off: it waits"},
    {"on-save-error", CHOICE, AT(on_save_error), "continue", 0, 0, "continue|stop", RECORD, "KIND",
     "what a checkpoint that cannot be written does to the run (the last one ends it with an error anyway)"},
    {"verify-checkpoint", TEXT, AT(verify_checkpoint), "", 0, 0, NULL, UNRECORDED, "DIR",
     "check every file of this checkpoint, say whether it is good, and exit"},
    {"time-limit", REAL, AT(time_limit), "0", 0, 1e9, NULL, UNRECORDED, "MINUTES",
     "after which the run saves and ends as if it had been sent SIGTERM (exit code 75); 0: none"},
    {"val-every", INT(val_every), "100", 0, UNLIMITED, NULL, RECORD, "STEPS",
     "between validations; 0: never"},
    {"val-batches", INT(val_batches), "8", 1, UNLIMITED, NULL, RECORD, "N",
     "of --batch-size sequences in a validation, always the same ones"},
    {"val-selection", CHOICE, AT(val_selection), "both", 0, 0, "same|off|both", RECORD, "KIND",
     "validate as trained, dense (the model that will be served), or both"},
    {"log-every", INT(log_every), "1", 1, UNLIMITED, NULL, RECORD, "STEPS", "between printed lines"},

    HEADING("device"),
    {"device", CHOICE, AT(device), "auto", 0, 0, "auto|cuda|cpu", UNRECORDED, "KIND",
     "auto: a CUDA GPU if there is one"},
    {"dtype", CHOICE, AT(dtype), "auto", 0, 0, "auto|bfloat16|float32|float64", FIXED, "TYPE",
     "of weights and activations; auto: bfloat16 on cuda, float32 on cpu"},
    {"recompute", CHOICE, AT(recompute), "auto", 0, 0, "auto|none|cheap|ffn|qkv|block", RECORD, "LEVEL",
     "activations made again in the backward; auto: the least that fits"},
    {"deterministic", ON_OFF, AT(deterministic), "off", 0, 0, NULL, RECORD, "on|off",
     "the same bits every time, in cuDNN's attention backward too"},
    {"plan", FLAG, AT(plan), "off", 0, 0, NULL, UNRECORDED, NULL, "print the memory plan and exit"},

    HEADING("parallel (mpirun -np P ./train_lighthouse …: one process a device)"),
    {"cp", INT(cp), "1", 1, 1 << 20, NULL, RECORD, "W",
     "processes that share each sequence (context parallelism); P / W sequences are trained at a time"},
    {"zero", INT(zero), "0", 0, 1, NULL, RECORD, "STAGE",
     "1: each process keeps the optimizer's state of its part of the weights only"},
    {"collective-timeout", INT(collective_timeout), "600", 0, 1e6, NULL, RECORD, "SECONDS",
     "a process that waits longer for others ends the run; 0: never"},
};

enum { OPTIONS = COUNT_OF(options_table) };

static bool is_heading(const Option *option) {
    return option->help == NULL;
}

static const char *choices_of(const Option *option) {
    return option->choices[0] ? option->choices : model_preset_names();
}

static void *field(const Options *options, const Option *option) {
    return (char *)options + option->offset;
}

// --- values ---------------------------------------------------------------------------------------------

static bool is_choice(const char *choices, const char *value) {
    const size_t length = strlen(value);
    for (const char *at = choices; at; at = strchr(at, '|')) {
        if (*at == '|') at++;
        if (length > 0 && !strncmp(at, value, length) && (at[length] == '|' || at[length] == 0)) return true;
    }
    return false;
}

static void store_number(Options *options, const Option *option, const char *text) {
    char *end;
    errno = 0;
    double value;
    int64_t whole = 0;
    if (option->type == INTEGER) {
        whole = strtoll(text, &end, 10);
        value = (double)whole;
    } else {
        value = strtod(text, &end);
    }
    if (end == text || *end != 0 || errno != 0 || !isfinite(value))
        fatal("--%s %s: expected %s, for example --%s %s", option->name, text,
              option->type == INTEGER ? "a whole number" : "a number", option->name,
              option->fallback[0]       ? option->fallback
              : option->type == INTEGER ? "8"
                                        : "0.5");
    if (value < option->minimum || value > option->maximum)
        fatal("--%s %s: expected a value from %.15g to %.15g", option->name, text, option->minimum,
              option->maximum);
    if (option->type == INTEGER)
        *(int64_t *)field(options, option) = whole;
    else
        *(double *)field(options, option) = value;
}

static void store(Options *options, const Option *option, const char *text) {
    switch (option->type) {
        case INTEGER:
        case REAL: store_number(options, option, text); break;
        case CHOICE:
            if (!is_choice(choices_of(option), text))
                fatal("--%s %s: expected one of %s", option->name, text, choices_of(option));
            *(char **)field(options, option) = format_string("%s", text);
            break;
        case TEXT: *(char **)field(options, option) = format_string("%s", text); break;
        case ON_OFF:
            if (!is_choice("on|off", text)) fatal("--%s %s: expected on or off", option->name, text);
            *(bool *)field(options, option) = !strcmp(text, "on");
            break;
        case FLAG: *(bool *)field(options, option) = !strcmp(text, "on"); break;
    }
}

// The value as text that `store` reads back to the same value; the caller frees it.
static char *value_text(const Options *options, const Option *option) {
    const void *value = field(options, option);
    switch (option->type) {
        case INTEGER: return format_string("%ld", (long)*(const int64_t *)value);
        case REAL: {
            char *text = format_string("%.15g", *(const double *)value);
            if (strtod(text, NULL) == *(const double *)value) return text;
            free(text);
            return format_string("%.17g", *(const double *)value);
        }
        case TEXT:
        case CHOICE: return format_string("%s", *(const char *const *)value);
        case ON_OFF:
        case FLAG: break;
    }
    return format_string("%s", *(const bool *)value ? "on" : "off");
}

static const char *recorded_text(const struct cJSON *recorded, const Option *option) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(recorded, option->name);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

// --- help -----------------------------------------------------------------------------------------------

static void print_help(void) {
    printf("train_lighthouse: pretrains a Llama-style decoder at long context\n\n"
           "usage: train_lighthouse --train-data GLOB [options]\n");
    for (int i = 0; i < OPTIONS; i++) {
        const Option *option = &options_table[i];
        if (is_heading(option)) {
            printf("\n%s\n", option->name);
            continue;
        }
        char left[64];
        snprintf(left, sizeof(left), "--%s %s", option->name, option->unit ? option->unit : "");
        printf("  %-28s %s", left, option->help);
        if (option->type == CHOICE) printf("; %s", choices_of(option));
        if (option->keeping == SHAPE)
            printf(" (default: the preset's)");
        else if (option->fallback[0] && option->type != FLAG)
            printf(" (default %s)", option->fallback);
        printf("\n");
    }
    printf("\n  %-28s this text\n", "--help");
}

void options_help(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const bool abbreviated =
            strlen(argv[i]) >= strlen("--hel") && !strncmp(argv[i], "--help", strlen(argv[i]));
        if (!abbreviated && strncmp(argv[i], "-h", 2) != 0) continue;
        print_help();
        exit(0);
    }
}

// --- parsing --------------------------------------------------------------------------------------------

// The likeliest option meant by a name there is none of: the one with the longest common start.
static const char *nearest_name(const char *wrong) {
    const char *best = "help";
    size_t best_common = 0;
    for (int i = 0; i < OPTIONS; i++) {
        size_t common = 0;
        while (wrong[common] && wrong[common] == options_table[i].name[common]) common++;
        if (is_heading(&options_table[i]) || common <= best_common) continue;
        best = options_table[i].name;
        best_common = common;
    }
    return best;
}

// Fills texts[i] with the value given for option i on the command line.
static void read_command_line(int argc, char **argv, const char *texts[OPTIONS]) {
    struct option longs[OPTIONS + 2];
    memset(longs, 0, sizeof(longs));
    int count = 0;
    for (int i = 0; i < OPTIONS; i++) {
        if (is_heading(&options_table[i])) continue;
        longs[count].name = options_table[i].name;
        longs[count].has_arg = options_table[i].type == FLAG ? no_argument : required_argument;
        longs[count++].val = 256 + i;
    }
    longs[count].name = "help";
    longs[count].val = 'h';
    opterr = 0;
    optind = 0;
    for (int value; (value = getopt_long(argc, argv, ":h", longs, NULL)) != -1;) {
        const char *word = argv[optind - 1];
        if (value == 'h') {
            print_help();
            exit(0);
        }
        if (value == ':') fatal("option %s needs a value; see --help", word);
        if (value == '?') {
            const char *name = word + strspn(word, "-");
            fatal("unknown or ambiguous option %s; did you mean --%s? See --help", word, nearest_name(name));
        }
        texts[value - 256] = options_table[value - 256].type == FLAG ? "on" : optarg;
    }
    if (optind < argc) fatal("unexpected argument \"%s\": options start with --; see --help", argv[optind]);
}

static void check_unchanged(const Options *options, const Option *option, const char *recorded) {
    char *now = value_text(options, option);
    if (strcmp(now, recorded) != 0)
        fatal("--%s %s: the checkpoint was trained with %s, and a resumed run must keep it", option->name,
              now, recorded);
    free(now);
}

// A shape comes from the preset if there is nothing recorded or a preset is named again, and single options
// go over either.
static void resolve_shape(Options *options, const char *given[OPTIONS], const struct cJSON *recorded) {
    bool preset_given = false;
    for (int i = 0; i < OPTIONS; i++)
        if (options_table[i].help && options_table[i].offset == AT(model)) preset_given = given[i] != NULL;
    options->config = *model_preset(options->model);
    for (int i = 0; i < OPTIONS; i++) {
        const Option *option = &options_table[i];
        if (option->keeping != SHAPE) continue;
        const char *before = recorded && !preset_given ? recorded_text(recorded, option) : NULL;
        if (given[i] || before) store(options, option, given[i] ? given[i] : before);
    }
}

// Where --resume points a run stays: the checkpoint's own parent directory.
static void resolve_out(Options *options) {
    if (options->out[0]) return;
    options->out = "out";
    if (options->resume[0] && strcmp(options->resume, "latest") != 0)
        options->out = dirname(format_string("%s", options->resume));
}

// The layer number at *text, which is moved behind it and a comma; -1 if there is none below `layers`.
static int64_t next_layer(const char **text, int64_t layers) {
    char *end;
    const int64_t layer = strtoll(*text, &end, 10);
    if (end == *text || (*end != ',' && *end != 0) || layer < 0 || layer >= layers) return -1;
    *text = *end == ',' && end[1] != 0 ? end + 1 : end;
    return layer;
}

void options_dense_layers(const Options *options, bool *dense) {
    const int64_t layers = options->config.layers;
    memset(dense, 0, (size_t)layers * sizeof(bool));
    if (!strcmp(options->dense_layers, "none")) return;
    for (const char *text = options->dense_layers;;) {
        const int64_t layer = next_layer(&text, layers);
        if (layer < 0)
            fatal("--dense-layers %s: expected none, or layers from 0 to %ld as in 0,1,%ld",
                  options->dense_layers, (long)(layers - 1), (long)(layers - 1));
        dense[layer] = true;
        if (*text == 0) return;
    }
}

// "auto" as the list that it stands for.
static void resolve_dense_layers(Options *options) {
    if (strcmp(options->dense_layers, "auto") != 0) return;
    const int64_t layers = options->config.layers;
    char *list = format_string("0");
    for (int64_t layer = 1; layer < layers; layer++) {
        if (layer >= 2 && layer < layers - 2) continue;
        char *longer = format_string("%s,%ld", list, (long)layer);
        free(list);
        list = longer;
    }
    options->dense_layers = list;
}

Options options_parse(int argc, char **argv, const struct cJSON *recorded) {
    Options options;
    memset(&options, 0, sizeof(options));
    const char *given[OPTIONS] = {0};
    read_command_line(argc, argv, given);
    for (int i = 0; i < OPTIONS; i++) {
        const Option *option = &options_table[i];
        if (is_heading(option) || option->keeping == SHAPE) continue;
        const char *before =
            recorded && option->keeping != UNRECORDED ? recorded_text(recorded, option) : NULL;
        store(&options, option, given[i] ? given[i] : before ? before : option->fallback);
    }
    resolve_shape(&options, given, recorded);
    resolve_dense_layers(&options);
    resolve_out(&options);
    for (int i = 0; i < OPTIONS; i++) {
        const Option *option = &options_table[i];
        const char *before = recorded && !is_heading(option) ? recorded_text(recorded, option) : NULL;
        if (before && (option->keeping == FIXED || option->keeping == SHAPE))
            check_unchanged(&options, option, before);
    }
    return options;
}

LighthouseSettings options_lighthouse(const Options *options) {
    LighthouseSettings settings = {options->levels, options->pool, options->topk, options->topk_tile};
    return settings;
}

GuardSettings options_guard(const Options *options) {
    GuardSettings settings = {options->max_nonfinite, options->skip_outliers, options->outlier_window};
    return settings;
}

int64_t options_micro_steps(const Options *options, int processes) {
    return options->global_batch / (options->batch_size * (processes / options->cp));
}

// "64 and 128 are": of the multiples of `unit` around a value that is none.
static char *multiples_around(int64_t value, int64_t unit) {
    const int64_t below = value / unit * unit;
    return below > 0 ? format_string("%ld and %ld are", (long)below, (long)(below + unit))
                     : format_string("%ld is", (long)unit);
}

static void check_batch(const Options *options, int processes) {
    const int64_t groups = processes / options->cp, unit = options->batch_size * groups;
    if (options->global_batch % unit == 0) return;
    if (groups == 1)
        fatal("--global-batch %ld is not a multiple of --batch-size %ld; %s", (long)options->global_batch,
              (long)options->batch_size, multiples_around(options->global_batch, unit));
    fatal("--global-batch %ld is not a multiple of --batch-size %ld times %ld data-parallel groups, %ld; %s",
          (long)options->global_batch, (long)options->batch_size, (long)groups, (long)unit,
          multiples_around(options->global_batch, unit));
}

// The sizes of context-parallel groups that divide both, as "1, 2, 4".
static char *context_sizes(int processes, int64_t pieces_of) {
    char *list = format_string("1");
    for (int size = 2; size <= processes; size++) {
        if (processes % size != 0 || pieces_of % (2 * size) != 0) continue;
        char *longer = format_string("%s, %d", list, size);
        free(list);
        list = longer;
    }
    return list;
}

static void check_context(const Options *options, int processes) {
    const int64_t cp = options->cp, chunks = options->topk / options->topk_tile;
    if (cp == 1) return;
    const int64_t pieces_of = options->selection ? chunks : options->seq_len;
    if (processes % cp != 0)
        fatal("--cp %ld does not divide the %d processes that were started; these do: %s", (long)cp,
              processes, context_sizes(processes, pieces_of));
    if (options->seq_len % (2 * cp) != 0)
        fatal("--seq-len %ld cannot be cut into 2 x --cp %ld equal pieces; --seq-len %s",
              (long)options->seq_len, (long)cp, multiples_around(options->seq_len, 2 * cp));
    if (options->selection && chunks % (2 * cp) != 0)
        fatal("--cp %ld: its 2 x %ld pieces must hold whole chunks, of which --topk %ld / --topk-tile %ld "
              "makes %ld; with %d processes --cp may be %s",
              (long)cp, (long)cp, (long)options->topk, (long)options->topk_tile, (long)chunks, processes,
              context_sizes(processes, chunks));
}

void options_check(const Options *options, int processes) {
    if (!options->train_data[0] && !options->plan)
        fatal("--train-data is needed: a glob of token shards, for example --train-data "
              "'data/text_train_*.bin'");
    bool *dense = (bool *)host_allocate((size_t)options->config.layers, sizeof(bool), "dense layers");
    options_dense_layers(options, dense);
    free(dense);
    const LighthouseSettings lighthouse = options_lighthouse(options);
    char reason[512];
    if (options->selection && !lighthouse_valid(&lighthouse, options->seq_len, reason, sizeof(reason)))
        fatal("%s (or train dense with --selection off)", reason);
    check_context(options, processes);
    check_batch(options, processes);
}

// --- recording and printing -----------------------------------------------------------------------------

struct cJSON *options_record(const Options *options) {
    cJSON *record = cJSON_CreateObject();
    for (int i = 0; i < OPTIONS; i++) {
        const Option *option = &options_table[i];
        if (is_heading(option) || option->keeping == UNRECORDED) continue;
        char *text = value_text(options, option);
        if (!cJSON_AddStringToObject(record, option->name, text))
            fatal("out of host memory: recording the options");
        free(text);
    }
    return record;
}

char *options_recorded(const struct cJSON *record, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(record, name);
    return cJSON_IsString(item) ? format_string("%s", item->valuestring) : NULL;
}

void options_print(const Options *options, const struct cJSON *recorded) {
    for (int i = 0; i < OPTIONS; i++) {
        const Option *option = &options_table[i];
        if (is_heading(option)) {
            printf("%s\n", option->name);
            continue;
        }
        char *text = value_text(options, option);
        const char *before = recorded ? recorded_text(recorded, option) : NULL;
        printf("  %-18s %s", option->name, text[0] ? text : "-");
        if (before && strcmp(before, text) != 0)
            printf("   (changed: the checkpoint has %s)", before[0] ? before : "-");
        printf("\n");
        free(text);
    }
}
