#include "run/options.h"

#include "base/names.h"
#include "base/version.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <getopt.h>
#include <libgen.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *field(const Options *options, const Option *option) {
    return (char *)options + option->offset;
}

// --- values ---------------------------------------------------------------------------------------------

static void store_number(Options *options, const Option *option, const char *text) {
    char *end;
    errno = 0;
    double value;
    int64_t whole = 0;
    if (option->type == OPTION_INTEGER) {
        whole = strtoll(text, &end, 10);
        value = (double)whole;
    } else {
        value = strtod(text, &end);
    }
    const bool overflow = errno == ERANGE && option->type == OPTION_INTEGER;
    if (end == text || *end != 0 || (errno != 0 && !overflow) || !isfinite(value))
        fatal("--%s %s: expected %s, for example --%s %s", option->name, text,
              option->type == OPTION_INTEGER ? "a whole number" : "a number", option->name,
              option->fallback[0]              ? option->fallback
              : option->type == OPTION_INTEGER ? "8"
                                               : "0.5");
    if (value < option->minimum || value > option->maximum || overflow)
        fatal("--%s %s: expected a value from %.16g to %.16g", option->name, text, option->minimum,
              option->maximum);
    if (option->type == OPTION_INTEGER)
        *(int64_t *)field(options, option) = whole;
    else
        *(double *)field(options, option) = value;
}

// The index among the names; refuses any other text.
static int choice(const Option *option, const char *text) {
    const int index = name_index(option->choices, text);
    if (index < 0) fatal("--%s %s: expected one of %s", option->name, text, names_joined(option->choices));
    return index;
}

static void store(Options *options, const Option *option, const char *text) {
    void *value = field(options, option);
    const bool on = !strcmp(text, "on");
    switch (option->type) {
        case OPTION_INTEGER:
        case OPTION_REAL: store_number(options, option, text); break;
        case OPTION_CHOICE: *(int *)value = choice(option, text); break;
        case OPTION_TEXT: *(char **)value = format_string("%s", text); break;
        case OPTION_ON_OFF:
            if (!on && strcmp(text, "off") != 0) fatal("--%s %s: expected on or off", option->name, text);
            *(bool *)value = on;
            break;
        case OPTION_FLAG: *(bool *)value = on; break;
    }
}

// The value as text that `store` reads back to the same value; the caller frees it.
static char *value_text(const Options *options, const Option *option) {
    const void *value = field(options, option);
    switch (option->type) {
        case OPTION_INTEGER: return format_string("%ld", (long)*(const int64_t *)value);
        case OPTION_REAL: {
            char *text = format_string("%.15g", *(const double *)value);
            if (strtod(text, NULL) == *(const double *)value) return text;
            free(text);
            return format_string("%.17g", *(const double *)value);
        }
        case OPTION_TEXT: return format_string("%s", *(const char *const *)value);
        case OPTION_CHOICE: return format_string("%s", option->choices[*(const int *)value]);
        case OPTION_ON_OFF:
        case OPTION_FLAG: break;
    }
    return format_string("%s", *(const bool *)value ? "on" : "off");
}

static const char *recorded_text(const struct cJSON *recorded, const Option *option) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(recorded, option->name);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

// The value where the command line gives none.
static const char *value_not_given(const Option *option, const struct cJSON *recorded) {
    if (!recorded || option->keeping == UNRECORDED) return option->fallback;
    const char *before = recorded_text(recorded, option);
    if (before) return before;
    return option->absent ? option->absent : option->fallback;
}

// --- help -----------------------------------------------------------------------------------------------

static void print_help(void) {
    printf("train_lighthouse: pretrains a Llama-style decoder at long context\n\n"
           "usage: train_lighthouse --train-data GLOB [options]\n");
    for (int i = 0; i < option_count; i++) {
        const Option *option = &option_table[i];
        if (option->group) printf("\n%s\n", option->group);
        char left[64];
        snprintf(left, sizeof(left), "--%s %s", option->name, option->unit ? option->unit : "");
        printf("  %-28s %s", left, option->help);
        if (option->type == OPTION_CHOICE) {
            char *names = names_joined(option->choices);
            printf("; %s", names);
            free(names);
        }
        if (option->keeping == SHAPE)
            printf(" (default: the preset's)");
        else if (option->fallback[0] && option->type != OPTION_FLAG)
            printf(" (default %s)", option->fallback);
        printf("\n");
    }
    printf("\n  %-28s this text\n", "--help");
    printf("  %-28s name and version of the program\n", "--version");
}

// Whether a word is this option, or its first letters that no other option has.
static bool is_option(const char *word, const char *option, const char *shortest) {
    return strlen(word) >= strlen(shortest) && !strncmp(word, option, strlen(word));
}

void options_help(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const bool version = is_option(argv[i], "--version", "--vers");
        const bool help = is_option(argv[i], "--help", "--hel") || is_option(argv[i], "-help", "-h");
        if (!version && !help) continue;
        if (version)
            printf("%s %s\n", PROGRAM_NAME, PROGRAM_VERSION);
        else
            print_help();
        exit(0);
    }
}

