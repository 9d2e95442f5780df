// Options, schedules, FLOP counts and the memory plan.
#include "test.h"

#include "model/activations.h"
#include "model/flops.h"
#include "run/options_advice.h"
#include "run/options_check.h"
#include "device/collectives.h"
#include "device/memory_plan.h"
#include "run/schedule.h"
#include "training/saves.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A command line, as one string of words, and the options of a checkpoint that it overrides.
typedef struct {
    const char *words;
    const cJSON *recorded;
} CommandLine;

static Options parse(CommandLine line) {
    char *copy = format_string("train_lighthouse %s", line.words);
    char *argv[64];
    int argc = 0;
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    argv[argc] = NULL;
    return options_parse(argc, argv, line.recorded); // copy stays: options may point into it
}

static void parse_and_check(void *argument) {
    Options options = parse(*(CommandLine *)argument);
    options_check(&options, 1);
}

static void check_refused(const char *words, const cJSON *recorded, const char *message) {
    CommandLine line = {words, recorded};
    check_dies(parse_and_check, &line, message);
}

static void defaults_are_the_published_run(void *unused) {
    (void)unused;
    CommandLine none = {"--train-data x", NULL};
    Options o = parse(none);
    check(o.seq_len == 98304 && o.global_batch == 32 && o.batch_size == 1, "context or batch");
    check(o.steps == 16000 && o.warmup_steps == 2000 && o.lr == 2e-3, "steps, warmup or lr");
    check(o.beta1 == 0.9 && o.beta2 == 0.95 && o.weight_decay == 0.1 && o.grad_clip == 1, "AdamW");
    check(o.config.layers == 30 && o.config.dim == 1024 && o.config.ffn_dim == 1536 &&
              o.config.vocab_size == 128256,
          "shape");
    check(o.selection && o.levels == 3 && o.pool == 4 && o.topk == 1536 && o.topk_tile == 128 &&
              !strcmp(o.dense_layers, "0,1,28,29"),
          "attention");
    check(!strcmp(o.out, "out") && !o.deterministic && !o.plan, "run");
}

static void shapes_start_from_the_preset(void *unused) {
    (void)unused;
    CommandLine line = {"--layers 9 --model tiny --rope-theta 5e5", NULL};
    Options o = parse(line);
    check(o.config.layers == 9 && o.config.dim == 128 && o.config.kv_heads == 2 && o.config.rope_theta == 5e5,
          "layers %ld dim %ld kv_heads %ld theta %g", (long)o.config.layers, (long)o.config.dim,
          (long)o.config.kv_heads, o.config.rope_theta);
}

static void dense_layers_by_default(void *unused) {
    (void)unused;
    static const char *const expected[] = {"0", "0,1", "0,1,2", "0,1,2,3", "0,1,3,4", "0,1,4,5"};
    for (size_t i = 0; i < COUNT_OF(expected); i++) {
        char *words = format_string("--layers %zu", i + 1);
        CommandLine line = {words, NULL};
        const Options o = parse(line);
        check(!strcmp(o.dense_layers, expected[i]), "of %zu layers: %s", i + 1, o.dense_layers);
        free(words);
    }
}

