#include "test.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void dies(void *unused) {
    (void)unused;
    fatal("a trial of what ends a test");
}

static void passes(void *unused) {
    (void)unused;
}

// Runs some tests in a forked child and writes its output to the file.
static void run_trials(FILE *said, bool with_words) {
    char *words[] = {"passes", "is in no name"};
    test_only(with_words ? 2 : 0, words);
    if (dup2(fileno(said), STDOUT_FILENO) < 0 || !freopen("/dev/null", "w", stderr)) _exit(2);
    test_run("trial: dies", dies, NULL);
    test_run("trial: passes", passes, NULL);
    const int status = test_summary();
    fflush(stdout);
    _exit(status);
}

static void check_trials(bool with_words, const char *expected) {
    FILE *said = tmpfile();
    if (!said) fatal("no temporary file can be made");
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) run_trials(said, with_words);
    int status;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1, "trials that fail should end with exit code 1");
    char text[4096];
    rewind(said);
    text[fread(text, 1, sizeof(text) - 1, said)] = 0;
    check(!strncmp(text, expected, strlen(expected)), "should say \"%s\", says \"%s\"", expected, text);
    check(strstr(text, " passed, "), "the sum is missing: %s", text);
    fclose(said);
}

static void fatal_ends_one_test(void *unused) {
    (void)unused;
    check_trials(false, "     a fatal error ended the test\nFAIL trial: dies\nok   trial: passes\n");
}

static void words_have_to_be_found(void *unused) {
    (void)unused;
    check_trials(true, "ok   trial: passes\nFAIL no test here has a name with \"is in no name\"\n");
}

void test_harness(void) {
    test_run("harness: a fatal error ends one test", fatal_ends_one_test, NULL);
    test_run("harness: words have to be found", words_have_to_be_found, NULL);
}
