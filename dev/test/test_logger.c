// metrics.jsonl: which lines remain when a run is resumed, what is written, and what is printed beside it.
#include "test.h"

#include "base/files.h"
#include "run/logger.h"

#include <cjson/cJSON.h>
#include <fcntl.h>
#include <libgen.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static void write_text(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0) fatal("cannot write %s", path);
}

static void test_lines_that_stay(void *unused) {
    (void)unused;
    static const struct {
        const char *before, *after; // the file before and after a resume at step 2
    } cases[] = {
        {"", ""},
        {"{\"step\": 1}\n{\"step\": 2}\n", "{\"step\": 1}\n{\"step\": 2}\n"},
        {"{\"step\": 1}\n{\"step\": 3}\n{\"step\": 2}\n{\"step\": 4}\n", "{\"step\": 1}\n{\"step\": 2}\n"},
        {"{\"step\": 3}\n", ""},
        {"{\"step\": 1}\nno JSON\n\n{\"other\": 1}\n", "{\"step\": 1}\n"},
        {"{\"step\": 1}\n{\"step\": 2, \"lo", "{\"step\": 1}\n"},
        {"{\"step\": 1", ""},
    };
    char *out_dir = format_string("%s", test_directory()), *path = format_string("%s/metrics.jsonl", out_dir);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        write_text(path, cases[i].before);
        Logger logger = logger_open(out_dir, 2);
        logger_close(&logger);
        char *after = file_read_text(path, 1000, NULL);
        if (!after) fatal("cannot read %s", path);
        check(!strcmp(after, cases[i].after), "of \"%s\" stays \"%s\"", cases[i].before, after);
        free(after);
    }
    free(path);
    free(out_dir);
}

static void open_logger(void *out_dir) {
    logger_open((const char *)out_dir, 2);
}

// A file with a read error must not be treated as if it ended there, and be rewritten without the rest.
static void test_unreadable(void *unused) {
    (void)unused;
    char *out_dir = format_string("%s", test_directory()), *path = format_string("%s/metrics.jsonl", out_dir);
    check(directory_make(path), "cannot make %s", path);
    check_dies(open_logger, out_dir, "metrics.jsonl: Is a directory");
    char *message = format_string("cannot read %s", path);
    check_dies(open_logger, out_dir, message);
    free(message);
    free(path);
    free(out_dir);
}

static ino_t inode(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 ? status.st_ino : 0;
}

// A disk that is full need not hold a second copy: the file is only replaced where lines between others have to go.
static void test_not_rewritten(void *unused) {
    (void)unused;
    static const struct {
        const char *before;
        bool replaced;
    } cases[] = {{"{\"step\": 1}\n{\"step\": 2}\n", false},
                 {"{\"step\": 1}\n{\"step\": 3}\n", false},
                 {"{\"step\": 1}\n{\"ste", false},
                 {"{\"step\": 3}\n{\"step\": 1}\n", true}};
    char *out_dir = format_string("%s", test_directory()), *path = format_string("%s/metrics.jsonl", out_dir);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        write_text(path, cases[i].before);
        const ino_t before = inode(path);
        Logger logger = logger_open(out_dir, 2);
        logger_close(&logger);
        check((inode(path) != before) == cases[i].replaced, "\"%s\" is%s replaced", cases[i].before,
              cases[i].replaced ? " not" : "");
    }
    free(path);
    free(out_dir);
}

static void log_step(Logger *logger, int64_t step) {
    const StepReport report = {.step = step, .steps = 9, .seconds = 1, .mfu = NAN};
    logger_step(logger, &report, false);
}

// The disk is full in the middle of a line, for a while: only that line is missing.
static void log_to_full_disk(void *path_address) {
    const char *path = (const char *)path_address;
    struct rlimit usual, full;
    getrlimit(RLIMIT_FSIZE, &usual);
    signal(SIGXFSZ, SIG_IGN);
    Logger logger = logger_open(dirname(format_string("%s", path)), 0);
    log_step(&logger, 1);
    struct stat status;
    if (stat(path, &status) != 0) fatal("no metrics");
    full = (struct rlimit){(rlim_t)status.st_size + 20, usual.rlim_max};
    setrlimit(RLIMIT_FSIZE, &full);
    log_step(&logger, 2);
    setrlimit(RLIMIT_FSIZE, &usual);
    log_step(&logger, 3);
    logger_close(&logger);
    fatal("logged");
}

static void test_full_disk(void *unused) {
    (void)unused;
    char *out_dir = format_string("%s", test_directory()), *path = format_string("%s/metrics.jsonl", out_dir);
    check_dies(log_to_full_disk, path, "lines may be missing");
    char *text = file_read_text(path, 10000, NULL);
    if (!text) fatal("cannot read %s", path);
    const char *second = strchr(text, '\n');
    check(second && !strncmp(text, "{\"step\": 1,", 11) && !strncmp(second + 1, "{\"step\": 3,", 11) &&
              strchr(second + 1, '\n') == text + strlen(text) - 1,
          "what is there: %s", text);
    free(text);
    free(path);
    free(out_dir);
}

static void print_validation(void *report) {
    Logger logger = {.metrics = open("/dev/null", O_WRONLY)};
    logger_step(&logger, (const StepReport *)report, false);
    close(logger.metrics);
}

// A validation is printed whether its step is or not, and a loss that is NaN as such, without a sign.
static void test_validations(void *unused) {
    (void)unused;
    StepReport report = {.step = 3, .steps = 9, .seconds = 1, .mfu = NAN, .validated_dense = true};
    report.validation_dense = report.loss = copysign(NAN, -1);
    char *printed = printed_by(print_validation, &report);
    check(strstr(printed, "step 3/9 ") && strstr(printed, " | dense val loss nan") &&
              !strstr(printed, " | val loss") && !strstr(printed, "-nan"),
          "%s", printed);
    free(printed);
    report.validated_dense = false;
    printed = printed_by(print_validation, &report);
    check(!printed[0], "a step without validation is printed: %s", printed);
    free(printed);
}

// The lines of such losses are JSON.
static void test_nan_is_json(void *unused) {
    (void)unused;
    char *out_dir = format_string("%s", test_directory()), *path = format_string("%s/metrics.jsonl", out_dir);
    StepReport report = {.step = 1, .steps = 9, .seconds = 1, .mfu = NAN};
    report.loss = report.validation_loss = report.validation_dense = copysign(NAN, -1);
    report.validated = report.validated_dense = true;
    Logger logger = logger_open(out_dir, 0);
    logger_step(&logger, &report, false);
    logger_close(&logger);
    char *text = file_read_text(path, 10000, NULL);
    cJSON *json = cJSON_Parse(text);
    check(cJSON_IsNull(cJSON_GetObjectItem(json, "val_loss")) &&
              cJSON_IsNull(cJSON_GetObjectItem(json, "val_loss_dense")),
          "%s", text);
    cJSON_Delete(json);
    free(text);
    free(path);
    free(out_dir);
}

void test_logger(void) {
    test_run("metrics: lines that stay when a run goes on", test_lines_that_stay, NULL);
    test_run("metrics: a file that cannot be read", test_unreadable, NULL);
    test_run("metrics: no copy where no line goes", test_not_rewritten, NULL);
    test_run("metrics: a disk that is full for a while", test_full_disk, NULL);
    test_run("metrics: every validation is printed", test_validations, NULL);
    test_run("metrics: NaN is no break of JSON", test_nan_is_json, NULL);
}