static void bad_values_are_refused(void *unused) {
    (void)unused;
    check_refused("--train-data x --learning-rate 1", NULL, "--learning-rate");
    check_refused("--train-data x --lrr 1", NULL, "did you mean --lr?");
    check_refused("--train-data x --steps", NULL, "--steps needs a value");
    check_refused("--train-data x --steps ten", NULL, "--steps ten: expected a whole number");
    check_refused("--train-data x --steps 10.5", NULL, "expected a whole number");
    check_refused("--train-data x --steps 99999999999999999999", NULL,
                  "--steps 99999999999999999999: expected a value from 0 to 9000000000000000");
    check_refused("--train-data x -steps 3", NULL,
                  "option -steps: options begin with two dashes; did you mean --steps?");
    check_refused("--train-data x --seed 1 -lr=3 --keep 2", NULL,
                  "option -lr=3: options begin with two dashes");
    check_refused("--train-data x --model tiny --separator-token 264", NULL,
                  "--separator-token 264: expected none, or a token of the vocabulary, 0 to 263");
    check_refused("--train-data x --separator-token -2", NULL, "--separator-token -2: expected none");
    check_refused("--train-data x --separator-token 9x", NULL, "--separator-token 9x: expected none");
    check_refused("--train-data x --separator-token 99999999999999999999", NULL, "expected none, or a token");
    check_refused("--train-data x --lr nan", NULL, "--lr nan: expected a number");
    check_refused("--train-data x --lr 1e-3x", NULL, "--lr 1e-3x: expected a number");
    check_refused("--train-data x --lr -1", NULL, "--lr -1: expected a value from 0");
    check_refused("--train-data x --beta2 1", NULL, "--beta2 1: expected a value");
    check_refused("--train-data x --keep 0", NULL, "--keep 0: expected a value from 1");
    check_refused("--train-data x --lr-schedule cos", NULL,
                  "--lr-schedule cos: expected one of constant|linear");
    check_refused("--train-data x --model 531M", NULL, "--model 531M: expected one of tiny|");
    check_refused("--train-data x --deterministic yes", NULL, "--deterministic yes: expected on or off");
    check_refused("--train-data x stray", NULL, "unexpected argument \"stray\"");
    check_refused("--train-data x --global-batch 7 --batch-size 2", NULL,
                  "--global-batch 7 is not a multiple");
    check_refused("--seq-len 128", NULL, "--train-data is needed");
    check_refused("--train-data x --dense-layers 0,30", NULL,
                  "--dense-layers 0,30: expected none, or layers from 0 to 29");
    check_refused("--train-data x --dense-layers 0,,1", NULL, "--dense-layers 0,,1: expected");
    check_refused("--train-data x --dense-layers rotate:0", NULL,
                  "--dense-layers rotate:0: expected rotate:R");
    check_refused("--train-data x --dense-layers rotate:", NULL, "--dense-layers rotate:: expected rotate:R");
    check_refused("--train-data x --dense-layers rotate:-6", NULL,
                  "--dense-layers rotate:-6: expected rotate:R");
    check_refused("--train-data x --dense-layers rotate:6,7", NULL, "--dense-layers rotate:6,7: expected");
    check_refused("--train-data x --dense-every -1", NULL, "--dense-every -1: expected a value from 0");
    check_refused("--train-data x --dense-first x", NULL, "--dense-first x: expected a whole number");
    check_refused("--train-data x --dense-span 5000", NULL,
                  "--dense-span 5000 does not divide --seq-len 98304; 4096 and 6144 do");
    check_refused("--train-data x --dense-span 98305", NULL,
                  "--dense-span 98305 does not divide --seq-len 98304; 98304 does");
    check_refused("--train-data x --dense-layers first", NULL, "--dense-layers first: expected");
    check_refused("--train-data x --topk 1600", NULL, "--topk 1600 must be a multiple of --topk-tile 128");
}

static void resume_restores_and_overrides(void *unused) {
    (void)unused;
    CommandLine first = {
        "--train-data a --model tiny --layers 3 --seq-len 256 --lr 0.000123456789012345 --seed 7 "
        "--lr-schedule wsd --deterministic on --steps 20 --out there --device cpu",
        NULL};
    Options before = parse(first);
    before.dtype = DTYPE_FLOAT32; // as the run chooses it for its device
    cJSON *record = options_record(&before);
    check(!cJSON_GetObjectItem(record, "out") && !cJSON_GetObjectItem(record, "device"),
          "what belongs to one start was recorded");

    CommandLine again = {"--resume there/step_00000010 --steps 40", record};
    Options after = parse(again);
    check(after.config.layers == 3 && after.config.dim == 128 && after.seq_len == 256 && after.seed == 7,
          "restored");
    check(after.lr == before.lr && after.lr_schedule == SCHEDULE_WSD && after.deterministic, "restored");
    check(after.steps == 40, "--steps on the command line was overridden");
    check(!strcmp(after.out, "there"), "--out should be where the checkpoint is, is %s", after.out);
    check(after.device == DEVICE_AUTO, "--device should not be restored");

    check_refused("--resume latest --seq-len 512", record,
                  "--seq-len 512: the checkpoint was trained with 256");
    check_refused("--resume latest --layers 4", record, "--layers 4: the checkpoint was trained with 3");
    check_refused("--resume latest --model 10M", record, "the checkpoint was trained with");
    check_refused("--resume latest --seed 8", record, "--seed 8: the checkpoint was trained with 7");
    cJSON_Delete(record);
}

