#include "test.h"

#include "base/random.h"

#include <limits.h>
#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_WORDS = 32 };

static int passed, failed, failed_checks;
static uint64_t random_seed, random_counter; // of the running test
static const Communicator *together;
static int only_count;
static char **only_words;
static bool word_was_found[MOST_WORDS];

// The name of the running test (NULL between tests), and the process that runs it.
static const char *running;
static pid_t running_process;
static pthread_t running_thread;
static jmp_buf end_of_test;

void test_only(int count, char **words) {
    if (count > MOST_WORDS) fatal("%d words: at most %d can be given", count, MOST_WORDS);
    only_count = count;
    only_words = words;
}

void test_together(const Communicator *communicator) {
    together = communicator;
}

static bool is_wanted(const char *name) {
    bool wanted = only_count == 0;
    for (int i = 0; i < only_count; i++) {
        if (!strstr(name, only_words[i])) continue;
        wanted = word_was_found[i] = true;
    }
    return wanted;
}

static void count_test(const char *name, bool good) {
    if (good) {
        passed++;
    } else {
        failed++;
    }
    printf("%s %s\n", good ? "ok  " : "FAIL", name);
    fflush(stdout);
}

// The linker redirects all calls of exit here (--wrap), so that fatal() ends only the running test. That is
// not possible in a forked child, in another thread or in a team of OpenMP threads, nor with several ranks,
// where the others would wait for this one for ever: then the process ends.
NORETURN void __real_exit(int code);
NORETURN void __wrap_exit(int code);

void __wrap_exit(int code) {
    const bool has_way_back = running && running_process == getpid() && !together && !omp_in_parallel() &&
                              pthread_equal(running_thread, pthread_self());
    if (has_way_back) longjmp(end_of_test, 1);
    __real_exit(code);
}

// Runs at exit: if a test is running it has failed; prints the summary.
static void sum_up_at_exit(void) {
    if (!running || running_process != getpid()) return;
    count_test(running, false);
    test_summary();
}

static uint64_t test_seed(void) {
    static uint64_t seed;
    if (seed == 0) seed = getenv("TEST_SEED") ? strtoull(getenv("TEST_SEED"), NULL, 10) : 1;
    return seed;
}

void test_run(const char *name, void (*test)(void *argument), void *argument) {
    static bool is_first = true;
    if (!is_wanted(name)) return;
    if (is_first) atexit(sum_up_at_exit);
    is_first = false;
    failed_checks = 0;
    random_seed = random_key(test_seed(), name);
    random_counter = 0;
    running_process = getpid();
    running_thread = pthread_self();
    running = name;
    if (setjmp(end_of_test) == 0)
        test(argument);
    else
        check(false, "a fatal error ended the test");
    running = NULL;
    bool good = failed_checks == 0;
    if (together) good = communicator_all(together, good, name);
    count_test(name, good);
}

static void print_failure(const char *format, va_list arguments) {
    failed_checks++;
    // Ranks from 1 on print to stderr: their standard output is discarded.
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

char *printed_by(void (*action)(void *argument), void *argument) {
    FILE *file = tmpfile();
    fflush(stdout);
    const int kept = dup(STDOUT_FILENO);
    if (!file || kept < 0 || dup2(fileno(file), STDOUT_FILENO) < 0) fatal("cannot redirect what is printed");
    action(argument);
    fflush(stdout);
    dup2(kept, STDOUT_FILENO);
    close(kept);
    const long size = ftell(file) < 0 || fseek(file, 0, SEEK_END) != 0 ? 0 : ftell(file);
    char *text = host_allocate((size_t)size + 1, 1, "what was printed");
    rewind(file);
    text[fread(text, 1, (size_t)size, file)] = 0;
    fclose(file);
    return text;
}

static char directory_root[64];
static pid_t directory_owner; // the process that removes the directories: a forked child must not

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

const char *fixture(const char *name) {
    static char path[PATH_MAX];
    char directory[PATH_MAX] = "";
    if (readlink("/proc/self/exe", directory, sizeof(directory) - 1) < 0)
        fatal("cannot tell where this program is");
    for (char *slash; (slash = strrchr(directory, '/'));) {
        *slash = 0;
        const int length = snprintf(path, sizeof(path), "%s/dev/reference/fixtures/%s", directory, name);
        if (length < (int)sizeof(path) && access(path, R_OK) == 0) return path;
    }
    fatal("dev/reference/fixtures/%s was not found above this program", name);
}

void random_fill(double *out, size_t count) {
    for (size_t i = 0; i < count; i++) out[i] = random_normal(random_seed, random_counter++);
}

uint64_t random_below(uint64_t bound) {
    return random_u64(random_seed + 1, random_counter++) % bound;
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
    for (int i = 0; i < only_count; i++) {
        if (word_was_found[i]) continue;
        printf("FAIL no test here has a name with \"%s\"\n", only_words[i]);
        failed++;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