// --- parsing --------------------------------------------------------------------------------------------

// The likeliest option meant by a name there is none of: the one with the longest common start.
static const char *nearest_name(const char *wrong) {
    const char *best = "help";
    size_t best_common = 0;
    for (int i = 0; i < option_count; i++) {
        size_t common = 0;
        while (wrong[common] && wrong[common] == option_table[i].name[common]) common++;
        if (common <= best_common) continue;
        best = option_table[i].name;
        best_common = common;
    }
    return best;
}

NORETURN static void refuse_unknown(const char *word) {
    const size_t dashes = strspn(word, "-");
    const char *name = word + dashes;
    if (dashes == 1)
        fatal("unknown option %s: options begin with two dashes; did you mean --%s? See --help", word,
              nearest_name(name));
    fatal("unknown or ambiguous option %s; did you mean --%s? See --help", word, nearest_name(name));
}

// Fills texts[i] with the value given for option i on the command line.
static void read_command_line(int argc, char **argv, const char *texts[]) {
    struct option *longs =
        (struct option *)host_allocate((size_t)option_count + 3, sizeof(struct option), "the options");
    int count = 0;
    for (int i = 0; i < option_count; i++) {
        longs[count].name = option_table[i].name;
        longs[count].has_arg = option_table[i].type == OPTION_FLAG ? no_argument : required_argument;
        longs[count++].val = 256 + i;
    }
    longs[count++].name = "help"; // answered before, by options_help
    longs[count].name = "version";
    opterr = 0;
    optind = 0; // all of getopt's state anew
    for (int at = 1, value; (value = getopt_long(argc, argv, "+:", longs, NULL)) != -1; at = optind) {
        if (value == ':') fatal("option %s needs a value; see --help", argv[at]);
        if (value == '?') refuse_unknown(argv[at]);
        texts[value - 256] = option_table[value - 256].type == OPTION_FLAG ? "on" : optarg;
    }
    free(longs);
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
static void resolve_shape(Options *options, const char *given[], const struct cJSON *recorded) {
    bool preset_given = false;
    for (int i = 0; i < option_count; i++)
        if (option_table[i].offset == offsetof(Options, model)) preset_given = given[i] != NULL;
    options->config = *model_preset(model_preset_names[options->model]);
    for (int i = 0; i < option_count; i++) {
        const Option *option = &option_table[i];
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
    const char **given = (const char **)host_allocate((size_t)option_count, sizeof(char *), "the options");
    read_command_line(argc, argv, given);
    for (int i = 0; i < option_count; i++) {
        const Option *option = &option_table[i];
        if (option->keeping == SHAPE) continue;
        store(&options, option, given[i] ? given[i] : value_not_given(option, recorded));
    }
    resolve_shape(&options, given, recorded);
    resolve_dense_layers(&options);
    resolve_out(&options);
    for (int i = 0; i < option_count; i++) {
        const Option *option = &option_table[i];
        const char *before = recorded ? recorded_text(recorded, option) : NULL;
        if (before && (option->keeping == FIXED || option->keeping == SHAPE))
            check_unchanged(&options, option, before);
    }
    free(given);
    return options;
}

// --- recording and printing -----------------------------------------------------------------------------

struct cJSON *options_record(const Options *options) {
    cJSON *record = cJSON_CreateObject();
    for (int i = 0; i < option_count; i++) {
        const Option *option = &option_table[i];
        if (option->keeping == UNRECORDED) continue;
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

// Whether a checkpoint would have the option on record.
static bool is_recorded(const Option *option) {
    return option->keeping != UNRECORDED;
}

static void print_differences(const Options *options, const struct cJSON *recorded) {
    int count = 0;
    for (int i = 0; i < option_count; i++) {
        const Option *option = &option_table[i];
        char *text = value_text(options, option);
        const char *before = recorded_text(recorded, option);
        const bool changed = before && strcmp(before, text) != 0, missing = !before && is_recorded(option);
        if ((changed || missing) && count++ == 0) printf("not as in the checkpoint\n");
        if (changed)
            printf("  --%s %s (changed: the checkpoint has %s)\n", option->name, text,
                   before[0] ? before : "-");
        if (missing) printf("  --%s %s (not in the checkpoint)\n", option->name, text[0] ? text : "-");
        free(text);
    }
}

void options_print(const Options *options, const struct cJSON *recorded) {
    for (int i = 0; i < option_count; i++) {
        const Option *option = &option_table[i];
        if (option->group) printf("%s\n", option->group);
        char *text = value_text(options, option);
        printf("  %-18s %s\n", option->name, text[0] ? text : "-");
        free(text);
    }
    if (recorded) print_differences(options, recorded);
}

void options_warn_unknown(const struct cJSON *recorded) {
    const cJSON *item;
    cJSON_ArrayForEach (item, recorded) {
        int i = 0;
        while (i < option_count && strcmp(option_table[i].name, item->string) != 0) i++;
        if (i == option_count)
            warning("the checkpoint records --%s %s, which this program does not know: it goes on without",
                    item->string, cJSON_IsString(item) ? item->valuestring : "");
    }
}