// A checkpoint of a program without the option was trained as that program did.
static void what_is_not_on_record_is_as_it_was(void *unused) {
    (void)unused;
    CommandLine first = {"--train-data a --rope-pooling after", NULL};
    const Options before = parse(first);
    cJSON *record = options_record(&before);
    CommandLine again = {"--resume there/step_00000010", record};
    check(parse(again).rope_pooling == ROPE_AFTER_POOLING, "--rope-pooling was not restored");
    cJSON_DeleteItemFromObject(record, "rope-pooling");
    check(parse(again).rope_pooling == ROPE_BEFORE_POOLING, "--rope-pooling is not on record");
    cJSON_Delete(record);
}

// Refused on several processes, where a span has to fit the pieces that a process holds.
static void check_on_four(void *argument) {
    Options options = parse(*(CommandLine *)argument);
    options_check(&options, 4);
}

static void spans_fit_pieces(void *unused) {
    (void)unused;
    CommandLine too_long = {"--train-data x --cp 2 --dense-span 49152", NULL};
    check_dies(
        check_on_four, &too_long,
        "--dense-span 49152 does not divide the pieces of 24576 tokens into which --cp 2 cuts --seq-len "
        "98304; 24576 does");
    CommandLine fits = {"--train-data x --cp 2 --dense-span 24576", NULL},
                off = {"--train-data x --selection off --dense-every 3 --dense-span 5000 --seq-len 40", NULL};
    check_on_four(&fits);
    check_on_four(&off);
}

static void print_resumed(void *argument) {
    const CommandLine *line = (const CommandLine *)argument;
    const Options options = parse(*line);
    options_print(&options, line->recorded);
}

// What an older program's checkpoint does not record is as that program did it, and is named.
static void what_a_checkpoint_lacks_is_named(void *unused) {
    (void)unused;
    CommandLine first = {"--train-data a --dense-every 8 --dense-first 9", NULL};
    const Options before = parse(first);
    cJSON *record = options_record(&before);
    cJSON_DeleteItemFromObject(record, "dense-every");
    CommandLine again = {"--resume latest", record};
    const Options after = parse(again);
    check(after.dense_every == 0 && after.dense_first == 9, "every %ld, first %ld", (long)after.dense_every,
          (long)after.dense_first);
    char *said = printed_by(print_resumed, &again);
    check(strstr(said, "\nnot as in the checkpoint\n  --dense-every 0 (not in the checkpoint)\n") != NULL,
          "not named in %s", said);
    check(strstr(said, "dense-first        9\n") != NULL, "9 is not as it was in %s", said);
    free(said);
    cJSON_Delete(record);
}

// Each option has the same record whatever its default does later, so one that is missing is named even if it has the
// value of today's default. What was changed has a line of its own, and only that.
static void what_changed_stands_out(void *unused) {
    (void)unused;
    CommandLine first = {"--train-data a --steps 20", NULL};
    const Options before = parse(first);
    cJSON *record = options_record(&before);
    CommandLine again = {"--resume latest --steps 40 --selection off", record};
    char *said = printed_by(print_resumed, &again);
    const char *lines = strstr(said, "\nnot as in the checkpoint\n");
    check(lines && !strcmp(lines,
                           "\nnot as in the checkpoint\n  --selection off (changed: the checkpoint has on)\n"
                           "  --steps 40 (changed: the checkpoint has 20)\n"),
          "%s", said);
    free(said);
    cJSON_DeleteItemFromObject(record, "grad-clip");
    CommandLine same = {"--resume latest", record};
    said = printed_by(print_resumed, &same);
    lines = strstr(said, "\nnot as in the checkpoint\n");
    check(lines && !strcmp(lines, "\nnot as in the checkpoint\n  --grad-clip 1 (not in the checkpoint)\n"),
          "%s", said);
    free(said);
    cJSON_Delete(record);
}

static void warn_and_end(void *record) {
    options_warn_unknown((const cJSON *)record);
    fatal("the end");
}

static void unknown_options_are_a_warning(void *unused) {
    (void)unused;
    CommandLine first = {"--train-data a", NULL};
    const Options before = parse(first);
    cJSON *record = options_record(&before);
    cJSON_AddStringToObject(record, "muon", "on");
    CommandLine again = {"--resume latest", record};
    check(parse(again).steps == 16000, "it is not resumed");
    check_dies(warn_and_end, record,
               "warning: the checkpoint records --muon on, which this program does not know");
    cJSON_Delete(record);
}

