#include "common.h"

#include "base/files.h"
#include "base/json.h"
#include "run/options_check.h"
#include "training/attention_schedule.h"
#include "training/training.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

// --- a model --------------------------------------------------------------------------------------------

static Options read_options(const Checkpoint *checkpoint, const char *device) {
    char *words[] = {"evaluate", "--device", format_string("%s", device), "--batch-size", "1", "--cp",
                     "1",        NULL};
    Options options = options_parse((int)COUNT_OF(words) - 1, words, checkpoint->options);
    // A GPU computes in bfloat16 alone.
    if (options.device == DEVICE_AUTO && options.dtype != DTYPE_BFLOAT16) options.device = DEVICE_CPU;
    free(words[2]);
    return options;
}

// The layers' kinds in the step that the checkpoint was saved after.
static LayerKind *kinds_as_trained(const Options *o, const Progress *progress) {
    LayerKind *kinds = host_allocate((size_t)o->config.layers, sizeof(LayerKind), "layer kinds");
    AttentionSchedule schedule = attention_schedule_create(o);
    attention_schedule_layers(&schedule, max_i64(progress->step - 1, 0), kinds);
    attention_schedule_free(&schedule);
    return kinds;
}

static void load_weights(Evaluation *e) {
    e->weights_memory = memory_plan_create(e->device);
    e->weights = weights_create(e->device, &e->options.config, 1, e->weights_memory);
    memory_plan_allocate(e->weights_memory);
    const TrainingState state = {.device = e->device,
                                 .config = &e->options.config,
                                 .table = &e->weights->table,
                                 .weights = weights_values_from(e->weights, 0)};
    Reason reason;
    if (!checkpoint_load_weights(&e->checkpoint, &state, &reason)) fatal("%s", reason.text);
}

Evaluation evaluation_open(int *argc, char ***argv, const char *directory, const char *device) {
    Evaluation e = {.communicator = communicator_create(argc, argv)};
    if (e.communicator.size > 1) fatal("%d processes were started: this runs in one", e.communicator.size);
    Reason reason;
    if (!checkpoint_read(directory, &e.checkpoint, &reason))
        fatal("%s: not a good checkpoint: %s", directory, reason.text);
    e.options = read_options(&e.checkpoint, device);
    e.device = training_open_device(&e.options, &e.communicator);
    e.layer_kinds = kinds_as_trained(&e.options, &e.checkpoint.progress);
    load_weights(&e);
    return e;
}

static void free_decoder(Evaluation *e) {
    if (!e->decoder) return;
    decoder_free(e->decoder);
    memory_plan_free(e->decoder_memory);
    e->decoder = NULL;
}

void evaluation_close(Evaluation *e) {
    free_decoder(e);
    weights_free(e->weights);
    memory_plan_free(e->weights_memory);
    free(e->layer_kinds);
    e->device->destroy(e->device);
    checkpoint_close(&e->checkpoint);
    communicator_destroy(&e->communicator);
}

void evaluation_set_length(Evaluation *e, int64_t seq_len, bool selection) {
    const size_t layers = (size_t)e->options.config.layers;
    const LighthouseSettings lighthouse = options_lighthouse(&e->options);
    Reason reason;
    if (selection && !lighthouse_valid(&lighthouse, seq_len, &reason)) fatal("%s", reason.text);
    LayerKinds *kinds = host_allocate(layers, sizeof(LayerKinds), "layer kinds");
    for (size_t layer = 0; layer < layers; layer++)
        kinds[layer] = 1u << (selection ? e->layer_kinds[layer] : LAYER_DENSE);
    const DecoderSettings settings = {.batch = 1,
                                      .seq_len = seq_len,
                                      .micro_steps = 1,
                                      .recompute = RECOMPUTE_BLOCK,
                                      .deterministic = e->options.deterministic,
                                      .layer_kinds = kinds,
                                      .lighthouse = lighthouse,
                                      .scorer = &scorers[e->options.scorer],
                                      .rope_pooling = e->options.rope_pooling};
    free_decoder(e);
    e->decoder_memory = memory_plan_create(e->device);
    e->decoder = decoder_create(e->device, &e->options.config, &settings, e->weights, e->decoder_memory);
    free(kinds);
    memory_plan_allocate(e->decoder_memory);
    decoder_start(e->decoder);
}

