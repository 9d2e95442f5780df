#include "base/common.h"

#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

static int error_rank = -1; // the rank that messages name; -1: none

void errors_name_rank(int rank) {
    error_rank = rank;
}

// Writes the line with one call, so that lines of several processes do not mix.
static void print_line(const char *prefix, const char *format, va_list arguments) {
    char rank[32] = "", message[4096];
    if (error_rank >= 0) snprintf(rank, sizeof(rank), "rank %d: ", error_rank);
    vsnprintf(message, sizeof(message), format, arguments);
    fflush(stdout);
    fprintf(stderr, "%s%s%s\n", prefix, rank, message);
    fflush(stderr);
}

void fatal(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_line("error: ", format, arguments);
    va_end(arguments);
    exit(1);
}

void report_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_line("error: ", format, arguments);
    va_end(arguments);
}

void warning(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_line("warning: ", format, arguments);
    va_end(arguments);
}

void *host_allocate(size_t count, size_t size, const char *what) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (!memory) fatal("out of host memory: %s needs %zu x %zu bytes", what, count, size);
    return memory;
}

char *format_string(const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    char *text = host_allocate((size_t)length + 1, 1, "a string");
    vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}

char *format_bytes(char text[32], double bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    while (bytes >= 1024 && unit + 1 < COUNT_OF(units)) {
        bytes /= 1024;
        unit++;
    }
    snprintf(text, 32, unit == 0 ? "%.0f %s" : "%.2f %s", bytes, units[unit]);
    return text;
}

double seconds_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}