// A command line, what the data hold, and what is warned of; "": nothing.
typedef struct {
    const char *words;
    DataSummary data;
    bool resumed;
    const char *warning;
} Advice;

static const Advice advices[] = {
    {"--steps 3", {0}, false, "--warmup-steps 2000: the run has 3 steps, and ends at 0.0015 of --lr 0.002"},
    {"--steps 2000", {0}, false, ""},
    {"--steps 0", {0}, false, ""},
    {"--steps 2000 --lr-schedule cosine",
     {0},
     false,
     "--lr-schedule cosine has no effect: none of 2000 steps follows"},
    {"--steps 2001 --lr-schedule cosine", {0}, false, ""},
    {"--global-batch 64", {63, 256}, true, "--global-batch 64: the data have 63 samples"},
    {"--global-batch 64", {64, 256}, true, ""},
    {"",
     {1000, 256},
     false,
     "--vocab-size 128256: the largest token seen is 256, so 262.1M of the parameters"},
    {"", {1000, 256}, false, "--vocab-size 264 would do"},
    {"", {1000, 100000}, false, ""},
    {"--model tiny", {1000, 90}, false, ""},
};

// Writes the warnings to standard output.
static void print_advice(void *argument) {
    const Advice *advice = (const Advice *)argument;
    const CommandLine line = {advice->words, NULL};
    const Options options = parse(line);
    const int errors = dup(STDERR_FILENO);
    dup2(STDOUT_FILENO, STDERR_FILENO);
    options_advise(&options, advice->data, advice->resumed);
    dup2(errors, STDERR_FILENO);
    close(errors);
}

static void odd_options_are_a_warning(void *unused) {
    (void)unused;
    for (size_t i = 0; i < COUNT_OF(advices); i++) {
        Advice advice = advices[i];
        char *said = printed_by(print_advice, &advice);
        check(advice.warning[0] ? strstr(said, advice.warning) != NULL : !said[0], "of %s: %s", advice.words,
              said);
        free(said);
    }
}

static void separators_suit_the_vocabulary(void *unused) {
    (void)unused;
    static const struct {
        const char *words;
        int64_t largest_token, separator;
    } cases[] = {{"--model tiny", 256, 256},
                 {"--model tiny", 63, 256},
                 {"", 256, 256},
                 {"", 128255, -1},
                 {"--vocab-size 64", 63, -1},
                 {"--vocab-size 256", 255, -1},
                 {"--vocab-size 257", 256, 256},
                 {"--separator-token 128001", 128255, 128001},
                 {"--separator-token -1", 9, -1},
                 {"--separator-token none", 9, -1}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const CommandLine line = {cases[i].words, NULL};
        Options options = parse(line);
        options_settle_separator(&options, cases[i].largest_token);
        check(options_separator(&options) == cases[i].separator, "%s with tokens to %ld: separator %ld",
              cases[i].words, (long)cases[i].largest_token, (long)options_separator(&options));
    }
}

// Deterministic runs keep NCCL from sums whose order is not fixed, unless the user chose.
static void deterministic_runs_set_nccl(void *unused) {
    (void)unused;
    unsetenv("NCCL_NVLS_ENABLE");
    setenv("NCCL_COLLNET_ENABLE", "1", 1);
    collectives_deterministic();
    const char *nvls = getenv("NCCL_NVLS_ENABLE"), *collnet = getenv("NCCL_COLLNET_ENABLE");
    check(nvls && !strcmp(nvls, "0"), "NVLS is %s", nvls ? nvls : "not set");
    check(collnet && !strcmp(collnet, "1"), "what the user chose is %s", collnet ? collnet : "not set");
    unsetenv("NCCL_NVLS_ENABLE");
    unsetenv("NCCL_COLLNET_ENABLE");
}

static void room_is_asked_for_the_checkpoints_to_come(void *unused) {
    (void)unused;
    static const struct {
        const char *words;
        int64_t step, existing, ahead;
    } cases[] = {
        {"--steps 16000", 0, 0, 3}, // of the two that are kept the older goes when the third is there
        {"--steps 16000", 2000, 2, 1},
        {"--steps 1000", 0, 0, 1},
        {"--steps 1500", 0, 0, 2},
        {"--steps 16000 --save-every 0", 0, 0, 1},
        {"--steps 16000 --keep 5", 0, 0, 6},
        {"--steps 16000 --keep-every 4000", 0, 0, 7},
        {"--steps 0", 0, 0, 1},
        {"--steps 10", 10, 1, 0},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const CommandLine line = {cases[i].words, NULL};
        const Options options = parse(line);
        const int64_t ahead = saves_ahead(&options, cases[i].step, cases[i].existing);
        check(ahead == cases[i].ahead, "%s at step %ld: %ld checkpoints", cases[i].words, (long)cases[i].step,
              (long)ahead);
    }
}

