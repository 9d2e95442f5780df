// Reasons: always one printable line, whatever text they quote and however long it is.
#include "test.h"

#include "base/reason.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void test_one_line(void *unused) {
    (void)unused;
    Reason reason;
    check(!fail(&reason, "%s is %d", "a\nb\x1b[31m\x7f\t\xc3\xa9", 7), "a failure is true");
    check(!strcmp(reason.text, "a?b?[31m??\xc3\xa9 is 7"), "says %s", reason.text);
}

static void test_cause(void *unused) {
    (void)unused;
    Reason reason;
    errno = ENOSPC;
    check(!fail_errno(&reason, "write", "a/b"), "a failure is true");
    check(errno == ENOSPC, "errno is lost");
    check(!strcmp(reason.text, "cannot write a/b: No space left on device"), "says %s", reason.text);
    char *path = host_allocate(2 * REASON_SIZE, 1, "a test");
    memset(path, 'x', 2 * REASON_SIZE - 1);
    errno = EIO;
    fail_errno(&reason, "read", path);
    check(strstr(reason.text, "x: Input/output error") != NULL, "the cause is cut off: %s", reason.text);
    free(path);
}

void test_reason(void) {
    test_run("reasons: one line", test_one_line, NULL);
    test_run("reasons: what the system says", test_cause, NULL);
}
