#include "run/logger.h"

#include "base/files.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// The step of a line of metrics.jsonl; INT64_MAX if the line is damaged.
static int64_t line_step(const char *line) {
    cJSON *json = cJSON_Parse(line);
    const cJSON *step = cJSON_GetObjectItemCaseSensitive(json, "step");
    const int64_t number = cJSON_IsNumber(step) ? (int64_t)step->valuedouble : INT64_MAX;
    cJSON_Delete(json);
    return number;
}

// Removes from the file the lines of steps after `step`, and a last line without line feed, which a crash
// left. If the file cannot be read to its end it is left as it is.
static void drop_lines_after(const char *path, int64_t step) {
    size_t size;
    char *text = file_read_text(path, SIZE_MAX - 1, &size);
    if (!text && errno == ENOENT) return;
    if (!text) fatal("cannot read %s: %s", path, strerror(errno));
    char *kept = text; // the end of the lines kept so far
    char *feed;
    for (char *line = text; (feed = (char *)memchr(line, '\n', size - (size_t)(line - text)));
         line = feed + 1) {
        *feed = 0;
        if (line_step(line) > step) continue;
        *feed = '\n';
        memmove(kept, line, (size_t)(feed + 1 - line));
        kept += feed + 1 - line;
    }
    *kept = 0;
    if (!file_replace_text(path, text)) fatal("cannot rewrite %s: %s", path, strerror(errno));
    free(text);
}

Logger logger_open(const char *out_dir, int64_t step) {
    Logger logger = {0};
    if (!directory_make(out_dir)) fatal("cannot make the output directory %s: %s", out_dir, strerror(errno));
    logger.path = format_string("%s/metrics.jsonl", out_dir);
    drop_lines_after(logger.path, step);
    logger.metrics = fopen(logger.path, "a");
    if (!logger.metrics) fatal("cannot write %s: %s", logger.path, strerror(errno));
    return logger;
}

// A number that is not finite is written as null, since JSON has none.
static void write_number(FILE *file, const char *name, double value) {
    if (isfinite(value))
        fprintf(file, ", \"%s\": %.9g", name, value);
    else
        fprintf(file, ", \"%s\": null", name);
}

static void write_metrics(Logger *logger, const StepReport *r) {
    FILE *file = logger->metrics;
    fprintf(file, "{\"step\": %ld, \"samples\": %ld", (long)r->step, (long)r->samples);
    write_number(file, "loss", r->loss);
    write_number(file, "grad_norm", r->grad_norm);
    fprintf(file, ", \"lr\": %.15g", r->learning_rate);
    if (r->skipped) fprintf(file, ", \"skipped\": true");
    fprintf(file, ", \"selection\": \"%s\"", r->selection ? "on" : "off");
    fprintf(file, ", \"dense_layers\": %ld", (long)r->dense_layers);
    if (!isnan(r->validation_loss)) write_number(file, "val_loss", r->validation_loss);
    if (!isnan(r->validation_dense)) write_number(file, "val_loss_dense", r->validation_dense);
    fprintf(file, ", \"ms\": %.3f, \"tokens_per_second\": %.1f", 1e3 * r->seconds, r->tokens / r->seconds);
    if (!isnan(r->mfu)) fprintf(file, ", \"mfu\": %.4f", r->mfu);
    fprintf(file, ", \"memory_gib\": %.3f}\n", r->memory / 0x1p30);
    const bool written = fflush(file) == 0;
    if (!written && !logger->failing)
        warning("cannot write %s: %s; lines may be missing there", logger->path, strerror(errno));
    logger->failing = !written;
    clearerr(file);
}

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
           r->type == DENSE_STEP ? ", dense step" : "", r->loss, r->grad_norm, r->learning_rate,
           1e3 * r->seconds, r->tokens / r->seconds, mfu, format_bytes(memory, r->memory), left / 3600,
           left / 60 % 60, left % 60);
    if (!isnan(r->validation_loss)) printf(" | val loss %.4f", r->validation_loss);
    if (!isnan(r->validation_dense)) printf(" | dense val loss %.4f", r->validation_dense);
    if (r->skipped) printf(" | no update");
    printf("\n");
    fflush(stdout);
}

void logger_step(Logger *logger, const StepReport *report, bool print) {
    const double weight = 0.1; // of the newest step
    double *seconds = &logger->usual_seconds[report->type];
    *seconds = *seconds == 0 ? report->seconds : (1 - weight) * *seconds + weight * report->seconds;
    write_metrics(logger, report);
    if (print) print_step(logger, report);
}

void logger_close(Logger *logger) {
    if (logger->metrics && fclose(logger->metrics) != 0 && !logger->failing)
        warning("cannot write %s: %s; lines may be missing there", logger->path, strerror(errno));
    free(logger->path);
    memset(logger, 0, sizeof(*logger));
}