static void schedules_have_their_values(void *unused) {
    (void)unused;
    static const struct {
        ScheduleKind kind;
        int64_t step;
        double expected;
    } cases[] = {
        // 10 steps of warmup, 100 in all, peak 2, final 0.1 of it: warmup is the same for every kind
        {SCHEDULE_CONSTANT, 0, 0.2},
        {SCHEDULE_COSINE, 4, 1.0},
        {SCHEDULE_LINEAR, 9, 2.0},
        {SCHEDULE_CONSTANT, 10, 2.0},
        {SCHEDULE_CONSTANT, 99, 2.0},
        {SCHEDULE_LINEAR, 54, 1.1}, // half of the 90 steps from step 9 to step 99
        {SCHEDULE_LINEAR, 99, 0.2},
        {SCHEDULE_COSINE, 54, 1.1},
        {SCHEDULE_COSINE, 24, 0.2 + 1.8 * 0.5 * (1 + 0.8660254037844387)}, // a sixth: cos 30 degrees
        {SCHEDULE_COSINE, 99, 0.2},
        {SCHEDULE_WSD, 79, 2.0}, // decays over the last fifth: from step 79
        {SCHEDULE_WSD, 89, 1.1},
        {SCHEDULE_WSD, 99, 0.2},
        {SCHEDULE_LINEAR, 150, 0.2}, // beyond the end it stays there
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Schedule schedule = {cases[i].kind, 2.0, 0.1, 0.2, 10, 100};
        double value = schedule_learning_rate(&schedule, cases[i].step);
        check(fabs(value - cases[i].expected) < 1e-12, "kind %d step %ld: %.15g, expected %.15g",
              cases[i].kind, (long)cases[i].step, value, cases[i].expected);
    }
    Schedule cold = {SCHEDULE_LINEAR, 1, 0, 0, 0, 5}; // no warmup: the peak is at the first step
    check(schedule_learning_rate(&cold, 0) == 1 && schedule_learning_rate(&cold, 4) == 0, "without warmup");
}

static void flops_are_counted(void *unused) {
    (void)unused;
    // By hand: 2 layers of width 8, 4 heads of 2, 2 kv heads, ffn 12, vocabulary 10, 7 tokens.
    ModelConfig config = {10, 8, 2, 4, 2, 12, 1e4, 1e-5};
    FlopsPerToken flops = flops_per_token(&config, 7, 7, 0, 0);
    const double weights = 2 * (8 * 16 + 8 * 8 + 3 * 8 * 12) + 10 * 8;
    check(flops.linear == 6 * weights, "linear: %g, expected %g", flops.linear, 6 * weights);
    // A token sees (1 + … + 7)/7 = 4 keys: 2 products · 2 operations · 4 heads · 2 · 4 keys, per layer,
    // times 3.
    check(flops.attention == 3 * 2 * (2 * 2 * 4 * 2 * 4), "attention: %g", flops.attention);
    // One of the two layers on a subsequence of 3 entries: 6 pairs instead of 28.
    // In spans of one token each sees itself only.
    flops = flops_per_token(&config, 7, 1, 0, 0);
    check(flops.attention == 3 * 2 * (2 * 2 * 4 * 2), "attention in spans: %g", flops.attention);
    flops = flops_per_token(&config, 7, 7, 1, 3);
    check_close("attention with a Lighthouse layer", &flops.attention,
                (double[]){3.0 * (2 * 2 * 4 * 2) * (28 + 6) / 7}, 1, 1e-15);
}

