#include "run/logger.h"

#include "base/files.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// The step of a line of metrics.jsonl; INT64_MAX if the line is damaged.
static int64_t line_step(const char *line) {
    cJSON *json = cJSON_Parse(line);
    const cJSON *step = cJSON_GetObjectItemCaseSensitive(json, "step");
    const int64_t number = cJSON_IsNumber(step) ? (int64_t)step->valuedouble : INT64_MAX;
    cJSON_Delete(json);
    return number;
}

// Moves the lines that stay, whole ones of steps up to `step`, to the front of the text, and returns their bytes.
static size_t keep_lines(char *text, size_t size, int64_t step) {
    char *kept = text; // the end of the lines kept so far
    char *feed;
    for (char *line = text; (feed = (char *)memchr(line, '\n', size - (size_t)(line - text)));
         line = feed + 1) {
        *feed = 0;
        const bool stays = line_step(line) <= step;
        *feed = '\n';
        if (!stays) continue;
        memmove(kept, line, (size_t)(feed + 1 - line));
        kept += feed + 1 - line;
    }
    *kept = 0;
    return (size_t)(kept - text);
}

// Removes from the file the lines of steps after `step` and what is no line (a last one without line feed, which
// a crash left). Cuts the file if that is enough, which needs no room on the disk; else it is replaced. If it
// cannot be read to its end it is left as it is.
static void drop_lines_after(const char *path, int64_t step) {
    size_t size;
    char *text = file_read_text(path, SIZE_MAX - 1, &size);
    if (!text && errno == ENOENT) return;
    char *before = text ? malloc(size + 1) : NULL;
    if (!before) fatal("cannot read %s: %s", path, strerror(errno));
    memcpy(before, text, size);
    const size_t kept = keep_lines(text, size, step);
    const bool good = kept == size                  ? true
                      : !memcmp(before, text, kept) ? truncate(path, (off_t)kept) == 0
                                                    : file_replace_text(path, text);
    if (!good) fatal("cannot rewrite %s: %s", path, strerror(errno));
    free(before);
    free(text);
}

