// Which lines of metrics.jsonl remain when a run is resumed.
#include "test.h"

#include "base/files.h"
#include "run/logger.h"

#include <stdlib.h>
#include <string.h>

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

void test_logger(void) {
    test_run("metrics: lines that stay when a run goes on", test_lines_that_stay, NULL);
    test_run("metrics: a file that cannot be read", test_unreadable, NULL);
}
