// Soft failures: a function that may fail without ending the process returns false, and says why in the
// Reason that it is given: one line for the user, which the caller may pass on to fatal.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define REASON_SIZE 4096 // bytes, enough for a path and the fault

typedef struct {
    char text[REASON_SIZE]; // without a line feed; empty: nothing went wrong
} Reason;

// Formats the reason and returns false: `return fail(reason, "…", …)`. Control characters become question
// marks: a reason may quote names out of damaged files, and is one line on a terminal.
bool fail(Reason *reason, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Fails with "cannot ACTION PATH: " and the text of errno, which is kept.
bool fail_errno(Reason *reason, const char *action, const char *path);

#ifdef __cplusplus
}
#endif