Logger logger_open(const char *out_dir, int64_t step) {
    Logger logger = {0};
    if (!directory_make(out_dir)) fatal("cannot make the output directory %s: %s", out_dir, strerror(errno));
    logger.path = format_string("%s/metrics.jsonl", out_dir);
    drop_lines_after(logger.path, step);
    logger.metrics = open(logger.path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (logger.metrics >= 0) logger.end = lseek(logger.metrics, 0, SEEK_END);
    if (logger.metrics < 0 || logger.end < 0) fatal("cannot write %s: %s", logger.path, strerror(errno));
    return logger;
}

// --- metrics.jsonl --------------------------------------------------------------------------------------

// A number that is not finite is written as null, since JSON has none.
static void write_number(FILE *file, const char *name, double value) {
    if (isfinite(value))
        fprintf(file, ", \"%s\": %.9g", name, value);
    else
        fprintf(file, ", \"%s\": null", name);
}

// The report as a line of JSON, which the caller frees.
static char *metrics_line(const StepReport *r, size_t *size) {
    char *line;
    FILE *file = open_memstream(&line, size);
    if (!file) fatal("out of host memory: a line of metrics");
    fprintf(file, "{\"step\": %ld, \"samples\": %ld", (long)r->step, (long)r->samples);
    write_number(file, "loss", r->loss);
    write_number(file, "grad_norm", r->grad_norm);
    fprintf(file, ", \"lr\": %.15g", r->learning_rate);
    if (r->skipped) fprintf(file, ", \"skipped\": true");
    fprintf(file, ", \"selection\": \"%s\"", r->selection ? "on" : "off");
    fprintf(file, ", \"dense_layers\": %ld", (long)r->dense_layers);
    if (r->validated) write_number(file, "val_loss", r->validation_loss);
    if (r->validated_dense) write_number(file, "val_loss_dense", r->validation_dense);
    fprintf(file, ", \"ms\": %.3f, \"tokens_per_second\": %.1f", 1e3 * r->seconds, r->tokens / r->seconds);
    if (!isnan(r->mfu)) fprintf(file, ", \"mfu\": %.4f", r->mfu);
    fprintf(file, ", \"memory_gib\": %.3f}\n", r->memory / 0x1p30);
    if (fclose(file) != 0) fatal("out of host memory: a line of metrics");
    return line;
}

// Appends a line, whole or not at all: what a failure leaves of one is cut off, at the latest before the next.
static bool append_line(Logger *logger, const char *line, size_t size) {
    struct stat status;
    if (fstat(logger->metrics, &status) != 0 ||
        (status.st_size > logger->end && ftruncate(logger->metrics, logger->end) != 0))
        return false;
    size_t done = 0;
    while (done < size) {
        const ssize_t written = write(logger->metrics, line + done, size - done);
        if (written < 0 && errno != EINTR) break;
        if (written > 0) done += (size_t)written;
    }
    const int cause = errno;
    if (done == size)
        logger->end += (int64_t)size;
    else if (ftruncate(logger->metrics, logger->end) == 0)
        errno = cause;
    return done == size;
}

static void write_metrics(Logger *logger, const StepReport *report) {
    size_t size;
    char *line = metrics_line(report, &size);
    const bool written = append_line(logger, line, size);
    if (!written && !logger->failing)
        warning("cannot write %s: %s; lines may be missing there", logger->path, strerror(errno));
    logger->failing = !written;
    free(line);
}

// --- printed lines --------------------------------------------------------------------------------------

double logger_seconds_left(const Logger *logger, const StepReport *r) {
    const double *usual = logger->usual_seconds;
    double seconds = 0;
    for (int type = 0; type < STEP_TYPES; type++) {
        const int other = STEP_TYPES - 1 - type;
        const double by_work = usual[other] * r->left[type].flops / r->left[other].flops;
        if (r->left[type].steps > 0)
            seconds += (double)r->left[type].steps * (usual[type] > 0 ? usual[type] : by_work);
    }
    return seconds;
}

static void print_step(const Logger *logger, const StepReport *r) {
    char memory[32], mfu[16] = "n/a";
    if (!isnan(r->mfu)) snprintf(mfu, sizeof(mfu), "%.1f%%", 100 * r->mfu);
    const long left = lround(logger_seconds_left(logger, r));
    printf("step %ld/%ld | selection %s%s | loss %.4f | grad norm %.3f | lr %.3e | %.0f ms | %.0f tokens/s | "
           "MFU %s | %s | "
           "%ld:%02ld:%02ld left",
           (long)r->step, (long)r->steps, r->selection ? "on" : "off",
           r->type == DENSE_STEP ? ", dense step" : "", plain_nan(r->loss), plain_nan(r->grad_norm),
           r->learning_rate, 1e3 * r->seconds, r->tokens / r->seconds, mfu, format_bytes(memory, r->memory),
           left / 3600, left / 60 % 60, left % 60);
    if (r->validated) printf(" | val loss %.4f", plain_nan(r->validation_loss));
    if (r->validated_dense) printf(" | dense val loss %.4f", plain_nan(r->validation_dense));
    if (r->skipped) printf(" | no update");
    printf("\n");
    fflush(stdout);
}

void logger_step(Logger *logger, const StepReport *report, bool print) {
    const double weight = 0.1; // of the newest step
    double *seconds = &logger->usual_seconds[report->type];
    *seconds = *seconds == 0 ? report->seconds : (1 - weight) * *seconds + weight * report->seconds;
    write_metrics(logger, report);
    if (print || report->validated || report->validated_dense) print_step(logger, report);
}

void logger_close(Logger *logger) {
    if (close(logger->metrics) != 0 && !logger->failing)
        warning("cannot write %s: %s; lines may be missing there", logger->path, strerror(errno));
    free(logger->path);
    memset(logger, 0, sizeof(*logger));
}
