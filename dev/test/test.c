#include "test.h"

#include "base/random.h"

#include <math.h>
#include <omp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int passed, failed, failed_checks;
static uint64_t random_counter;
static const Communicator *together;
static int only_count;
static char **only_words;

void test_only(int count, char **words) {
    only_count = count;
    only_words = words;
}

void test_together(const Communicator *communicator) {
    together = communicator;
}

static bool is_wanted(const char *name) {
    for (int i = 0; i < only_count; i++)
        if (strstr(name, only_words[i])) return true;
    return only_count == 0;
}

void test_run(const char *name, void (*test)(void *argument), void *argument) {
    if (!is_wanted(name)) return;
    failed_checks = 0;
    test(argument);
    bool good = failed_checks == 0;
    if (together) good = communicator_all(together, good, name);
    if (good) {
        passed++;
    } else {
        failed++;
    }
    printf("%s %s\n", good ? "ok  " : "FAIL", name);
    fflush(stdout);
}

static void print_failure(const char *format, va_list arguments) {
    failed_checks++;
    // What other ranks print to standard output goes nowhere.
    FILE *file = together && together->rank > 0 ? stderr : stdout;
    if (together)
        fprintf(file, "     rank %d: ", together->rank);
    else
        fprintf(file, "     ");
    vfprintf(file, format, arguments);
    fprintf(file, "\n");
}

void check(bool holds, const char *format, ...) {
    if (holds) return;
    va_list arguments;
    va_start(arguments, format);
    print_failure(format, arguments);
    va_end(arguments);
}

void check_close(const char *what, const double *a, const double *b, size_t count, double tolerance) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    double error = sqrt(difference / norm);
    check(error <= tolerance, "%s: relative error %.3g, at most %.3g allowed (norm %.3g, %zu values)", what,
          error, tolerance, sqrt(norm), count);
}

void check_dies(void (*action)(void *argument), void *argument, const char *message) {
    int ends[2];
    if (pipe(ends) != 0) fatal("pipe failed");
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        if (!freopen("/dev/null", "w", stdout)) _exit(2);
        close(ends[0]);
        omp_set_num_threads(1); // a forked child has lost the parent's other threads
        alarm(60);
        action(argument);
        _exit(0);
    }
    close(ends[1]);
    char text[4096];
    size_t length = 0;
    ssize_t got;
    while (length < sizeof(text) - 1 && (got = read(ends[0], text + length, sizeof(text) - 1 - length)) > 0)
        length += (size_t)got;
    text[length] = 0;
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1, "should end with exit code 1 and \"%s\"", message);
    check(strstr(text, message) != NULL, "should say \"%s\", says: %s", message, text);
    char *last_error = strstr(text, "error: ");
    check(last_error && strchr(last_error, '\n') == text + length - 1, "should be one line: %s", text);
}

static char directory_root[64];
static pid_t directory_owner; // a forked child that exits must not clean up

static void remove_directories(void) {
    if (getpid() != directory_owner) return;
    char *command = format_string("rm -rf '%s'", directory_root);
    if (system(command) != 0) printf("could not remove %s\n", directory_root);
    free(command);
}

const char *test_directory(void) {
    static int count;
    static char path[128];
    if (!directory_root[0]) {
        strcpy(directory_root, "/tmp/test_lighthouse.XXXXXX");
        if (!mkdtemp(directory_root)) fatal("cannot make a directory in /tmp");
        directory_owner = getpid();
        atexit(remove_directories);
    }
    snprintf(path, sizeof(path), "%s/%d", directory_root, count++);
    char *command = format_string("mkdir -p '%s'", path);
    if (system(command) != 0) fatal("cannot make %s", path);
    free(command);
    return path;
}

static uint64_t test_seed(void) {
    static uint64_t seed;
    if (seed == 0) seed = getenv("TEST_SEED") ? strtoull(getenv("TEST_SEED"), NULL, 10) : 1;
    return seed;
}

void random_fill(double *out, size_t count) {
    for (size_t i = 0; i < count; i++) out[i] = random_normal(test_seed(), random_counter++);
}

uint64_t random_below(uint64_t bound) {
    return random_u64(test_seed() + 1, random_counter++) % bound;
}

void upload(Device *device, void *memory, StorageType type, const double *values, size_t count) {
    void *raw = host_allocate(count, storage_size(type), "an upload");
    storage_from_double(raw, type, values, count);
    device->upload(device, memory, raw, count * storage_size(type));
    free(raw);
}

double *download(Device *device, const void *memory, StorageType type, size_t count) {
    void *raw = host_allocate(count, storage_size(type), "a download");
    double *values = host_allocate(count, sizeof(double), "a download");
    device->download(device, raw, memory, count * storage_size(type));
    storage_to_double(values, raw, type, count);
    free(raw);
    return values;
}

int test_summary(void) {
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