static void recompute_levels_keep_less_and_less(void *unused) {
    (void)unused;
    const ModelConfig *config = model_preset("530M");
    const LighthouseSettings settings = {3, 4, 2048, 128};
    const LighthouseShape shape = lighthouse_shape(&settings, 1, 32768, 8, 8, 128);
    const ActivationSettings activations = {.batch = 1, .seq_len = 32768, .lighthouse = &shape};
    for (int layer = LAYER_DENSE; layer <= LAYER_LIGHTHOUSE; layer++) {
        size_t before = SIZE_MAX;
        for (int level = RECOMPUTE_NONE; level < RECOMPUTE_LEVELS; level++) {
            const char *name = recompute_names[level];
            size_t kept = 0;
            for (int kind = 0; kind < ACTIVATION_KINDS; kind++)
                if (activation_kept((ActivationKind)kind, (LayerKind)layer, (RecomputeLevel)level))
                    kept += activation_bytes((ActivationKind)kind, config, &activations, STORAGE_BFLOAT16);
            check(kept < before, "%s keeps %zu bytes a layer, the level before %zu", name, kept, before);
            before = kept;
        }
        const size_t input = (size_t)32768 * 1024 * 2;
        const size_t selection =
            layer == LAYER_LIGHTHOUSE ? (size_t)(8 * shape.pyramid) * sizeof(int32_t) : 0;
        check(before == input + selection, "block keeps the layer's input and selection, not %zu bytes",
              before);
    }
    check(!recompute_names[RECOMPUTE_LEVELS], "a name for each level");
}

static void allocate(void *argument) {
    memory_plan_allocate((MemoryPlan *)argument);
}

static void plan_names_what_does_not_fit(void *unused) {
    (void)unused;
    Device *device = cpu_device_create(STORAGE_FLOAT32);
    MemoryPlan *plan = memory_plan_create(device);
    const size_t first = memory_plan_add(plan, 1000, "something small");
    const size_t none = memory_plan_add(plan, 0, "nothing");
    const size_t second = memory_plan_add(plan, 8, "buffer %d", 2);
    check(none == NO_BUFFER && memory_plan_bytes(plan) == 1024 + 256, "%zu bytes", memory_plan_bytes(plan));
    check(memory_plan_fits(plan), "1280 bytes should fit");
    check(memory_at(plan, first) == NULL, "an address before there is memory");
    memory_plan_allocate(plan);
    check(memory_at(plan, none) == NULL, "memory for nothing");
    check((char *)memory_at(plan, second) - (char *)memory_at(plan, first) == 1024, "overlapping buffers");
    memory_plan_free(plan);
    plan = memory_plan_create(device);
    memory_plan_add(plan, 1000, "something small");
    memory_plan_add(plan, (size_t)1 << 50, "layer %d of too much", 3);
    memory_plan_add(plan, 1000, "what comes after it");
    check(!memory_plan_fits(plan), "a petabyte should not fit");
    check_dies(allocate, plan, "no room for layer 3 of too much (1024.00 TiB)");
    memory_plan_free(plan);
    device->destroy(device);
}

void test_options(void) {
    test_run("options: defaults are the published run", defaults_are_the_published_run, NULL);
    test_run("options: shapes start from the preset", shapes_start_from_the_preset, NULL);
    test_run("options: the first two and last two layers are dense", dense_layers_by_default, NULL);
    test_run("options: bad values are refused", bad_values_are_refused, NULL);
    test_run("options: resume restores, overrides, and refuses other shapes", resume_restores_and_overrides,
             NULL);
    test_run("options: what is not on record is as it was", what_is_not_on_record_is_as_it_was, NULL);
    test_run("options: spans fit the pieces that a process holds", spans_fit_pieces, NULL);
    test_run("options: what a checkpoint lacks is named", what_a_checkpoint_lacks_is_named, NULL);
    test_run("options: what changed stands out", what_changed_stands_out, NULL);
    test_run("options: unknown ones on record are a warning", unknown_options_are_a_warning, NULL);
    test_run("options: odd ones are a warning", odd_options_are_a_warning, NULL);
    test_run("options: the separator suits the vocabulary", separators_suit_the_vocabulary, NULL);
    test_run("options: deterministic runs set NCCL", deterministic_runs_set_nccl, NULL);
    test_run("saves: room for the checkpoints to come", room_is_asked_for_the_checkpoints_to_come, NULL);
    test_run("schedule: values of every kind", schedules_have_their_values, NULL);
    test_run("flops: counted by hand", flops_are_counted, NULL);
    test_run("activations: recompute levels keep less and less", recompute_levels_keep_less_and_less, NULL);
    test_run("plan: names what does not fit", plan_names_what_does_not_fit, NULL);
}
