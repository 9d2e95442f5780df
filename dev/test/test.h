// The harness of the self-test: named tests, which consist of checks, and the count of passed and failed
// tests.
#pragma once
#include "parallel/communicator.h"
#include "device/device.h"

// From this call on only tests whose name contains one of these words run; with a count of 0 all do. A word
// that no name contains is a failure in the summary.
void test_only(int count, char **words);

// From this call on all ranks run each test together. A test passes if it passes on all ranks; rank 0 prints
// the results.
void test_together(const Communicator *communicator);

// Runs test(argument), which passes if none of its checks fails. A call of fatal() in it is a failure too and
// ends the test only; memory that it had allocated is not freed.
void test_run(const char *name, void (*test)(void *argument), void *argument);

// A check of the running test: if `holds` is false it fails and prints the message.
void check(bool holds, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Checks that ‖a - b‖ / ‖b‖ <= tolerance, that b is not all zeros, and that nothing is NaN.
void check_close(const char *what, const double *a, const double *b, size_t count, double tolerance);

// Checks that action(argument), run in a forked child, ends the process with exit code 1 and one line on
// stderr that contains `message`.
void check_dies(void (*action)(void *argument), void *argument, const char *message);

// What `action` writes to standard output; the caller frees it.
char *printed_by(void (*action)(void *argument), void *argument);

// A new empty directory, removed with its contents when the tests end.
const char *test_directory(void);

// The path of a file in dev/reference/fixtures, valid until the next call. It is found relative to the
// program, not to the current directory.
const char *fixture(const char *name);

// random_fill: standard normal random numbers. random_below: a random number below `bound`. Each call returns
// the next numbers of a sequence that depends on the test's name and on the environment variable TEST_SEED
// alone, not on the tests before it.
void random_fill(double *out, size_t count);
uint64_t random_below(uint64_t bound);

// Copy doubles to a device array of `count` elements of this type, and from it; the caller frees the result.
void upload(Device *device, void *memory, StorageType type, const double *values, size_t count);
double *download(Device *device, const void *memory, StorageType type, size_t count);

// Prints "N passed, N failed" and returns the exit code for main.
int test_summary(void);

// The groups of tests. `device` is the device under test, whose results are compared with the plain C
// operations.
void test_harness(void);
void test_common(void);
void test_host_memory(void);
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
void test_rope_pooling(Device *device);
void test_stage1(Device *device);
void test_large(Device *device);
void test_parallel(Device *device, const Communicator *communicator);
void test_stage1_parallel(Device *device, const Communicator *communicator);

// Groups that several processes run together.
void test_parallel_checkpoint(const Communicator *communicator);
void test_parallel_rope_pooling(const Communicator *communicator);
