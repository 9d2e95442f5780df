// The self-test's harness: named tests made of checks, and a count of how they went.
#pragma once
#include "parallel/communicator.h"
#include "device/device.h"

// From here on only tests whose name contains one of these words run; with a count of 0 all do. A word that
// is in the name of none is a failure in the summary.
void test_only(int count, char **words);

// From here on all ranks run the tests together: one passes if it does on all of them, and rank 0 prints how
// they went.
void test_together(const Communicator *communicator);

// Runs one test; it passes if none of its checks failed. `argument` is handed on. A fatal error in it is its
// failure, and the next test runs; what it had allocated stays.
void test_run(const char *name, void (*test)(void *argument), void *argument);

// One check of the running test: prints the message if it does not hold.
void check(bool holds, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Checks that ‖a - b‖ / ‖b‖ <= tolerance (and that b is not all zeros, and nothing is NaN).
void check_close(const char *what, const double *a, const double *b, size_t count, double tolerance);

// Checks that `action` ends the process with exit code 1 and one line on stderr that contains `message`.
// It runs in a forked child.
void check_dies(void (*action)(void *argument), void *argument, const char *message);

// What `action` writes to standard output; the caller frees it.
char *printed_by(void (*action)(void *argument), void *argument);

// A fresh empty directory, removed with all it holds when the tests end.
const char *test_directory(void);

// The path of a file of dev/reference/fixtures, until the next call: found from where the program is, in
// whatever directory it was started.
const char *fixture(const char *name);

// Standard normal random numbers, other ones at every call (of one fixed sequence, or of the sequence that
// the environment variable TEST_SEED names).
void random_fill(double *out, size_t count);
uint64_t random_below(uint64_t bound);

// A device array of `count` elements of that type from doubles, and as doubles, which the caller frees.
void upload(Device *device, void *memory, StorageType type, const double *values, size_t count);
double *download(Device *device, const void *memory, StorageType type, size_t count);

// Prints "N passed, N failed"; the exit code for main.
int test_summary(void);

// The groups. `device` is the device under test: its results are compared with the plain C operations.
void test_harness(void);
void test_common(void);
void test_reason(void);
void test_data(void);
void test_guard(void);
void test_logger(void);
void test_safetensors(void);
void test_checkpoint(void);
void test_checkpoint_damage(void);
void test_checkpoint_directory(void);
void test_saver(void);
void test_optimizer_file(void);
void test_options(void);
void test_schedule(void);
void test_ops(Device *device);
void test_lighthouse(Device *device);
void test_model(Device *device);
void test_stage1(Device *device);
void test_large(Device *device);
void test_parallel(Device *device, const Communicator *communicator);
void test_stage1_parallel(Device *device, const Communicator *communicator);

// Those that several processes run together.
void test_parallel_checkpoint(const Communicator *communicator);
