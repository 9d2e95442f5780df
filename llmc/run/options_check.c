#include "run/options_check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// --- what follows from options ---

LighthouseSettings options_lighthouse(const Options *options) {
    LighthouseSettings settings = {options->levels, options->pool, options->topk, options->topk_tile};
    return settings;
}

GuardSettings options_guard(const Options *options) {
    GuardSettings settings = {options->max_nonfinite, options->skip_outliers, options->outlier_window};
    return settings;
}

// The layer number at *text, which is moved behind it and a comma; -1 if there is none below `layers`.
static int64_t next_layer(const char **text, int64_t layers) {
    char *end;
    const int64_t layer = strtoll(*text, &end, 10);
    if (end == *text || (*end != ',' && *end != 0) || layer < 0 || layer >= layers) return -1;
    *text = *end == ',' && end[1] != 0 ? end + 1 : end;
    return layer;
}

int64_t options_dense_rotate(const Options *options) {
    const char prefix[] = "rotate:", *text = options->dense_layers;
    if (strncmp(text, prefix, strlen(prefix)) != 0) return 0;
    text += strlen(prefix);
    const size_t digits = strspn(text, "0123456789");
    const int64_t rotate = digits > 0 && text[digits] == 0 ? strtoll(text, NULL, 10) : 0;
    if (rotate < 1)
        fatal("--dense-layers %s: expected rotate:R with a whole number R from 1, for example rotate:%ld",
              options->dense_layers, (long)options->config.layers);
    return rotate;
}

void options_dense_layers(const Options *options, bool *dense) {
    const int64_t layers = options->config.layers;
    memset(dense, 0, (size_t)layers * sizeof(bool));
    if (!strcmp(options->dense_layers, "none") || options_dense_rotate(options) > 0) return;
    for (const char *text = options->dense_layers;;) {
        const int64_t layer = next_layer(&text, layers);
        if (layer < 0)
            fatal("--dense-layers %s: expected none, or layers from 0 to %ld as in 0,1,%ld, or rotate:R",
                  options->dense_layers, (long)(layers - 1), (long)(layers - 1));
        dense[layer] = true;
        if (*text == 0) return;
    }
}

int64_t options_separator(const Options *options) {
    const char *text = options->separator;
    if (!strcmp(text, "auto") || !strcmp(text, "none") || !strcmp(text, "-1")) return -1;
    const int64_t vocab_size = options->config.vocab_size;
    char *end;
    errno = 0;
    const int64_t token = strtoll(text, &end, 10);
    if (end == text || *end != 0 || errno != 0 || token < 0 || token >= vocab_size)
        fatal("--separator-token %s: expected none, or a token of the vocabulary, 0 to %ld", text,
              (long)vocab_size - 1);
    return token;
}

void options_settle_separator(Options *options, int64_t largest_token) {
    const int64_t byte_separator = 256;
    if (strcmp(options->separator, "auto") != 0) return;
    const bool bytes = largest_token <= byte_separator && options->config.vocab_size > byte_separator;
    options->separator = bytes ? "256" : "none";
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

// "64 and 128 do": of the divisors of a length around a value that is none.
static char *divisors_around(int64_t value, int64_t length) {
    int64_t below = min_i64(value, length), above = value;
    while (length % below != 0) below--;
    if (value > length) return format_string("%ld does", (long)below);
    while (length % above != 0) above++;
    return format_string("%ld and %ld do", (long)below, (long)above);
}

// Spans must be whole on a rank, so that attention within them needs no other.
static void check_span(const Options *options) {
    const int64_t span = options->dense_span, cp = options->cp;
    const int64_t length = cp > 1 ? options->seq_len / (2 * cp) : options->seq_len;
    if (!options->selection || span == 0 || length % span == 0) return;
    if (cp == 1)
        fatal("--dense-span %ld does not divide --seq-len %ld; %s", (long)span, (long)options->seq_len,
              divisors_around(span, length));
    fatal(
        "--dense-span %ld does not divide the pieces of %ld tokens into which --cp %ld cuts --seq-len %ld; %s",
        (long)span, (long)length, (long)cp, (long)options->seq_len, divisors_around(span, length));
}

void options_check(const Options *options, int processes) {
    if (!options->train_data[0] && !options->plan)
        fatal("--train-data is needed: a glob of token shards, for example --train-data "
              "'data/text_train_*.bin'");
    bool *dense = host_allocate((size_t)options->config.layers, sizeof(bool), "dense layers");
    options_dense_layers(options, dense);
    free(dense);
    options_separator(options);
    const LighthouseSettings lighthouse = options_lighthouse(options);
    Reason reason;
    if (options->selection && !lighthouse_valid(&lighthouse, options->seq_len, &reason))
        fatal("%s (or train dense with --selection off)", reason.text);
    check_context(options, processes);
    check_span(options);
    check_batch(options, processes);
}