double *evaluation_logits(Evaluation *e, const int32_t *inputs, int64_t first_row, int64_t count) {
    const StorageType storage = e->device->ops->storage;
    const size_t values = (size_t)(count * e->options.config.vocab_size);
    void *stored = host_allocate(values, storage_size(storage), "logits");
    double *logits = host_allocate(values, sizeof(double), "logits");
    decoder_logits(e->decoder, stored, inputs, first_row, count);
    storage_to_double(logits, stored, storage, values);
    free(stored);
    return logits;
}

// --- command lines --------------------------------------------------------------------------------------

int next_option(int argc, char **argv, const struct option *options, const char *help) {
    opterr = 0;
    const int value = getopt_long(argc, argv, ":", options, NULL);
    if (value == ':') fatal("option %s needs a value; see --help", argv[optind - 1]);
    if (value == '?') fatal("unknown or ambiguous option %s; see --help", argv[optind - 1]);
    if (value == 'h') {
        fputs(help, stdout);
        exit(0);
    }
    return value;
}

char **other_arguments(int argc, char **argv, int count, const char *usage) {
    if (argc - optind != count)
        fatal("%d arguments beside the options: expected %s; see --help", argc - optind, usage);
    return argv + optind;
}

// The number at *text, which is moved behind it and, unless it is the last, the comma.
static int64_t next_integer(const char *option, const char *whole, const char **text, int64_t minimum,
                            int64_t maximum) {
    char *end;
    errno = 0;
    const int64_t value = strtoll(*text, &end, 10);
    if (end == *text || errno != 0 || (*end != 0 && (*end != ',' || end[1] == 0)) || value < minimum ||
        value > maximum)
        fatal("%s %s: expected %s from %ld to %ld", option, whole,
              strchr(whole, ',') ? "whole numbers with commas between them" : "a whole number", (long)minimum,
              (long)maximum);
    *text = *end == ',' ? end + 1 : end;
    return value;
}

int64_t parse_integer(const char *option, const char *text, int64_t minimum, int64_t maximum) {
    if (strchr(text, ',')) fatal("%s %s: expected one whole number", option, text);
    const char *rest = text;
    return next_integer(option, text, &rest, minimum, maximum);
}

IntegerList integers_append(IntegerList list, int64_t value) {
    list.values = realloc(list.values, (size_t)(list.count + 1) * sizeof(int64_t));
    if (!list.values) fatal("out of host memory: a list of numbers");
    list.values[list.count++] = value;
    return list;
}

IntegerList parse_integers(const char *option, const char *text, int64_t minimum, int64_t maximum) {
    IntegerList list = {0};
    const char *rest = text;
    do {
        const int64_t value = next_integer(option, text, &rest, minimum, maximum);
        if (list.count > 0 && value <= list.values[list.count - 1])
            fatal("%s %s: expected rising numbers, each once", option, text);
        list = integers_append(list, value);
    } while (*rest);
    return list;
}

// --- JSON -----------------------------------------------------------------------------------------------

void json_add_integers(struct cJSON *json, const char *name, IntegerList list) {
    cJSON *array = cJSON_AddArrayToObject(json, name);
    for (int i = 0; i < list.count; i++)
        cJSON_AddItemToArray(array, cJSON_CreateNumber((double)list.values[i]));
}

void json_write(const char *path, struct cJSON *json) {
    char *text = json_text(json, true);
    if (path && !file_replace_text(path, text)) fatal("cannot write %s: %s", path, strerror(errno));
    free(text);
    cJSON_Delete(json);
}
