// Used by every file: error messages to the user, allocation that cannot fail silently, and small helpers.
#pragma once
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#define NORETURN [[noreturn]]
#else
#define NORETURN _Noreturn
#endif

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

// Prints "error: " and the message as one line on stderr, and exits with code 1. For mistakes of the user and
// faults of the machine: the message says what was wrong, the value, and what would be right. `assert` is for
// mistakes in this program.
NORETURN void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Prints the same line as fatal but returns: for a thread that has to end the process in another way.
void report_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

// From this call on errors and warnings name the rank: "error: rank 3: …".
void errors_name_rank(int rank);

// Prints "warning: " and the message as one line on stderr.
void warning(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Zeroed host memory for `count` elements of `size` bytes. If there is not enough the process ends (fatal);
// `what` says in the message what the memory was for.
void *host_allocate(size_t count, size_t size, const char *what);

// Formats as printf does, into newly allocated memory; the caller frees it.
char *format_string(const char *format, ...) __attribute__((format(printf, 1, 2)));

// `bytes` as "12.34 GiB" (or MiB, KiB, B) in `text`, which is also returned.
char *format_bytes(char text[32], double bytes);

// Seconds since an arbitrary moment, by the monotonic clock.
double seconds_now(void);

// A NaN without sign, which prints as "nan" and not as "-nan"; any other value as it is.
static inline double plain_nan(double value) {
    return value != value ? (double)NAN : value;
}

static inline int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t max_i64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}
static inline int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
static inline int64_t round_up(int64_t value, int64_t multiple) {
    return divide_up(value, multiple) * multiple;
}

#ifdef __cplusplus
}
#endif
